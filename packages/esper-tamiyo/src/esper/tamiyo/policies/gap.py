"""Grow where the loss wants what the layer's own weights cannot give: by bottleneck, gap and position.

The gap (Verbockhaven et al. 2024, "Growing Tiny Networks") is the part of the wanted change of a layer's
output that no change of its weights can follow. Where new units of the layer before could follow some of it
beyond chance, that layer is a bottleneck, and nothing that is grown elsewhere brings back what is lost
there: it becomes wider first. Where that holds for most layers of a row, a path past all of them comes
first. Elsewhere local gradients alone point to the output side, where growth loses (docs/experiments/0002),
so a site's share of the gap counts only together with its position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import override

from esper.contracts import CompiledKernelArtifact, SeedStatus, Site
from esper.tamiyo.policies.growing import Growing, position
from esper.tamiyo.policies.policy import Observation
from esper.tamiyo.policies.timing import Periodic, Timing

WIDE = -10.0
"""What more width is worth where nothing lacks it: less than any size can make up for."""


@dataclass(frozen=True, kw_only=True)
class Gap(Growing):
    """Grow early, at the site with the largest gap for its position, the block that promises most."""

    name = "gap"

    timing: Timing = field(default_factory=Periodic)
    position_weight: float = 1.0
    gap_weight: float = 0.25
    stream_weight: float = 2.0
    """Of a place between blocks of the host, where what a block adds reaches all that follow, rather than
    within one of them."""
    kind_weight: float = 0.25
    """Of a block made for what flows at the place: at tokens, one that mixes them."""
    size_weight: float = 0.5
    """Of what the size of a block is worth (`Sizes.worth`)."""
    bottleneck_weight: float = 10.0
    """Of being a bottleneck, and once more of being the narrowest: more than place and gap can be."""
    row_weight: float = 5.0
    """Of a path past a row of layers most of which are narrow."""
    more_share: float = 0.5
    """What grows later has to be worth this share of all that has grown, for every growth disturbs what is
    learned: few and large ones do better than many. No block is where that costs more than it is worth by
    now (docs/experiments/0007); narrow layers are mended all the same. 0: whatever is worth its cost."""
    least_score: float | None = 0.0

    @override
    def score(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        """Return the weighted sum of what the place and the size of the block are worth."""
        _, numbers = self._place(observation, seed)
        site = observation.site_of(seed)
        size = observation.sizes.size_of(kernel, site)
        worth = observation.sizes.worth(kernel, site)
        (score,) = self.scores(observation, seed, [kernel])
        return score, numbers | {
            "size": size.parameters,
            "cost": size.operations,
            "worth": worth,
            "worth_so_far": observation.sizes.worth_so_far,
        }

    @override
    def scores(
        self, observation: Observation, seed: SeedStatus, kernels: Sequence[CompiledKernelArtifact]
    ) -> Sequence[float]:
        """Return the score of each kernel; what the place is worth is asked once."""
        place, _ = self._place(observation, seed)
        site, sizes = observation.site_of(seed), observation.sizes
        least = max(0.0, self.more_share * sizes.worth_so_far)
        if site.widens is None and self.more_share * sizes.worth_so_far < 0:
            least = math.inf
        elif place >= self.bottleneck_weight and sizes.aim > 0:
            least = -math.inf
        fit, weight = self.kind_weight, self.size_weight
        return [
            place + fit * (kernel.signature.kind is site.signature.kind) + weight * value
            if value > least
            else min(place, 0.0) + weight * min(value, 0.0) - 1.0
            for kernel, value in zip(kernels, (sizes.worth(k, site) for k in kernels), strict=True)
        ]

    def _place(self, observation: Observation, seed: SeedStatus) -> tuple[float, dict[str, float]]:
        site = observation.site_of(seed)
        if site.widens is not None:
            return self._units(observation, site)
        health, largest = observation.health_of(seed), observation.largest_gap
        gap = health.expressivity_gap if health is not None else None
        gap = gap if gap is not None and math.isfinite(gap) else 0.0
        share = gap / largest if largest > 0 else 0.0
        where = position(observation, seed)
        between = float(not observation.is_inside(site))
        place = (
            self.position_weight * where + self.gap_weight * share + self.stream_weight * between
        )
        return place, {"position": where, "between": between, "gap": gap, "gap_share": share}

    def _units(self, observation: Observation, site: Site) -> tuple[float, dict[str, float]]:
        widths = observation.widths
        share = widths.share(site)
        numbers = {"gain_share": share}
        if site.spans > 1:
            return (self.row_weight if widths.is_narrow_row(site) else WIDE), numbers
        if widths.is_bottleneck(site):
            return self.bottleneck_weight * (1 + share / widths.largest_share), numbers
        return WIDE, numbers
