"""Which layers are too narrow: alone, as a bottleneck, or together with most of the layers in their row.

New units at a bottleneck give back what is lost there. Where most layers of a row are narrow, no single one
of them is to blame, and a path past all of them does more than new units in any (docs/experiments/0006).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from esper.contracts import HealthSignal, Site

UNKNOWN = -1.0
"""The gain share of a layer of which nothing is known: less than any that is wide enough has."""

ACROSS_POSITIONS = 0.03
"""Taken from the gain share of new units that read all positions at once: a weight of theirs serves one
position, where one of the convolution that they are beside serves all, so they learn by heart sooner."""


COST_IS_ROUNDED = 1e-3
"""By so much less than half may pass for a half: costs of places have four digits."""


def gain_share(health: HealthSignal | None) -> float:
    """Return the share of the expressivity gap that new units could follow beyond chance."""
    gap = None if health is None else health.expressivity_gap
    gain = None if health is None else health.expressivity_gain
    if gap is None or gain is None or not (math.isfinite(gain) and 0 < gap < math.inf):
        return UNKNOWN
    return max(UNKNOWN, gain / gap)


@dataclass(frozen=True)
class Widths:
    """What the health of all places says about the widths of layers."""

    sites: Sequence[Site]
    health: Mapping[tuple[int, int], HealthSignal]
    """By layer id and number of the seed."""

    def share(self, site: Site) -> float:
        """Return the gain share at a place for new units; at a path's, the mean of the layers it passes.

        Of units that read all positions at once, what is left behind `ACROSS_POSITIONS`.
        """
        if site.spans == 1:
            return self._shares.get(site.layer_id, UNKNOWN)
        row = self.row(site)
        return sum(self.share(pair) for pair in row) / len(row) if row else UNKNOWN

    def is_narrow(self, site: Site) -> bool:
        """Tell whether a layer lacks units: more than chance explains, and more than any wide layer seems to.

        By its share alone the inner layer of a residual block, wider than all that it reads and feeds, may
        seem to lack some: what the block adds to could follow more, whatever the block's own width.
        """
        return self.share(site) > self._not_for_width and not self._is_wide(site)

    def row(self, path: Site) -> Sequence[Site]:
        """Return the places for new units in the layers that a path goes past, in order.

        Empty where one of them is none.
        """
        found: list[Site] = []
        name = path.name
        while not found or name != path.widens:
            pair = self._pairs.get(name)
            if pair is None or len(found) == path.spans:
                return []
            found.append(pair)
            name = pair.widens or ""
        return found[::-1]

    def is_narrow_row(self, path: Site) -> bool:
        """Tell whether most of the layers that a path goes past are narrow, two at least."""
        row = self.row(path)
        narrow = sum(self.is_narrow(pair) for pair in row)
        return narrow >= 2 and 2 * narrow > len(row)

    def is_bottleneck(self, site: Site) -> bool:
        """Tell whether a layer is narrow and its row is not, or has another layer of twice its width.

        Twice as many channels at half of the positions are not twice the width: as much passes there.
        """
        row = self._narrow_rows.get(site.layer_id)
        if row is None or not self.is_narrow(site):
            return self.is_narrow(site)
        width, flow = 2 * self._width_of(site), 2 * self._flow_of(site) * (1 - COST_IS_ROUNDED)
        return width > 0 and any(
            width <= self._width_of(pair) and flow <= self._flow_of(pair) for pair in row
        )

    @cached_property
    def largest_share(self) -> float:
        """The largest gain share of all layers; `UNKNOWN` where there is none."""
        return max(self._shares.values(), default=UNKNOWN)

    def _is_wide(self, site: Site) -> bool:
        return self._width_of(site) > max(site.signature.inputs or 0, site.signature.features)

    @cached_property
    def _not_for_width(self) -> float:
        """The largest share of a layer that does not lack units."""
        wide = (pair for pair in self._pairs.values() if self._is_wide(pair))
        return max([0.0, *(self.share(pair) for pair in wide)])

    @cached_property
    def _shares(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for pair in self._pairs.values():
            share = gain_share(self.health.get((pair.layer_id, 0)))
            less = ACROSS_POSITIONS if pair.reads_all_positions else 0.0
            found[pair.layer_id] = max(UNKNOWN, share - less)
        return found

    @cached_property
    def _pairs(self) -> dict[str, Site]:
        """By the name of the layer that new units add to, which one layer alone feeds."""
        return {site.name: site for site in self.sites if site.widens and site.spans == 1}

    @cached_property
    def _width(self) -> dict[str, int]:
        plain = (site for site in self.sites if site.widens is None)
        return {site.name: site.signature.features * site.num_seeds for site in plain}

    def _width_of(self, site: Site) -> int:
        """Return the width of the layer that becomes wider; 0 where it is no site, so that nobody knows."""
        return self._width.get(site.widens or "", 0)

    def _flow_of(self, site: Site) -> float:
        """Return how much passes at the layer that becomes wider, at all positions, up to a factor."""
        return self._width_of(site) * self._cost.get(site.widens or "", 1.0)

    @cached_property
    def _cost(self) -> dict[str, float]:
        return {site.name: site.cost for site in self.sites if site.widens is None}

    @cached_property
    def _narrow_rows(self) -> dict[int, Sequence[Site]]:
        """The row of each place for new units in a narrow one, by the place's layer id."""
        paths = [site for site in self.sites if site.spans > 1 and self.is_narrow_row(site)]
        return {pair.layer_id: row for row in map(self.row, paths) for pair in row}
