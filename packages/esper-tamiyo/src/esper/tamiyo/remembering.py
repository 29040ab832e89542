"""What a controller knows that its bed does not: written beside a checkpoint, so that a run goes on.

A process that was killed decides on as if it had lived: the figures that decisions rest on, the seeds that
await a verdict, the kernels at hand with what was measured of them, and whose endorsements they carry.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from esper.contracts import (
    ArtifactIntegrityError,
    CompiledKernelArtifact,
    ConfigError,
    Contract,
    FieldReport,
    SeedEvent,
    SeedId,
)
from esper.contracts.registry import saved_beds
from esper.tamiyo.policies import EpochFigures
from esper.tamiyo.verdict import Evidence, Figures
from esper.tamiyo.warmup import Rise

FILE = "controller.json"
FORMAT_VERSION = 1


class KnownFigures(Contract):
    """A model's figures on validation data, as JSON holds them."""

    loss: float
    accuracy: float | None
    losses: tuple[float, ...] | None

    def figures(self) -> Figures:
        """Return them as the verdict takes them."""
        return Figures(loss=self.loss, accuracy=self.accuracy, losses=self.losses)


class KnownEpoch(Contract):
    """The figures of one epoch."""

    epoch: int
    val_loss: float
    val_accuracy: float | None
    train_loss: float | None

    def figures(self) -> EpochFigures:
        """Return them as policies take them."""
        return EpochFigures(
            epoch=self.epoch,
            val_loss=self.val_loss,
            val_accuracy=self.val_accuracy,
            train_loss=self.train_loss,
        )


class OpenSeed(Contract):
    """What is known of a seed that is not dormant."""

    seed_id: SeedId
    before: KnownEpoch | None = None
    """The last epoch before its graft."""
    with_block: KnownFigures | None = None
    """As its verdict measured them."""
    without_block: KnownFigures | None = None
    evidence_before: KnownFigures | None = None
    evidence_now: KnownFigures | None = None
    copy_of: SeedId | None = None
    risen: dict[str, int] | None = None
    """The warm-up that was under way when it was grafted."""

    def rise(self) -> Rise | None:
        """Return that warm-up."""
        return None if self.risen is None else Rise(**self.risen)


class Memory(Contract):
    """The content of `controller.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    epoch: int
    """Decision points passed."""
    seconds: float
    """Wall time that the controller was at work."""
    public_key: str
    """Of the crucible that judged the kernels, raw, in hexadecimal."""
    kernels: tuple[CompiledKernelArtifact, ...]
    history: tuple[KnownEpoch, ...]
    seeds: tuple[OpenSeed, ...]
    events: tuple[SeedEvent, ...]
    field_reports: tuple[FieldReport, ...]
    warmup: dict[str, int] | None = None
    """The warm-up that is under way."""
    rate_share: float = 1.0
    """Of the learning rates, which every step takes (`Tamiyo.slow_down`)."""


def open_seeds(
    before: dict[tuple[int, int], EpochFigures],
    evidence: dict[tuple[int, int], Evidence],
    copy_of: dict[tuple[int, int], tuple[int, int]],
    risen: dict[tuple[int, int], Rise | None],
) -> tuple[OpenSeed, ...]:
    """Return what a controller knows of each seed."""
    found: list[OpenSeed] = []
    for seed_id in sorted({*before, *evidence, *copy_of}):
        known = evidence.get(seed_id)
        found.append(
            OpenSeed(
                seed_id=seed_id,
                before=KnownEpoch(**asdict(before[seed_id])) if seed_id in before else None,
                with_block=_known(known and known.with_block),
                without_block=_known(known and known.without_block),
                evidence_before=_known(known and known.before),
                evidence_now=_known(known and known.now),
                copy_of=copy_of.get(seed_id),
                risen=asdict(rise) if (rise := risen.get(seed_id)) is not None else None,
            )
        )
    return tuple(found)


def evidence_of(seeds: Sequence[OpenSeed]) -> dict[tuple[int, int], Evidence]:
    """Return the evidence by seed."""
    return {
        seed.seed_id: Evidence(
            before=_figures(seed.evidence_before),
            with_block=seed.with_block.figures(),
            without_block=_figures(seed.without_block),
            now=_figures(seed.evidence_now),
        )
        for seed in seeds
        if seed.with_block is not None
    }


def epochs(history: Sequence[EpochFigures]) -> tuple[KnownEpoch, ...]:
    """Return epochs as JSON holds them."""
    return tuple(KnownEpoch(**asdict(figures)) for figures in history)


def read(folder: Path | str) -> Memory:
    """Return what stands beside the checkpoint in `folder`.

    Raises:
        NotFoundError: if there is no checkpoint, or none of a controlled run.
        ConfigError: if it was written by a newer version.
        ArtifactIntegrityError: if it was changed or damaged.

    """
    data = saved_beds().read_beside(folder, FILE)
    try:
        fields: Any = json.loads(data)
        version = fields["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ConfigError(
                f"the checkpoint in {folder} has {FILE} of version {version}; this Esper reads up to "
                f"{FORMAT_VERSION}: install a newer one"
            )
        return Memory.model_validate_json(data)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise ArtifactIntegrityError(f"{FILE} in {folder} is damaged: {error}") from error


def _known(figures: Figures | None) -> KnownFigures | None:
    if figures is None:
        return None
    losses = None if figures.losses is None else tuple(figures.losses)
    return KnownFigures(loss=figures.loss, accuracy=figures.accuracy, losses=losses)


def _figures(known: KnownFigures | None) -> Figures | None:
    return None if known is None else known.figures()
