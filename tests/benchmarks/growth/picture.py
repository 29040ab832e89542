"""The picture: accuracy or loss over parameters, each arm at its best learning rate, a panel per problem."""

# torch and matplotlib leave parts of their types open:
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from pathlib import Path

from arms import DEFAULT, GROMO, GROWS, SCRATCH, SMALL, STATIC
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from tables import Table

GREEN, BLUE, GREY = "#1b7837", "#2166ac", "#777777"

MARKERS = dict(zip((*GROWS, *SCRATCH, GROMO), "*sDv^<>Pp", strict=True))


def draw(tables: Sequence[Table], path: Path) -> None:
    """Draw into an SVG or PNG file: static nets as a line, what grew and its like from scratch as marks."""
    tables = [table for table in tables if table.problem.statics]
    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows), layout="constrained")
    for number, table in enumerate(tables):
        axes = figure.add_subplot(rows, columns, number + 1)
        statics = [SMALL, *(arm for arm in table.arms if arm.startswith(STATIC))]
        sizes = [table.mean(arm, "parameters") for arm in statics]
        axes.plot(
            sizes, [table.mean(arm) for arm in statics], "o-", color=GREY, label="static nets"
        )
        for arm, values in zip(statics, map(table.values, statics), strict=True):
            axes.plot(
                [table.mean(arm, "parameters")] * len(values), values, ".", color=GREY, alpha=0.3
            )
        for arm in [arm for arm in table.arms if arm in MARKERS]:
            color = GREEN if arm == DEFAULT else BLUE if arm in {*GROWS, GROMO} else GREY
            axes.plot(
                [table.mean(arm, "parameters")],
                [table.mean(arm)],
                MARKERS[arm],
                color=color,
                markersize=13 if arm == DEFAULT else 7,
                fillstyle="full" if arm in {*GROWS, GROMO} else "none",
                label=arm,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(table.problem.name, fontsize=10)
        axes.set_xlabel("parameters at the end; equal training FLOPs")
        axes.set_ylabel(table.unit)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    known = {
        label: line
        for axes in figure.axes
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        known.values(),
        known.keys(),
        loc="outside lower center",
        ncols=min(5, len(known)),
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path)
