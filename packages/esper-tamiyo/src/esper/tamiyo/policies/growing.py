"""What all policies that grow share: limits, timing, and which places and blocks come into question.

A policy of its own is a subclass with a `name` and a `score`; everything else is a field.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from esper.contracts import (
    Candidate,
    CompiledKernelArtifact,
    KernelSignature,
    SeedState,
    SeedStatus,
)
from esper.tamiyo.policies.budget import Budget
from esper.tamiyo.policies.policy import Observation, Proposal
from esper.tamiyo.policies.timing import Plateau, Timing

MOST_CANDIDATES = 50
"""The best so many go on record with a decision."""


@dataclass(frozen=True, kw_only=True)
class Growing(ABC):
    """Grows the best-scored candidate whenever growth is due and the budget allows it."""

    name = "growing"

    timing: Timing = field(default_factory=Plateau)
    budget: Budget = field(default_factory=Budget)
    min_epochs_left: int = 8
    """A block needs about this long to be loaded, grafted and judged."""
    stack: bool = False
    """In a row of blocks (`Site.depth`), one of the same kernel as the last that was kept is born as a copy
    of it, as trained by then. Off, because new blocks before trained ones do better than copies."""

    @abstractmethod
    def score(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        """Return how much this block at this place is worth, higher is better, and from which numbers."""

    def propose(self, observation: Observation) -> Proposal:
        """Return the best-scored candidate, or why it is better to wait."""
        due = self.timing.due(observation)
        numbers = dict(due.numbers)
        if (reason := self.budget.exhausted(observation)) is not None:
            return Proposal(chosen=None, reason=reason, numbers=numbers)
        left = observation.epochs_left
        if left is not None and left < self.min_epochs_left:
            reason = (
                f"{left} epochs left, too few to judge a new block ({self.min_epochs_left} needed)"
            )
            return Proposal(chosen=None, reason=reason, numbers=numbers)
        if not due.now:
            return Proposal(chosen=None, reason=due.reason, numbers=numbers)
        refusals = {
            kernel.kernel_id: reason
            for kernel in observation.kernels
            if (reason := self.budget.refusal(observation, kernel)) is not None
        }
        scored = self._score_all(observation, refusals.keys())
        if not scored:
            why = "no dormant site has a validated kernel left to try"
            if refusals:
                kernels = [k for k in observation.kernels if k.kernel_id in refusals]
                cheapest = min(kernels, key=lambda kernel: kernel.num_parameters)
                why = f"the budget is too small: {refusals[cheapest.kernel_id]}"
            return Proposal(chosen=None, reason=f"{due.reason}, but {why}", numbers=numbers)
        candidates = [each.candidate() for each in scored[:MOST_CANDIDATES]]
        best = candidates[0]
        return Proposal(
            chosen=best,
            reason=f"{due.reason}; layer {best.site}: {_named(best)} scores highest of {len(scored)}",
            candidates=candidates,
            numbers=numbers,
        )

    def _score_all(self, observation: Observation, refused: Collection[str]) -> list["_Scored"]:
        """Score every place that can grow with every kernel that fits it and did not fail there."""
        failed = {(report.seed_id, report.kernel_id) for report in observation.outcomes}
        kernels = [kernel for kernel in observation.kernels if kernel.kernel_id not in refused]
        fitting: dict[KernelSignature, list[CompiledKernelArtifact]] = {}
        found: list[_Scored] = []
        kept = _kept(observation) if self.stack else {}
        for seed in next_in_row(observation):
            last = kept.get(observation.row_of(seed))
            signature = observation.site_of(seed).signature
            if signature not in fitting:
                fitting[signature] = [each for each in kernels if each.signature.fits(signature)]
            for kernel in fitting[signature]:
                if (seed.seed_id, kernel.kernel_id) not in failed:
                    is_copy = last is not None and last.kernel_id == kernel.kernel_id
                    copy_of = last.seed_id if last is not None and is_copy else None
                    scored = self.score(observation, seed, kernel)
                    found.append(_Scored(seed, kernel, *scored, copy_of))
        return sorted(found, key=lambda e: (-e.score, e.seed.seed_id, e.kernel.kernel_id))


class _Scored(NamedTuple):
    """A candidate in the making: a host may have many thousands, of which few go on record."""

    seed: SeedStatus
    kernel: CompiledKernelArtifact
    score: float
    numbers: dict[str, float]
    copy_of: tuple[int, int] | None

    def candidate(self) -> Candidate:
        return Candidate(
            seed_id=self.seed.seed_id,
            site=self.seed.site,
            kernel_id=self.kernel.kernel_id,
            blueprint_name=self.kernel.blueprint_name,
            num_parameters=self.kernel.num_parameters,
            copy_of=self.copy_of,
            score=self.score,
            numbers=self.numbers,
        )


def _named(candidate: Candidate) -> str:
    copy = "" if candidate.copy_of is None else " as a copy of its neighbour"
    return f"{candidate.blueprint_name}{copy}"


def _kept(observation: Observation) -> dict[tuple[int, int], SeedStatus]:
    """Return the seed of each row whose block was kept last."""
    kept = [seed for seed in observation.seeds if seed.state is SeedState.FOSSILIZED]
    return {observation.row_of(seed): seed for seed in kept}


def next_in_row(observation: Observation) -> list[SeedStatus]:
    """Return the dormant seed of each row (see `Site.depth`) whose turn it is: the lowest slot."""
    found: dict[tuple[int, int], SeedStatus] = {}
    for seed in observation.seeds:
        if seed.state is SeedState.DORMANT:
            found.setdefault(observation.row_of(seed), seed)
    return list(found.values())


def position(observation: Observation, seed: SeedStatus) -> float:
    """Return where a seed is in its host: 1 on the input side, towards 0 on the output side."""
    return 1.0 - seed.seed_id[0] / len(observation.sites)
