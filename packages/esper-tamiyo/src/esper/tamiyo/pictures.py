"""Draws a run: curves, sizes, the life of every seed. `model_picture` draws the model itself.

Every picture is a matplotlib figure, as SVG inside a page and as PNG beside it. Epochs count from 1 here, as
in everything that a person reads; the data counts from 0. Text and axes are mid-grey on no background, which
reads on a light page and on a dark one.
"""

# matplotlib types its keyword arguments as unknown.
# pyright: reportUnknownMemberType=false

import io
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, override

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from esper.contracts import SeedState
from esper.contracts.words import place
from esper.tamiyo.story import Attempt, Story
from esper.tamiyo.summary import Point, Training

GROWN, TWIN = "#2e9e5b", "#8a8f98"
"""Green for what grew, grey for what did not; distinguishable in print by the dashed twin."""

STATE_COLOURS: dict[SeedState, str] = {
    SeedState.GERMINATED: "#c9b458",
    SeedState.LOADING: "#c9b458",
    SeedState.TRAINING: "#4c8fd6",
    SeedState.GRAFTING: "#8c6bd1",
    SeedState.STABILIZATION: "#b78be0",
    SeedState.EVALUATING: "#e08bc0",
    SeedState.FINE_TUNING: "#7fc97f",
    SeedState.FOSSILIZED: "#2e9e5b",
    SeedState.CULLED: "#d9534f",
    SeedState.CANCELLED: "#d9534f",
    SeedState.ROLLED_BACK: "#a02c28",
}
"""DORMANT is left empty."""

STATE_NAMES = {SeedState.FINE_TUNING: "fine-tuning", SeedState.FOSSILIZED: "kept"}
"""What a person calls them, where that is not the state's own name."""

GONE = (SeedState.CULLED, SeedState.CANCELLED, SeedState.ROLLED_BACK)
"""Behind them no block is there any more: the place rests, some epochs or for good."""

INK = "#808890"

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

_BAR = 0.72
"""Height of a seed's bar, of the row's."""

_LETTERS = 130
"""So many of a name fit along the whole axis of epochs."""

_LEGEND = 11
"""States side by side in the legend of a wide picture: all of them."""

_FAINT = 0.15
"""Opacity of a place's rest."""

_MARGIN = 0.02
"""Of the epochs' width, at both ends: what is drawn upon an axis cannot be seen."""

PNG_DPI = 160


@contextmanager
def style() -> Generator[None]:
    """Draw in the house's style within the context."""
    with mpl.rc_context(_STYLE):
        yield


def draw_curve(stories: Sequence[Story], name: str, title: str) -> Figure:
    """Draw a figure of validation by epoch; marks where blocks were grafted if there is but one run.

    Args:
        stories: the runs, one colour for each if there are several.
        name: of a field of `Point`.
        title: what it is.

    """
    with style():
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = figure.subplots()
        if len(stories) == 1:
            (story,) = stories
            if story.twin is not None:
                _curve(axes, story.twin, name, TWIN, "twin, never grows", "--")
            _curve(axes, story.grown, name, GROWN, "grown", "-")
            _mark_grafts(axes, story.attempts)
        else:
            for number, story in enumerate(stories):
                _curve(axes, story.grown, name, f"C{number}", story.run_id, "-")
        if name == "val_loss" and axes.get_ylim()[0] > 0:
            axes.set_yscale("log")
            for axis_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                axis_formatter(_Plain(minor_thresholds=(2, 0.5)))
        axes.set_title(title, fontsize=10)
        if not any(
            _is_finite(getattr(point, name)) for story in stories for point in _points(story)
        ):
            axes.set_yticks([])
            axes.text(0.5, 0.5, "no finite figure", transform=axes.transAxes, ha="center")
        _finish(axes, stories)
        return figure


class _Plain(LogFormatter):
    """Numbers without powers of ten, and as few of them as have room."""

    @override
    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""


def draw_sizes(stories: Sequence[Story], name: str, title: str) -> Figure:
    """Draw parameters or FLOPs by epoch, as steps: a model grows from one epoch to the next."""
    with style():
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        axes = figure.subplots()
        for number, story in enumerate(stories):
            points = [p for p in story.grown.curve if getattr(p, name) is not None]
            several = len(stories) > 1
            axes.step(
                [1 + point.epoch for point in points],
                [getattr(point, name) for point in points],
                where="mid",
                color=f"C{number}" if several else GROWN,
                label=story.run_id if several else "grown",
                linewidth=1.6,
            )
            twin = story.twin
            if twin is not None and not several and twin.curve:
                _curve(axes, twin, name, TWIN, "twin, never grows", "--")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_title(title, fontsize=10)
        _finish(axes, stories)
        return figure


