"""Writes what a run leaves in its folder at the end: the model first, then its summary and its report."""

import tempfile
from pathlib import Path

from esper.contracts import ConfigError, SeedBed
from esper.tamiyo.averaging import averaged_weights
from esper.tamiyo.epochs import Learner
from esper.tamiyo.folder import RunFolder, resume_command
from esper.tamiyo.summary import RunRecord, summarise

AVERAGED = "ema"
"""The folder of the averaged weights in the run folder; `esper.kasmina.load` reads both."""


def save_model(folder: RunFolder, bed: SeedBed) -> None:
    """Write the model; the folder is kept from here on.

    With no room there, the model goes to the system's folder for temporary files: hours of training
    must not be lost to a full disk.

    Raises:
        ConfigError: if it cannot be written there either.

    """
    try:
        bed.save(folder.path)
    except OSError as error:
        refuge = _save_elsewhere(bed)
        where = f"the model was saved in {refuge}" if refuge is not None else "the model is lost"
        raise ConfigError(
            f"the run could not be saved in {folder.final_path}: {_reason(error)}; {where}. "
            "Make room or choose another folder with --out"
        ) from error
    folder.keep = True


def keep_average(folder: RunFolder, bed: SeedBed, learner: Learner, record: RunRecord) -> None:
    """Measure the moving average of the weights and write it beside the model, if the run keeps one.

    Raises:
        ConfigError: if it cannot be written.

    """
    if learner.average is None:
        return
    with averaged_weights(bed.model, learner.average):
        record.grown.averaged = learner.measure("test")
        record.averaged_sha256 = bed.weights_sha256()
        try:
            bed.save(folder.path / AVERAGED)
        except OSError as error:
            raise ConfigError(
                f"the averaged weights could not be saved in {folder.final_path}: {_reason(error)}; "
                "the model as trained was saved"
            ) from error


def _save_elsewhere(bed: SeedBed) -> Path | None:
    try:
        refuge = Path(tempfile.mkdtemp(prefix="esper-model-"))
        bed.save(refuge)
    except OSError:
        return None
    return refuge


def save_summary(folder: RunFolder, record: RunRecord) -> None:
    """Write what a program wants to know of the run: the last that makes it complete.

    Raises:
        ConfigError: if it cannot be written.

    """
    try:
        folder.write_json("summary.json", summarise(record))
    except OSError as error:
        raise ConfigError(
            f"summary and report could not be saved in {folder.final_path}: {_reason(error)}; make room, "
            f"then `{resume_command(folder.final_path)}` writes them"
        ) from error


def save_report(folder: RunFolder) -> None:
    """Write what a person wants to know of the run, from what is in its folder.

    Raises:
        ConfigError: if it cannot be written.

    """
    from esper.tamiyo.report import write_report  # with its pictures it takes a second to import

    try:
        write_report(folder.path)
    except OSError as error:
        raise ConfigError(
            f"the report could not be saved in {folder.final_path}: {_reason(error)}; make room, "
            f"then `tamiyo report {folder.final_path}` draws it"
        ) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
