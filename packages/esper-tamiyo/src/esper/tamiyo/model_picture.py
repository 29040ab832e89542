"""Draws the model: its layers from the input down, coloured by what growth there promised, and what grew.

The colour is a layer's expressivity gain at its best, next to the largest of all: how much of what the loss
wanted new units there could have given. Where no layer can become wider it is the gap, what the layer's own
weights could not give (`esper.contracts.HealthSignal`).
"""

# matplotlib types its keyword arguments as unknown.
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from esper.contracts import SeedState, Site
from esper.tamiyo.pictures import GROWN, INK, STATE_COLOURS, style
from esper.tamiyo.story import Attempt, Story
from esper.tamiyo.summary import Layer

MAX_LAYERS = 40
"""Rows; of a deeper model those are shown that have a site, and it is said."""

_COLOURS = "YlOrRd"
_DARK = 0.6
"""From here on the colours are dark enough for white letters."""
_LAYER_WIDTH, _BLOCK_WIDTH, _GAP = 4.2, 2.5, 0.2
_HEIGHT = 0.7
_INDENT = 0.5
_MOST_LETTERS = 48
"""Of a layer's name."""
_MOST_GONE = 2
"""Of what went, so many are drawn at one place."""


def draw_model(story: Story) -> Figure:
    """Draw one row per layer with parameters, its blocks beside it: green ones stayed, red ones went.

    A block beside several layers reads what the first of them is given, or what all of them make, and adds
    to what the last one gives.
    """
    layers, _ = _shown(story)
    placed = place(story.attempts, story.sites, [layer.name for layer in layers])
    columns = 1 + max((each.column for each in placed), default=0)
    width = _LAYER_WIDTH + (_BLOCK_WIDTH + _GAP) * columns
    with _framed(story, width=width, num_rows=len(layers)) as (figure, axes, gains):
        for row, layer in enumerate(layers):
            _draw_layer(axes, row, layer, gains.get(layer.name))
        for each in placed:
            _draw_block(axes, each)
    return figure


def draw_narrow_model(story: Story) -> Figure:
    """Draw the same for a narrow screen: each block under the layer that it adds to."""
    layers, _ = _shown(story)
    placed = place(story.attempts, story.sites, [layer.name for layer in layers])
    num_rows = len(layers) + len(placed)
    with _framed(story, width=_LAYER_WIDTH, num_rows=num_rows) as (figure, axes, gains):
        rows = count()
        for number, layer in enumerate(layers):
            _draw_layer(axes, next(rows), layer, gains.get(layer.name))
            for each in placed:
                if each.last_row == number:
                    _draw_block_below(axes, next(rows), each)
    return figure


@contextmanager
def _framed(
    story: Story, *, width: float, num_rows: int
) -> Generator[tuple[Figure, Axes, Mapping[str, float]]]:
    """Give room for so many rows, and what layers promised; what the colours mean stands below."""
    gains, measure = promised(story)
    _, left_out = _shown(story)
    with style():
        figure = Figure(figsize=(max(4.0, 0.9 * width), 1.3 + 0.5 * num_rows))
        axes = figure.subplots()
        yield figure, axes, gains
        axes.set_xlim(-0.1, width + 0.1)
        axes.set_ylim(num_rows + (0.6 if left_out else 0), -0.6)
        axes.axis("off")
        axes.text(0, -0.25, "input", fontsize=8, va="center")
        if left_out:
            axes.text(
                0, num_rows + 0.3, f"and {left_out} layers without a place to grow", fontsize=8
            )
        if gains:
            scale = ScalarMappable(Normalize(0, 1), _COLOURS)
            bar = figure.colorbar(
                scale, ax=axes, location="bottom", shrink=0.4, aspect=30, fraction=0.05, pad=0.0
            )
            bar.set_label(f"expressivity {measure}, of the largest", fontsize=8)
            bar.ax.tick_params(labelsize=7)
        figure.set_layout_engine("constrained")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where one block is drawn."""

    attempt: Attempt
    first_row: int
    last_row: int
    column: int


def place(
    attempts: Sequence[Attempt], sites: Sequence[Site], layers: Sequence[str]
) -> list[Placed]:
    """Return where to draw what was tried: what stayed first, of what went the last ones."""
    by_id = {site.layer_id: site for site in sites}
    ordered = sorted(attempts, key=lambda attempt: not attempt.is_kept)
    went: dict[int, list[Attempt]] = {}
    for attempt in ordered:
        if not attempt.is_kept:
            went.setdefault(attempt.seed_id[0], []).append(attempt)
    placed: list[Placed] = []
    for attempt in ordered:
        rows = _rows(by_id[attempt.seed_id[0]], layers)
        gone = went.get(attempt.seed_id[0], [])
        if not rows or (not attempt.is_kept and attempt not in gone[-_MOST_GONE:]):
            continue
        taken = {p.column for p in placed if p.first_row <= rows[-1] and rows[0] <= p.last_row}
        column = next(number for number in count() if number not in taken)
        placed.append(Placed(attempt=attempt, first_row=rows[0], last_row=rows[-1], column=column))
    return placed


def _rows(site: Site, layers: Sequence[str]) -> list[int]:
    """Return the rows of the layers that a block at a site is beside."""
    own = [row for row, name in enumerate(layers) if f"{name}.".startswith(f"{site.name}.")]
    first = [row for row, name in enumerate(layers) if name == site.widens]
    return list(range(first[0], own[-1] + 1)) if first and own else first or own


def promised(story: Story) -> tuple[dict[str, float], str]:
    """Return each layer's largest gain as a share of the largest of all (0 to 1), and what it is of."""
    wider = {site.layer_id: site.widens for site in story.sites if site.widens is not None}
    if gains := _shares(wider, [(each.layer_id, each.expressivity_gain) for each in story.health]):
        return gains, "gain"
    own = {site.layer_id: site.name for site in story.sites}
    return _shares(own, [(each.layer_id, each.expressivity_gap) for each in story.health]), "gap"


