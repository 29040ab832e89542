"""The policy port: what a policy sees at a decision point, and what it may propose.

The controller builds an `Observation` at the end of each epoch and carries out the `Proposal`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from esper.contracts import (
    Candidate,
    CompiledKernelArtifact,
    FieldReport,
    HealthSignal,
    SeedStatus,
    Site,
)


@dataclass(frozen=True, kw_only=True)
class EpochFigures:
    """The metrics of one finished epoch."""

    epoch: int
    val_loss: float
    val_accuracy: float | None = None
    train_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Everything that a policy may base a decision on."""

    epoch: int
    epochs_left: int | None
    """Epochs still to come; None when the caller's loop did not say."""
    history: Sequence[EpochFigures]
    """Figures since the host was last restored to an earlier state, oldest first."""
    sites: Sequence[Site]
    seeds: Sequence[SeedStatus]
    health: Sequence[HealthSignal]
    kernels: Sequence[CompiledKernelArtifact]
    """VALIDATED kernels at hand."""
    outcomes: Sequence[FieldReport]
    """Of this run, oldest first."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What to grow now (`chosen`), or to wait (None); with everything that it rests on."""

    chosen: Candidate | None
    reason: str
    candidates: Sequence[Candidate] = ()
    numbers: dict[str, float] = field(default_factory=dict[str, float])


class Policy(Protocol):
    """Decides where, when and what to grow. Holds no state: equal observations, equal proposals."""

    @property
    def name(self) -> str:
        """Written into every decision."""
        ...

    def propose(self, observation: Observation) -> Proposal:
        """Return what to do at this decision point."""
        ...
