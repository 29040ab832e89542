"""The picture: every run of every arm at its best learning rate, one panel for each problem."""

# torch and matplotlib leave parts of their types open:
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

GROWS = "#1b7837"
STAYS = "#555555"


def draw(
    panels: Mapping[str, Mapping[str, Sequence[float]]], units: Mapping[str, str], path: Path
) -> None:
    """Draw panels of values by arm into an SVG or PNG file; the first arm is the one that is defended."""
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    for number, (name, arms) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        names = list(arms)
        for row, arm in enumerate(names):
            values = arms[arm]
            color = GROWS if row == 0 else STAYS
            axes.plot(values, [row] * len(values), "o", color=color, alpha=0.45, markersize=6)
            axes.plot([mean(values)], [row], "|", color=color, markersize=22, markeredgewidth=2)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(units[name])
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
