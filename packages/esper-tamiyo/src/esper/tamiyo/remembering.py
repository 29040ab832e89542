"""What a controller knows that its bed does not: written beside a checkpoint, so that a run goes on.

A process that was killed decides on as if it had lived: the figures that decisions rest on, the seeds that
await a verdict, the kernels at hand with what was measured of them, and whose endorsements they carry.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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


@dataclass(kw_only=True)
class Trial:
    """What a controller knows of a seed from the moment that it has it germinate until it stayed or went."""

    copy_of: SeedId | None = None
    """The seed whose block it begins as a copy of."""
    before: EpochFigures | None = None
    """The last epoch before its graft."""
    risen: Rise | None = None
    """The warm-up that was under way when it was grafted."""
    evidence: Evidence | None = None
    """Of its last verdict."""


class KnownTrial(Contract):
    """A trial, as JSON holds it."""

    seed_id: SeedId
    before: KnownEpoch | None = None
    with_block: KnownFigures | None = None
    """As its verdict measured them."""
    without_block: KnownFigures | None = None
    evidence_before: KnownFigures | None = None
    evidence_now: KnownFigures | None = None
    copy_of: SeedId | None = None
    risen: dict[str, int] | None = None

    def trial(self) -> Trial:
        """Return it as the controller takes it."""
        evidence = self.with_block and Evidence(
            before=_figures(self.evidence_before),
            with_block=self.with_block.figures(),
            without_block=_figures(self.without_block),
            now=_figures(self.evidence_now),
        )
        return Trial(
            copy_of=self.copy_of,
            before=None if self.before is None else self.before.figures(),
            risen=None if self.risen is None else Rise(**self.risen),
            evidence=evidence,
        )


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
    seeds: tuple[KnownTrial, ...]
    """Those that are on trial."""
    events: tuple[SeedEvent, ...]
    field_reports: tuple[FieldReport, ...]
    warmup: dict[str, int] | None = None
    """The warm-up that is under way."""
    rate_share: float = 1.0
    """Of the learning rates, which every step takes (`Tamiyo.slow_down`)."""


def known_trials(trials: Mapping[SeedId, Trial]) -> tuple[KnownTrial, ...]:
    """Return trials as JSON holds them."""
    found: list[KnownTrial] = []
    for seed_id, trial in sorted(trials.items()):
        evidence = trial.evidence
        found.append(
            KnownTrial(
                seed_id=seed_id,
                before=None if trial.before is None else KnownEpoch(**asdict(trial.before)),
                with_block=_known(evidence and evidence.with_block),
                without_block=_known(evidence and evidence.without_block),
                evidence_before=_known(evidence and evidence.before),
                evidence_now=_known(evidence and evidence.now),
                copy_of=trial.copy_of,
                risen=None if trial.risen is None else asdict(trial.risen),
            )
        )
    return tuple(found)


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
