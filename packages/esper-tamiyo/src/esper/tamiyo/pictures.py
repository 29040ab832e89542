"""Draws a run as SVG: the curves of the grown model and its twin, and the life of every seed.

Epochs count from 1 here, as in everything that a person reads; the data counts from 0. Text and axes
are mid-grey on no background, which reads on a light page and on a dark one.
"""

# matplotlib types its keyword arguments as unknown.
# pyright: reportUnknownMemberType=false

import io
from collections.abc import Sequence
from typing import Any, override

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from esper.contracts import SeedEvent, SeedState
from esper.tamiyo.summary import RunRecord, Training

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

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.color": "#808890",
    "axes.labelcolor": "#808890",
    "axes.edgecolor": "#808890",
    "xtick.color": "#808890",
    "ytick.color": "#808890",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_curves(record: RunRecord) -> list[str]:
    """Return SVGs of validation accuracy and loss by epoch; marks where blocks were grafted."""
    return [
        _draw_curve(record, "val_accuracy", "validation accuracy"),
        _draw_curve(record, "val_loss", "validation loss (logarithmic)"),
    ]


class _Plain(LogFormatter):
    """Numbers without powers of ten, and as few of them as have room."""

    @override
    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""


def _draw_curve(record: RunRecord, name: str, title: str) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = figure.subplots()
        if record.twin is not None:
            _curve(axes, record.twin, name, TWIN, "twin, never grows", "--")
        _curve(axes, record.grown, name, GROWN, "grown", "-")
        _mark_grafts(axes, record.events)
        if name == "val_loss":
            axes.set_yscale("log")
            for axis_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                axis_formatter(_Plain(minor_thresholds=(2, 0.5)))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.legend(frameon=False, fontsize=8)
        return _svg(figure, f"{title} by epoch")


def draw_timeline(record: RunRecord) -> str:
    """Return an SVG with one row per site that was tried, coloured by the seed's state."""
    sites = list(dict.fromkeys(event.site for event in record.events))
    end_of_run = 1 + len(record.grown.curve)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 0.9 + 0.45 * max(1, len(sites))), layout="constrained")
        axes = figure.subplots()
        used: dict[SeedState, Any] = {}
        for row, site in enumerate(sites):
            events = [event for event in record.events if event.site == site]
            for event, following in zip(events, [*events[1:], None], strict=True):
                start = 1 + event.epoch
                end = 1 + following.epoch if following is not None else end_of_run
                colour = STATE_COLOURS.get(event.to_state)
                if colour is not None and end > start:
                    bar = axes.barh(row, end - start, left=start, color=colour)
                    used.setdefault(event.to_state, bar)
        axes.set_yticks(range(len(sites)), [f"layer {site}" for site in sites])
        axes.set_xlim(1, end_of_run)
        axes.invert_yaxis()
        axes.set_xlabel("epoch")
        figure.legend(
            list(used.values()),
            [state.value.lower().replace("_", " ") for state in used],
            loc="outside right upper",
            frameon=False,
            fontsize=8,
        )
        return _svg(figure, "The life of each seed by epoch")


def _curve(axes: Axes, training: Training, name: str, colour: str, label: str, style: str) -> None:
    epochs = [1 + point.epoch for point in training.curve]
    axes.plot(
        epochs,
        [getattr(point, name) for point in training.curve],
        style,
        color=colour,
        label=label,
        linewidth=1.6,
    )


def _mark_grafts(axes: Axes, events: Sequence[SeedEvent]) -> None:
    for event in events:
        if event.to_state is SeedState.GRAFTING:
            axes.axvline(1 + event.epoch, color=STATE_COLOURS[SeedState.GRAFTING], linewidth=0.8)


def _svg(figure: Figure, title: str) -> str:
    """Render without XML prologue, so that it can stand inside a page; a fixed salt keeps ids stable."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "esper"}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Title": title}
        )
    text = buffer.getvalue()
    return text[text.index("<svg") :]
