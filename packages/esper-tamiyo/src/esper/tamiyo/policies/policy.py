"""The policy port: what a policy sees at a decision point, and what it may propose.

The controller builds an `Observation` at the end of each epoch and carries out the `Proposal`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Protocol

from esper.contracts import (
    BlueprintIR,
    Candidate,
    CompiledKernelArtifact,
    FieldReport,
    HealthSignal,
    SeedState,
    SeedStatus,
    Site,
    SiteKind,
)
from esper.tamiyo.policies.sizes import TOKENS_PER_SAMPLE, Size, Sizes
from esper.tamiyo.policies.widths import Widths


@dataclass(frozen=True, kw_only=True)
class EpochFigures:
    """The metrics of one finished epoch."""

    epoch: int
    val_loss: float
    val_accuracy: float | None = None
    train_loss: float | None = None

    @cached_property
    def is_finite(self) -> bool:
        """Whether the losses are numbers that something can be decided by."""
        return math.isfinite(self.val_loss) and math.isfinite(self.train_loss or 0.0)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Everything that a policy may base a decision on."""

    epoch: int
    epochs_left: int | None
    """Epochs still to come; None when the caller's loop did not say."""
    history: Sequence[EpochFigures]
    """Finite figures since the host was last restored to an earlier state, oldest first."""
    sites: Sequence[Site]
    seeds: Sequence[SeedStatus]
    health: Sequence[HealthSignal]
    kernels: Sequence[CompiledKernelArtifact]
    """VALIDATED kernels at hand."""
    outcomes: Sequence[FieldReport]
    """Of this run, oldest first."""
    num_parameters: int
    """Trainable parameters that the model has now."""
    seconds: float = 0.0
    """Wall time since the controller was made."""
    steps: int = 0
    """Optimizer steps so far; 0 where nobody counted them."""
    batches_per_step: int = 1
    designs: Mapping[str, BlueprintIR] = field(default_factory=dict[str, BlueprintIR])
    """What kernels were built from, by `blueprint_id`, as far as that is known."""

    def suits(self, kernel: CompiledKernelArtifact, site: Site) -> bool:
        """Tell whether a kernel belongs at a site: by its signature and, where it is known, its design."""
        if not kernel.signature.fits(site.signature):
            return False
        design = self.designs.get(kernel.blueprint_id)
        return design is None or site.suits(design)

    @cached_property
    def _sites(self) -> dict[int, Site]:
        return {site.layer_id: site for site in self.sites}

    @cached_property
    def _health(self) -> dict[tuple[int, int], HealthSignal]:
        return {(signal.layer_id, signal.seed_id): signal for signal in self.health}

    def site_of(self, seed: SeedStatus) -> Site:
        """Return where a seed lives."""
        return self._sites[seed.seed_id[0]]

    def row_of(self, seed: SeedStatus) -> tuple[int, int]:
        """Return layer and chunk of a seed: what the seeds of one row (`Site.depth`) have in common."""
        layer_id, index = seed.seed_id
        return layer_id, index % self.site_of(seed).num_seeds

    def health_of(self, seed: SeedStatus) -> HealthSignal | None:
        """Return the health of a seed's features; in a row of seeds the first looks for all."""
        return self._health.get(self.row_of(seed))

    @cached_property
    def largest_gap(self) -> float:
        """The largest expressivity gap of all sites for blocks; 0 where none is known."""
        wider = {site.layer_id for site in self.sites if site.widens is not None}
        gaps = (s.expressivity_gap for s in self.health if s.layer_id not in wider)
        return max((gap for gap in gaps if gap is not None and math.isfinite(gap)), default=0.0)

    @cached_property
    def widths(self) -> Widths:
        """Which layers are too narrow."""
        return Widths(self.sites, self._health)

    @property
    def steps_left(self) -> float | None:
        """Steps still to come if later epochs have as many as those so far; None where nobody can tell."""
        if self.epochs_left is None or not self.steps:
            return None
        return self.steps / (self.epoch + 1) * self.epochs_left

    @cached_property
    def samples_left(self) -> float | None:
        """Samples that the steps still to come will see; None where nobody can tell.

        Of tokens, each of which looks back and predicts the next, `TOKENS_PER_SAMPLE` count as one.
        """
        plain = [site for site in self.sites if site.widens is None] or self.sites
        signals = [self._health.get((site.layer_id, 0)) for site in plain]
        batch = max((s.batch_samples for s in signals if s is not None), default=0)
        if self.steps_left is None or not batch:
            return None
        batch *= self.batches_per_step
        tokens = any(site.signature.kind is SiteKind.CAUSAL_SEQUENCE for site in plain)
        return self.steps_left * batch / (TOKENS_PER_SAMPLE if tokens else 1)

    def is_inside(self, site: Site) -> bool:
        """Tell whether a site is within a block at whose output there is a site, too."""
        parts = site.name.split(".")
        return any(".".join(parts[:n]) in self._names for n in range(1, len(parts)))

    @cached_property
    def _names(self) -> set[str]:
        return {site.name for site in self.sites if site.widens is None}

    @cached_property
    def sizes(self) -> Sizes:
        """What the sizes of kernels are worth."""
        kernels = {kernel.kernel_id: kernel for kernel in self.kernels}
        kept = [
            (kernels[seed.kernel_id], self.site_of(seed))
            for seed in self.seeds
            if seed.state is SeedState.FOSSILIZED and seed.kernel_id in kernels
        ]
        grown = sum(kernel.num_parameters for kernel, _ in kept)
        began = max(1, self.num_parameters - grown)
        sizes = Sizes(began=began, grown=Size(), samples_left=self.samples_left)
        sizes_kept = (sizes.size_of(kernel, site) for kernel, site in kept)
        return replace(sizes, grown=sum(sizes_kept, start=Size()))


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What to grow now (`chosen`), or to wait (None); with everything that it rests on."""

    chosen: Candidate | None
    reason: str
    candidates: Sequence[Candidate] = ()
    numbers: dict[str, float] = field(default_factory=dict[str, float])


class Attention(Enum):
    """What the health of sites can mean to a policy's proposals."""

    NOW = "it decides the next one"
    LATER = "it may decide one of a later epoch"
    NONE = "nothing: sites need not be sampled any more"


class Policy(Protocol):
    """Decides where, when and what to grow. Holds no state: equal observations, equal proposals.

    A policy may also have a method `attention(observation)`, asked with an observation without health: what
    it does not want to know costs nothing. Without it, health is measured at every decision point. One with
    `grows = False` never proposes anything: no kernels are forged for it.
    """

    @property
    def name(self) -> str:
        """Written into every decision."""
        ...

    def propose(self, observation: Observation) -> Proposal:
        """Return what to do at this decision point."""
        ...


def attention_of(policy: Policy, observation: Observation) -> Attention:
    """Return what health can mean to a policy now."""
    asked = getattr(policy, "attention", None)
    return Attention.NOW if asked is None else asked(observation)
