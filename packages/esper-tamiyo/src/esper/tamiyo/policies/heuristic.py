"""The founding heuristic: when learning stalls, relieve the idlest site on the input side.

Timing: the validation loss improved by less than a given share over the last epochs. Place and block:
a score from the founding telemetry (how redundant and how dead the site's features are), the site's
position and the block's capacity; what failed at a site in this run is not tried there again.
"""

import math
from dataclasses import dataclass

from esper.contracts import (
    IN_FLIGHT,
    Candidate,
    CompiledKernelArtifact,
    SeedState,
    SeedStatus,
    Site,
)
from esper.tamiyo.policies.policy import Observation, Proposal


@dataclass(frozen=True, kw_only=True)
class Heuristic:
    """Grow one block at a time, whenever learning stalls."""

    window_epochs: int = 3
    """Epochs over which progress is measured."""
    stall_improvement: float = 0.15
    """Stalled when the loss fell by less than this share over the window. High, because early growth
    pays more than late growth."""
    min_epochs_left: int = 8
    """A block needs about this long to be loaded, grafted and judged."""
    position_weight: float = 1.0
    """Growth on the input side beats growth on the output side, whatever the telemetry says."""
    redundancy_weight: float = 0.3
    dead_weight: float = 0.2
    capacity_weight: float = 0.1

    name = "heuristic"

    def propose(self, observation: Observation) -> Proposal:
        """Return the best-scored candidate if learning stalls and nothing is in flight."""
        numbers, stalled = self._progress(observation)
        in_flight = next((s for s in observation.seeds if s.state in IN_FLIGHT), None)
        if in_flight is not None:
            return Proposal(
                chosen=None,
                reason=f"one block at a time: layer {in_flight.site} is {in_flight.state.value}",
                numbers=numbers,
            )
        if observation.epochs_left is not None and observation.epochs_left < self.min_epochs_left:
            return Proposal(
                chosen=None,
                reason=f"{observation.epochs_left} epochs left, too few to judge a new block "
                f"({self.min_epochs_left} needed)",
                numbers=numbers,
            )
        if not stalled:
            return Proposal(chosen=None, reason=self._why_not_stalled(numbers), numbers=numbers)
        candidates = self._candidates(observation)
        if not candidates:
            return Proposal(
                chosen=None,
                reason="learning stalls, but no dormant site has a validated kernel left to try",
                numbers=numbers,
            )
        best = candidates[0]
        return Proposal(
            chosen=best,
            reason=f"learning stalls (loss fell {numbers['improvement']:.1%} in "
            f"{self.window_epochs} epochs); {best.blueprint_name} at layer {best.site} scores highest of "
            f"{len(candidates)}",
            candidates=candidates,
            numbers=numbers,
        )

    def _progress(self, observation: Observation) -> tuple[dict[str, float], bool]:
        losses = [figures.val_loss for figures in observation.history]
        if len(losses) <= self.window_epochs:
            return {"epochs_observed": float(len(losses))}, False
        before = min(losses[: -self.window_epochs])
        recent = min(losses[-self.window_epochs :])
        improvement = (before - recent) / abs(before) if before else 0.0
        return {"improvement": improvement}, improvement < self.stall_improvement

    def _why_not_stalled(self, numbers: dict[str, float]) -> str:
        if "improvement" not in numbers:
            return f"watching: needs more than {self.window_epochs} epochs to see a trend"
        return (
            f"still learning: loss fell {numbers['improvement']:.1%} in {self.window_epochs} "
            f"epochs (stalled below {self.stall_improvement:.0%})"
        )

    def _candidates(self, observation: Observation) -> list[Candidate]:
        """Return every dormant site with every kernel that fits it and did not fail there."""
        failed = {(report.seed_id, report.kernel_id) for report in observation.outcomes}
        found = [
            self._candidate(observation, seed, kernel)
            for seed in observation.seeds
            if seed.state is SeedState.DORMANT
            for kernel in observation.kernels
            if kernel.signature.fits(_site_of(observation, seed).signature)
            and (seed.seed_id, kernel.kernel_id) not in failed
        ]
        return sorted(found, key=lambda c: (-c.score, c.seed_id, c.kernel_id))

    def _candidate(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> Candidate:
        site = _site_of(observation, seed)
        health = next(
            (h for h in observation.health if (h.layer_id, h.seed_id) == seed.seed_id), None
        )
        numbers = {
            "position": 1.0 - site.layer_id / len(observation.sites),
            "redundancy": health.avg_correlation if health is not None else 0.0,
            "dead": health.dead_neuron_ratio if health is not None else 0.0,
            "capacity": math.log10(1 + kernel.num_parameters),
        }
        score = (
            self.position_weight * numbers["position"]
            + self.redundancy_weight * numbers["redundancy"]
            + self.dead_weight * numbers["dead"]
            + self.capacity_weight * numbers["capacity"]
        )
        return Candidate(
            seed_id=seed.seed_id,
            site=seed.site,
            kernel_id=kernel.kernel_id,
            blueprint_name=kernel.blueprint_name,
            num_parameters=kernel.num_parameters,
            score=score,
            numbers=numbers,
        )


def _site_of(observation: Observation, seed: SeedStatus) -> Site:
    return next(s for s in observation.sites if s.layer_id == seed.seed_id[0])
