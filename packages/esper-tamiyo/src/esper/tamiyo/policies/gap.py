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
from esper.tamiyo.policies.policy import Observation, gain_share
from esper.tamiyo.policies.timing import Periodic, Timing


@dataclass(frozen=True, kw_only=True)
class Gap(Growing):
    """Grow early, at the site with the largest gap for its position, the block that promises most."""

    name = "gap"

    timing: Timing = field(default_factory=Periodic)
    position_weight: float = 1.0
    gap_weight: float = 0.25
    size_weight: float = 0.5
    """Of `log(r) - r / 2`, for a block with `r` times as many parameters as the model has. It is highest
    for `r = 2`: a step costs more with every parameter, and what more of them bring diminishes."""
    bottleneck_weight: float = 10.0
    """Of being a bottleneck, and once more of being the narrowest: more than place and gap can be."""

    @override
    def score(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        """Return the weighted sum of position, share of the largest gap, and size.

        For new units: of the share of the gap that they could follow, next to the largest share of all
        layers, and of size.
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
            "size": size_of(observation, kernel),
        }
        score = (
            self.position_weight * numbers["position"]
            + self.gap_weight * numbers["gap_share"]
            + self.size_weight * _worth(numbers["size"])
        )
        return score, numbers

    def _score_units(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        share = gain_share(observation.health_of(seed))
        numbers = {"gain_share": share, "size": size_of(observation, kernel)}
        first = 1 + share / observation.largest_gain_share if share > 0 else -1 + share
        return self.bottleneck_weight * first + self.size_weight * _worth(numbers["size"]), numbers


def size_of(observation: Observation, kernel: CompiledKernelArtifact) -> float:
    """Return how many times the parameters of the model a block has."""
    return kernel.num_parameters / max(1, observation.num_parameters)


def _worth(size: float) -> float:
    return math.log(size) - size / 2 if size > 0 else -math.inf