def draw_timeline(story: Story, *, narrow: bool = False) -> Figure:
    """Draw one row per place that was tried, coloured by the seed's state, with alpha as a line.

    For a `narrow` screen the places stand within, below their bars.
    """
    width, columns, letters = (4.0, 3, _LETTERS // 2) if narrow else (9.0, _LEGEND, _LETTERS)
    apart = 1.4 if narrow else 1.0
    sites = list(dict.fromkeys(attempt.site for attempt in story.attempts))
    end_of_run = 1 + len(story.grown.curve)
    with style():
        figure = Figure(
            figsize=(width, 1.1 + 0.5 * apart * max(1, len(sites))),
            layout="constrained",
        )
        axes = figure.subplots()
        used: dict[SeedState, Any] = {}
        for attempt in story.attempts:
            row = apart * sites.index(attempt.site)
            _draw_life(axes, row, attempt, end_of_run, used)
            later = [
                other.begun
                for other in story.attempts
                if other.site == attempt.site and other.begun > attempt.begun
            ]
            epochs = min(later, default=end_of_run - 1) - attempt.begun
            _name(axes, row, attempt, letters=letters * epochs // max(1, end_of_run - 1))
            _draw_alpha(axes, row, attempt, story)
        if narrow:
            axes.set_yticks([])
            for row, site in enumerate(sites):
                below = apart * row + _BAR / 2 + 0.04
                axes.text(1, below, place(site), fontsize=7, va="top")
        else:
            axes.set_yticks(range(len(sites)), [place(site) for site in sites])
        axes.set_ylim(apart * len(sites) - 0.5, -0.8)
        axes.set_xlim(1, max(2, end_of_run))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        figure.legend(
            list(used.values()),
            [STATE_NAMES.get(s, s.value.lower().replace("_", " ")) for s in used],
            loc="outside upper center",
            ncols=max(1, min(columns, len(used))),
            frameon=False,
            fontsize=8,
        )
        return figure


def _draw_life(
    axes: Axes, row: float, attempt: Attempt, end_of_run: int, used: dict[SeedState, Any]
) -> None:
    changes = attempt.states
    for change, following in zip(changes, [*changes[1:], None], strict=True):
        start = 1 + change.epoch
        end = 1 + following.epoch if following is not None else end_of_run
        colour = STATE_COLOURS.get(change.to_state)
        if colour is None:
            continue
        is_gone = change.to_state in GONE
        if is_gone or end > start:
            opacity = _FAINT if is_gone else 1.0
            shown: Any = axes.barh(
                row, end - start, left=start, height=_BAR, color=(colour, opacity), linewidth=0
            )
            if is_gone:
                shown = axes.vlines(start, row - _BAR / 2, row + _BAR / 2, color=colour, lw=3)
            used.setdefault(change.to_state, shown)


def _name(axes: Axes, row: float, attempt: Attempt, *, letters: int) -> None:
    """Write above its bar what was tried, in so many letters at most: the next name stands beside it."""
    gone = attempt.is_over and not attempt.is_kept
    name = f"{attempt.name}{' (removed)' if gone else ''}"
    axes.text(
        1.15 + attempt.begun,
        row - _BAR / 2 - 0.04,
        name if len(name) <= letters else f"{name[: max(0, letters - 1)]}…",
        fontsize=6.5,
        va="bottom",
        clip_on=True,
    )


def _draw_alpha(axes: Axes, row: float, attempt: Attempt, story: Story) -> None:
    """Draw how much of the block was mixed in, from the bottom of its bar (0) to the top (1)."""
    last = attempt.ended if attempt.is_over and not attempt.is_kept else len(story.packets)
    points = [
        (1 + packet.epoch, seed.alpha)
        for packet in story.packets
        for seed in packet.seeds
        if seed.seed_id == attempt.seed_id and attempt.begun <= packet.epoch <= last
    ]
    if points:
        epochs, alphas = zip(*points, strict=True)
        heights = [row + _BAR * (0.5 - alpha) for alpha in alphas]
        axes.plot(epochs, heights, color="white", linewidth=1.1, solid_capstyle="butt")


def _curve(axes: Axes, training: Training, name: str, colour: str, label: str, style: str) -> None:
    points = [point for point in training.curve if getattr(point, name) is not None]
    axes.plot(
        [1 + point.epoch for point in points],
        [getattr(point, name) for point in points],
        style,
        color=colour,
        label=label,
        linewidth=1.6,
    )


def _mark_grafts(axes: Axes, attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        for change in attempt.states:
            if change.to_state is SeedState.GRAFTING:
                colour = STATE_COLOURS[SeedState.GRAFTING]
                axes.axvline(1 + change.epoch, color=colour, linewidth=0.8)


def _points(story: Story) -> list[Point]:
    """Return all epochs of a run, its twin's too."""
    return [*story.grown.curve, *(story.twin.curve if story.twin is not None else ())]


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _finish(axes: Axes, stories: Sequence[Story]) -> None:
    """Give a picture over epochs its axis, with room for what is at its ends, and its legend."""
    axes.set_xlabel("epoch")
    last = max((1 + point.epoch for story in stories for point in _points(story)), default=1)
    margin = _MARGIN * max(1, last - 1)
    axes.set_xlim(1 - margin, max(2, last) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def to_svg(figure: Figure, title: str) -> str:
    """Render without XML prologue, so that it can stand inside a page; a fixed salt keeps ids stable."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": f"esper {title}"}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Title": title}
        )
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def save_png(figure: Figure, path: Path) -> None:
    """Write a picture on white, for slides and mails."""
    with style():
        figure.savefig(
            path, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None}
        )
