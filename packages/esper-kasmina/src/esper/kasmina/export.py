"""Writes a grown model as a folder that runs without Esper: traced programs, weights, lineage, manifest.

`Bed.export` calls it. Whoever receives the folder needs torch only:

    model = torch.export.load("folder/model.pt2").module()

which is a plain module. Its state has the names that the host's has, so that `model.safetensors` loads
into it. It stays in the mode that it was traced in; `model_train.pt2` is the same model in training
mode, to be trained further. No file holds a pickle, an example input, or a path of this machine.
`torch.export.load` can unpickle what it finds in a foreign file: verify a folder before loading it.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from esper.contracts import ConfigError, IllegalTransitionError, get_logger, new_id
from esper.kasmina.exported import (
    MANIFEST_FILE,
    ONNX_FILE,
    OPTIONAL_FILES,
    PROGRAM_FILE,
    TRAINING_PROGRAM_FILE,
    ExportManifest,
    file_record,
)
from esper.kasmina.files import sync
from esper.kasmina.onnx_file import check_onnx_packages, write_onnx
from esper.kasmina.probe import Example
from esper.kasmina.saving import MANIFEST_FILE as CHECKPOINT_FILE
from esper.kasmina.sealed import UNSEALED, seal, text_of
from esper.kasmina.seed import BEFORE_VERDICT
from esper.kasmina.tracing import trace

if TYPE_CHECKING:
    from esper.kasmina.bed import Bed

__all__ = ["ExportManifest", "export"]

TOLERANCE = 1e-6
"""How far a program may be off, relative to the largest output (at least 1)."""


def export(
    bed: "Bed",
    folder: Path | str,
    example: Example,
    *,
    training: bool = False,
    onnx: bool = False,
    tolerance: float = TOLERANCE,
) -> ExportManifest:
    """Write the model as it stands into `folder` and return what `export.json` says about it.

    Dormant seeds leave no trace. The host, its modes, its gradients and the global random streams are
    left as they are. Each program is read back and compared with the host before anything appears in
    `folder`, for the example and for other extents of each axis that may vary; if something fails,
    `folder` is left as it was.

    Axes of inputs vary as far as tracing allows: usually the batch, tokens and extents of images; not
    the tokens of a recurrent layer (torch 2.15). The manifest tells. An axis of extent 1 in the example
    is fixed, so give at least two rows. Arguments that are not tensors are fixed, too. Outputs in
    containers of the host's own come as plain dicts and tuples.

    Equal models give equal bytes, on one machine with one version of torch.

    Args:
        bed: holds the model; none of its seeds may stand between a graft and the verdict.
        folder: made if it is not there; files of an earlier export are replaced, others are left alone.
        example: inputs of one forward pass, on the model's device, as in `wrap`.
        training: write `model_train.pt2` too.
        onnx: write `model.onnx` too (evaluation mode).
        tolerance: how far outputs may be off, relative to the largest (at least 1); for types coarser
            than float32 a few of their roundings, if that is more.

    Raises:
        IllegalTransitionError: if a seed awaits its verdict.
        HostError: if the host cannot be traced, or a program does not answer as it does.
        ConfigError: if packages for ONNX are missing, or the folder holds a checkpoint.
        OSError: if the folder cannot be written.

    """
    _check_verdicts(bed)
    if onnx:
        check_onnx_packages()
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder for the export")
    if (folder / CHECKPOINT_FILE).exists():
        raise ConfigError(f"{folder} holds a checkpoint; choose another folder for the export")
    # Beside its destination, so that moving it there is a rename.
    draft = folder.parent / f".{folder.name}.{new_id()}"
    draft.mkdir(parents=True)
    try:
        manifest = _fill(bed, draft, example, training=training, onnx=onnx, tolerance=tolerance)
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    get_logger("kasmina").info("exported", folder=str(folder), content=manifest.content_sha256)
    return manifest


def _check_verdicts(bed: "Bed") -> None:
    for seed in bed.seeds():
        if seed.state in BEFORE_VERDICT:
            raise IllegalTransitionError(
                f"seed {seed.seed_id} is in {seed.state}; fossilize or cull it before export()"
            )


def _fill(
    bed: "Bed", draft: Path, example: Example, *, training: bool, onnx: bool, tolerance: float
) -> ExportManifest:
    """Write every file into `draft`."""
    bed.save(draft)
    traced = trace(bed.model, example, draft / PROGRAM_FILE, mode="eval", tolerance=tolerance)
    programs = [traced.record]
    if training:
        path = draft / TRAINING_PROGRAM_FILE
        programs += [trace(bed.model, example, path, mode="train", tolerance=tolerance).record]
    onnx_deviation = write_onnx(traced, draft / ONNX_FILE) if onnx else None
    draft_manifest = ExportManifest(
        torch_version=torch.__version__,
        weights_sha256=bed.weights_sha256(),
        tolerance=tolerance,
        programs=tuple(programs),
        onnx_deviation=onnx_deviation,
        files=tuple(file_record(path) for path in sorted(draft.iterdir())),
        content_sha256=UNSEALED,
    )
    manifest = seal(draft_manifest)
    (draft / MANIFEST_FILE).write_text(text_of(manifest))
    return manifest


def _publish(draft: Path, folder: Path) -> None:
    """Move what is in `draft` to `folder`, the manifest last: it tells if a crash comes between."""
    for path in draft.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if not folder.exists():
        draft.rename(folder)
        sync(folder.parent)
        return
    new = {path.name for path in draft.iterdir()} - {MANIFEST_FILE}
    for name in sorted(new):
        (draft / name).replace(folder / name)
    for name in OPTIONAL_FILES - new:
        (folder / name).unlink(missing_ok=True)
    (draft / MANIFEST_FILE).replace(folder / MANIFEST_FILE)
    sync(folder)
