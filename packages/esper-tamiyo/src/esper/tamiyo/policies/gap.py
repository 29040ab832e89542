"""Grow where the loss wants what the layer's own weights cannot give: by bottleneck, gap and position.

The gap (Verbockhaven et al. 2024, "Growing Tiny Networks") is the part of the wanted change of a layer's
output that no change of its weights can follow. Where new units of the layer before could follow some of it
beyond chance, that layer is a bottleneck, and nothing that is grown elsewhere brings back what is lost
there: it becomes wider first. Elsewhere local gradients alone point to the output side, where growth loses
(docs/experiments/0002), so a site's share of the gap counts only together with its position.
"""

import math
from collections.abc import Sequence
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
        place, numbers = self._place(observation, seed)
        size = kernel.num_parameters / max(1, observation.num_parameters)
        return place + self.size_weight * _worth(size), numbers | {"size": size}

    @override
    def scores(
        self, observation: Observation, seed: SeedStatus, kernels: Sequence[CompiledKernelArtifact]
    ) -> Sequence[float]:
        """Return the score of each kernel; what the place is worth is asked once."""
        place, _ = self._place(observation, seed)
        model, weight = max(1, observation.num_parameters), self.size_weight
        return [place + weight * _worth(kernel.num_parameters / model) for kernel in kernels]

    def _place(self, observation: Observation, seed: SeedStatus) -> tuple[float, dict[str, float]]:
        if observation.site_of(seed).widens is not None:
            return self._units(observation, seed)
        health, largest = observation.health_of(seed), observation.largest_gap
        gap = health.expressivity_gap if health is not None else None
        gap = gap if gap is not None and math.isfinite(gap) else 0.0
        share = gap / largest if largest > 0 else 0.0
        where = position(observation, seed)
        numbers = {"position": where, "gap": gap, "gap_share": share}
        return self.position_weight * where + self.gap_weight * share, numbers

    def _units(self, observation: Observation, seed: SeedStatus) -> tuple[float, dict[str, float]]:
        share = gain_share(observation.health_of(seed))
        first = 1 + share / observation.largest_gain_share if share > 0 else -1 + share
        return self.bottleneck_weight * first, {"gain_share": share}


def _worth(size: float) -> float:
    """Return what a block is worth by its size, in parameters of the model; see `Gap.size_weight`."""
    return math.log(size) - size / 2 if size > 0 else -math.inf
