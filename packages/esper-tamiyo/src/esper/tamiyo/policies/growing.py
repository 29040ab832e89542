"""What all policies that grow share: limits, timing, and which places and blocks come into question.

A policy of its own is a subclass with a `name` and a `score`; everything else is a field.
"""

import math
from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from esper.contracts import (
    Candidate,
    CompiledKernelArtifact,
    KernelSignature,
    SeedState,
    SeedStatus,
)
from esper.contracts.words import place, plural
from esper.tamiyo.policies.budget import Budget
from esper.tamiyo.policies.policy import Attention, Observation, Proposal
from esper.tamiyo.policies.timing import Plateau, Timing, is_over

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

    least_score: float | None = None
    """What scores less is not grown; None: the best always is."""

    @abstractmethod
    def score(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        """Return how much this block at this place is worth, higher is better, and from which numbers."""

    def attention(self, observation: Observation) -> Attention:
        """Return whether places are to be scored now, or at least later."""
        left = observation.epochs_left
        too_late = left is not None and left < self.min_epochs_left
        if too_late or is_over(self.timing, observation):
            return Attention.NONE
        if not observation.history or self.budget.exhausted(observation) is not None:
            return Attention.LATER
        return Attention.NOW if self.timing.due(observation).now else Attention.LATER

    def propose(self, observation: Observation) -> Proposal:
        """Return the best-scored candidate, or why it is better to wait."""
        due = self.timing.due(observation)
        numbers = dict(due.numbers)
        if (reason := self.budget.exhausted(observation)) is not None:
            return Proposal(chosen=None, reason=reason, numbers=numbers)
        left = observation.epochs_left
        if left is not None and left < self.min_epochs_left:
            reason = (
                f"{plural(left, 'epoch')} left, too few to judge a new block "
                f"({self.min_epochs_left} needed)"
            )
            return Proposal(chosen=None, reason=reason, numbers=numbers)
        if not due.now:
            return Proposal(chosen=None, reason=due.reason, numbers=numbers)
        refusals = {
            kernel.kernel_id: reason
            for kernel in observation.kernels
            if (reason := self.budget.refusal(observation, kernel)) is not None
        }
        num_scored, scored = self._best(observation, refusals.keys())
        if not scored:
            why = "no dormant site has a validated kernel left to try"
            if refusals:
                kernels = [k for k in observation.kernels if k.kernel_id in refusals]
                cheapest = min(kernels, key=lambda kernel: kernel.num_parameters)
                why = f"the budget is too small: {refusals[cheapest.kernel_id]}"
            return Proposal(chosen=None, reason=f"{due.reason}, but {why}", numbers=numbers)
        candidates = [self._candidate(observation, each) for each in scored]
        best = candidates[0]
        if self.least_score is not None and best.score < self.least_score:
            reason = (
                f"{due.reason}, but nothing is worth its cost: {place(best.site)}: {_named(best)} scores "
                f"highest of {num_scored}, {best.score:.2f} where {self.least_score:g} is needed"
            )
            return Proposal(chosen=None, reason=reason, candidates=candidates, numbers=numbers)
        return Proposal(
            chosen=best,
            reason=f"{due.reason}; {place(best.site)}: {_named(best)} scores highest of {num_scored}",
            candidates=candidates,
            numbers=numbers,
        )

    def scores(
        self, observation: Observation, seed: SeedStatus, kernels: Sequence[CompiledKernelArtifact]
    ) -> Sequence[float]:
        """Return the score of each of these kernels, which fit the place.

        A policy for hosts with many thousands of places does once what is the same for all kernels.
        """
        return [self.score(observation, seed, kernel)[0] for kernel in kernels]

    def _best(
        self, observation: Observation, refused: Collection[str]
    ) -> tuple[int, Sequence["_Scored"]]:
        """Score every place that can grow with every kernel that fits it and did not fail there.

        Return how many candidates there are, and the best of them, best first.
        """
        failed = {(report.seed_id, report.kernel_id) for report in observation.outcomes}
        affordable = [kernel for kernel in observation.kernels if kernel.kernel_id not in refused]
        fitting: dict[tuple[KernelSignature, int], list[CompiledKernelArtifact]] = {}
        kept = _kept(observation) if self.stack else {}
        num_scored, best, least = 0, list[_Scored](), -math.inf
        for seed in next_in_row(observation):
            last = kept.get(observation.row_of(seed))
            site = observation.site_of(seed)
            kernels = fitting.get((site.signature, site.spans))
            if kernels is None:
                kernels = [each for each in affordable if observation.suits(each, site)]
                fitting[site.signature, site.spans] = kernels
            scores = self.scores(observation, seed, kernels)
            for kernel, score in zip(kernels, scores, strict=True):
                if failed and (seed.seed_id, kernel.kernel_id) in failed:
                    continue
                num_scored += 1
                if score < least:
                    continue
                is_copy = last is not None and last.kernel_id == kernel.kernel_id
                copy_of = last.seed_id if last is not None and is_copy else None
                insort(best, _Scored(-score, seed.seed_id, kernel.kernel_id, seed, kernel, copy_of))
                if len(best) >= MOST_CANDIDATES:
                    del best[MOST_CANDIDATES:]
                    least = -best[-1].minus_score
        return num_scored, best

    def _candidate(self, observation: Observation, scored: "_Scored") -> Candidate:
        score, numbers = self.score(observation, scored.seed, scored.kernel)
        return Candidate(
            seed_id=scored.seed_id,
            site=scored.seed.site,
            kernel_id=scored.kernel_id,
            blueprint_name=scored.kernel.blueprint_name,
            num_parameters=scored.kernel.num_parameters,
            copy_of=scored.copy_of,
            score=score,
            numbers=numbers,
        )


class _Scored(NamedTuple):
    """A candidate in the making, the best one smallest: a host has many thousands, few go on record."""

    minus_score: float
    seed_id: tuple[int, int]
    kernel_id: str
    seed: SeedStatus
    kernel: CompiledKernelArtifact
    copy_of: tuple[int, int] | None


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