def _shares(
    layers: Mapping[int, str], measured: Sequence[tuple[int, float | None]]
) -> dict[str, float]:
    largest: dict[str, float] = {}
    for layer_id, value in measured:
        name = layers.get(layer_id)
        if name is not None and value is not None and math.isfinite(value):
            largest[name] = max(largest.get(name, 0.0), value)
    most = max(largest.values(), default=0.0)
    return {name: value / most for name, value in largest.items()} if most > 0 else {}


def _shown(story: Story) -> tuple[Sequence[Layer], int]:
    if len(story.layers) <= MAX_LAYERS:
        return story.layers, 0
    places = {site.name for site in story.sites} | {site.widens for site in story.sites}
    shown = [layer for layer in story.layers if layer.name in places][:MAX_LAYERS]
    return shown, len(story.layers) - len(shown)


def _draw_layer(axes: Axes, row: int, layer: Layer, gain: float | None) -> None:
    colour = mpl.colormaps[_COLOURS](gain) if gain is not None else "none"
    _draw_box(axes, 0, row, _LAYER_WIDTH, edge=INK, face=colour)
    ink = INK  # on a coloured box the page's own ink may not read
    if gain is not None:
        ink = "#1c2024" if gain < _DARK else "white"
    axes.text(
        0.15,
        row + _HEIGHT / 2,
        f"layer {_shortened(layer.name)}\n{layer.kind}, {layer.parameters:,} parameters",
        fontsize=7,
        va="center",
        color=ink,
        clip_on=True,
    )


def _shortened(name: str) -> str:
    """Return a name that fits into a layer's box, without its middle if it is too long."""
    half = _MOST_LETTERS // 2
    return name if len(name) <= _MOST_LETTERS else f"{name[:half]}…{name[-half:]}"


def _draw_block(axes: Axes, placed: Placed) -> None:
    height = placed.last_row - placed.first_row + _HEIGHT
    left = _LAYER_WIDTH + _GAP + placed.column * (_BLOCK_WIDTH + _GAP)
    colour, face, ink = _colours_of(placed.attempt)
    _draw_box(axes, left, placed.first_row, _BLOCK_WIDTH, height=height, edge=colour, face=face)
    middle = placed.first_row + height / 2
    text = "\n".join(_words_on(placed))
    axes.text(left + 0.1, middle, text, fontsize=6.5, va="center", color=ink, clip_on=True)


def _draw_block_below(axes: Axes, row: int, placed: Placed) -> None:
    colour, face, ink = _colours_of(placed.attempt)
    _draw_box(axes, _INDENT, row, _LAYER_WIDTH - _INDENT, edge=colour, face=face)
    name, *more = _words_on(placed)
    text = f"{name}\n{', '.join(more)}"
    middle = row + _HEIGHT / 2
    axes.text(_INDENT + 0.1, middle, text, fontsize=7, va="center", color=ink, clip_on=True)


def _colours_of(attempt: Attempt) -> tuple[str, str, str]:
    """Return the colours of a block's edge, face and letters."""
    if attempt.is_over and not attempt.is_kept:
        colour = STATE_COLOURS[SeedState.CULLED]
        return colour, "none", colour
    return GROWN, GROWN, "white"


def _words_on(placed: Placed) -> list[str]:
    attempt = placed.attempt
    gone = attempt.is_over and not attempt.is_kept
    said = f"removed in epoch {attempt.ended + 1}" if gone else f"since epoch {attempt.begun + 1}"
    lines = [f"{attempt.name}, +{attempt.parameters:,}", said]
    if placed.last_row > placed.first_row:
        lines.insert(1, attempt.site)
    return lines


def _draw_box(
    axes: Axes,
    left: float,
    row: int,
    width: float,
    *,
    edge: str,
    face: object,
    height: float = _HEIGHT,
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, row + 0.02),
            width,
            height - 0.04,
            boxstyle="round,pad=0,rounding_size=0.08",
            edgecolor=edge,
            facecolor=face,
            linewidth=1.0,
        )
    )
