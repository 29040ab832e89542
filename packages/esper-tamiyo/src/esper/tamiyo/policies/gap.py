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
    size_weight: float = 0.5
    """Of what the size of a block is worth (`worth`)."""
    bottleneck_weight: float = 10.0
    """Of being a bottleneck, and once more of being the narrowest: more than place and gap can be."""
    row_weight: float = 5.0
    """Of a path past a row of layers most of which are narrow."""
    samples_per_parameter: float = 10.0
    """What is grown makes the model so large that, for the operations that are left, each parameter sees so
    many samples (Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models")."""
    least_worth: float = 0.2
    """What mends no bottleneck has to be worth this much, for every growth disturbs what is learned."""
    least_score: float | None = 0.0

    @override
    def score(
        self, observation: Observation, seed: SeedStatus, kernel: CompiledKernelArtifact
    ) -> tuple[float, dict[str, float]]:
        """Return the weighted sum of what the place and the size of the block are worth."""
        place, numbers = self._place(observation, seed)
        size = kernel.num_parameters / max(1, observation.num_parameters)
        worth = self.worth(observation, kernel)
        return self._total(place, worth), numbers | {"size": size, "worth": worth}

    @override
    def scores(
        self, observation: Observation, seed: SeedStatus, kernels: Sequence[CompiledKernelArtifact]
    ) -> Sequence[float]:
        """Return the score of each kernel; what the place is worth is asked once."""
        place, _ = self._place(observation, seed)
        return [self._total(place, self.worth(observation, kernel)) for kernel in kernels]

    def _total(self, place: float, worth: float) -> float:
        if place < self.bottleneck_weight and worth < self.least_worth:
            return self.size_weight * (worth - self.least_worth)
        return place + self.size_weight * worth

    def worth(self, observation: Observation, kernel: CompiledKernelArtifact) -> float:
        """Return what a block's size is worth, next to what has grown so far: more is worth less and less.

        It is the difference of `log(1 + s) - s / (1 + aim)` after and before, for all that has grown being
        `s` times as large as the model began: highest where that is the aim.
        """
        grown = observation.grown_parameters
        began = max(1, observation.num_parameters - grown)
        aim = _aim(observation, began, self.samples_per_parameter)
        if kernel.signature.inputs is not None:
            aim = max(1.0, aim)  # a layer that is narrow shows that the model is too small
        before, more = grown / began, kernel.num_parameters / began
        return math.log1p(before + more) - math.log1p(before) - more / (1 + aim)

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


def _aim(observation: Observation, began: int, samples_per_parameter: float) -> float:
    """Return how large all that is grown is to become, in parameters of the model as it began.

    A model of n times the parameters sees `1 / n` times as many samples for the same operations, so that
    `n` is the root of how many times too many there are. Where nobody knows how many, twice as large.
    """
    if (samples := observation.samples_left) is None:
        return 2.0
    return max(0.0, math.sqrt(samples / samples_per_parameter / began) - 1)
