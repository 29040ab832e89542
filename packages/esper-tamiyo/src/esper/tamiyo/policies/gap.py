"""Grow where the loss wants what the layer's own weights cannot give: by bottleneck, gap and position.

The gap (Verbockhaven et al. 2024, "Growing Tiny Networks") is the part of the wanted change of a layer's
output that no change of its weights can follow. Where new units of the layer before could follow some of it
beyond chance, that layer is a bottleneck, and nothing that is grown elsewhere brings back what is lost
there: it becomes wider first. Elsewhere local gradients alone point to the output side, where growth loses
(docs/experiments/0002), so a site's share of the gap counts only together with its position.
"""

import math
from dataclasses import dataclass, field
from typing import override

from esper.contracts import CompiledKernelArtifact, SeedStatus
from esper.tamiyo.policies.growing import Growing, position
from esper.tamiyo.policies.policy import Observation
from esper.tamiyo.policies.timing import Periodic, Timing


@dataclass(frozen=True, kw_only=True)
class Gap(Growing):
    """Grow early, at the site with the largest gap for its position, the block that promises most."""

    name = "gap"

    timing: Timing = field(default_factory=Periodic)
    position_weight: float = 1.0
    gap_weight: float = 0.5
    capacity_weight: float = 0.1
    bottleneck_weight: float = 10.0
    """Of the fact that a layer is a bottleneck: more than all the others together can be."""

    @override
    def score(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        """Return the weighted sum of position, share of the largest gap, and capacity.

        For new units: of the share of the gap that they could follow, and capacity.
        """
        if observation.site_of(seed).widens is not None:
            return self._score_units(observation, seed, kernel)
        health, largest = observation.health_of(seed), observation.largest_gap
        gap = health.expressivity_gap if health is not None else None
        gap = gap if gap is not None and math.isfinite(gap) else 0.0
        numbers = {
            "position": position(observation, seed),
            "gap": gap,
            "gap_share": gap / largest if largest > 0 else 0.0,
            "capacity": math.log10(1 + kernel.num_parameters),
        }
        score = (
            self.position_weight * numbers["position"]
            + self.gap_weight * numbers["gap_share"]
            + self.capacity_weight * numbers["capacity"]
        )
        return score, numbers

    def _score_units(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        share = gain_share(observation, seed)
        numbers = {"gain_share": share, "capacity": math.log10(1 + kernel.num_parameters)}
        first = self.bottleneck_weight if share > 0 else -self.bottleneck_weight
        return first + share + self.capacity_weight * numbers["capacity"], numbers


def gain_share(observation: Observation, seed: SeedStatus) -> float:
    """Return the share of the gap that new units here could follow beyond chance.

    Where nothing is known of it, -1: less than any layer that is no bottleneck has.
    """
    health = observation.health_of(seed)
    gap = None if health is None else health.expressivity_gap
    gain = None if health is None else health.expressivity_gain
    if gap is None or gain is None or not (math.isfinite(gain) and 0 < gap < math.inf):
        return -1.0
    return max(-1.0, gain / gap)
