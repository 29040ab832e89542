"""A run's checkpoints: the last few moments from which it can go on to the very same final weights.

Each is in a folder of its own under `checkpoints`, written whole or not at all; the oldest gives way. When
one cannot be written, as on a full disk, the ones before stay good and training goes on.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from esper.contracts import (
    ArtifactIntegrityError,
    ConfigError,
    Contract,
    EsperError,
    LogPosition,
    NotFoundError,
    Sha256,
)
from esper.contracts.registry import saved_beds
from esper.tamiyo.config import RunConfig
from esper.tamiyo.controller import Tamiyo
from esper.tamiyo.diverging import Setback
from esper.tamiyo.folder import CHECKPOINTS
from esper.tamiyo.summary import Point
from esper.tamiyo.training import Progress

FILE = "training.json"
FORMAT_VERSION = 1


class KnownPoint(Contract):
    """One epoch on a curve."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float | None
    parameters: int
    flops: int | None = None


class Place(Contract):
    """Where in its data a run is, and what it knows beside its controller: the content of `training.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    run_id: str
    config: dict[str, Any]
    """As `config.yaml` has it: without passwords."""
    parameters_before: int
    epoch: int
    """Epochs finished."""
    batches: int = 0
    """Mini-batches of the next one that are done."""
    loss_sum: float = 0.0
    """Of their samples."""
    curve: tuple[KnownPoint, ...] = ()
    setbacks: tuple[Setback, ...] = ()
    """Times that the run has gone back already."""
    log: LogPosition
    data_sha256: Sha256 | None = None
    """Of the samples that it was trained on; None if the run is older than that."""

    @property
    def progress(self) -> Progress:
        """How far the unfinished epoch got."""
        return Progress(batches=self.batches, loss_sum=self.loss_sum)

    @property
    def order(self) -> tuple[int, int, int]:
        """Tell the newer of two places: where a run went back to, it goes on from there in another way."""
        return self.epoch, self.batches, len(self.setbacks)

    def points(self) -> list[Point]:
        """Return the curve as the record has it."""
        return [Point(**point.model_dump()) for point in self.curve]


def known(curve: Sequence[Point]) -> tuple[KnownPoint, ...]:
    """Return a curve as JSON holds it."""
    return tuple(KnownPoint(**asdict(point)) for point in curve)


class Checkpoints:
    """Writes the checkpoints of one run."""

    def __init__(self, run_folder: Path, config: RunConfig, *, after: Path | None = None) -> None:
        # Behind the one that the run goes on from, which stays until there are others.
        number = 0 if after is None else int(after.name) + 1
        self._folder = run_folder / CHECKPOINTS
        self._keep = config.keep_checkpoints
        self._every_seconds = config.checkpoint_seconds
        self._number = number
        self._written_at = time.monotonic()
        self.has_written = after is not None
        """Whether there is one to go on from."""
        self.failure: str | None = None
        """Why the last one could not be written; None if it could, or none was due yet."""

    def is_due(self) -> bool:
        """Tell whether the last one is old enough."""
        return time.monotonic() - self._written_at >= self._every_seconds

    def write(self, controller: Tamiyo, place: Place) -> bool:
        """Write one, and tell whether that worked; `failure` says why not. The ones before stay."""
        slot = self._folder / str(self._number % self._keep)
        self._written_at = time.monotonic()
        try:
            slot.mkdir(parents=True, exist_ok=True)
            controller.checkpoint(slot, beside={FILE: place.model_dump_json().encode()})
        except OSError as error:
            self.failure = error.strerror or str(error)
            return False
        except EsperError as error:
            self.failure = str(error)
            return False
        self._number += 1
        self.has_written = True
        self.failure = None
        return True


def newest(run_folder: Path) -> tuple[Path, Place, list[str]]:
    """Return the newest good checkpoint of a run, its place, and what is wrong with newer ones.

    Raises:
        NotFoundError: if the run has none.
        ArtifactIntegrityError: if all are damaged.
        ConfigError: if a newer Esper wrote them.

    """
    found: list[tuple[Path, Place]] = []
    problems: list[str] = []
    folder = run_folder / CHECKPOINTS
    for slot in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            found.append((slot, _read(slot)))
        except NotFoundError:
            continue  # a process died before it had written the first into it
        except ArtifactIntegrityError as error:
            problems.append(str(error))
    if not found and problems:
        raise ArtifactIntegrityError(
            f"every checkpoint in {folder} is damaged: {'; '.join(problems)}; restore a copy, or train again "
            f"with train --config {run_folder / 'config.yaml'}"
        )
    if not found:
        raise NotFoundError(
            f"{run_folder} has no checkpoint: the run was stopped before the first, or it is no run; train "
            "again, if it has a config.yaml with train --config"
        )
    slot, place = max(found, key=lambda each: each[1].order)
    return slot, place, problems


def _read(slot: Path) -> Place:
    saved_beds().check(slot)
    data = saved_beds().read_beside(slot, FILE)
    try:
        place = Place.model_validate_json(data)
    except ValidationError as error:
        if b'"format_version":1,' not in data:
            raise ConfigError(
                f"{slot} was written by a newer Esper than this one; install it to go on"
            ) from error
        raise ArtifactIntegrityError(f"{FILE} in {slot} is damaged: {error}") from error
    return place
