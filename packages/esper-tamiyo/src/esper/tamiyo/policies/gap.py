"""Grow where the loss wants what the layer's own weights cannot give: by expressivity gap and position.

The gap (Verbockhaven et al. 2024, "Growing Tiny Networks") is the part of the wanted change of a layer's
output that no change of its weights can follow. Local gradients alone point to the output side, where
growth loses (docs/experiments), so a site's share of the gap counts only together with its position.
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

    @override
    def score(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        """Return the weighted sum of position, share of the largest gap, and capacity."""
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
