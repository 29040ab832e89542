"""Draws a lineage: columns from the run to the keys, what was kept and what was not in different colours.

Needs matplotlib, the extra `esper-urza[pictures]`; imported only when a picture is asked for.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from esper.contracts import ConfigError, SeedState
from esper.urza.lineage import Kind, Lineage, Node

_COLUMNS: Sequence[tuple[str, tuple[Kind, ...]]] = (
    ("run", ("run",)),
    ("what it tried", ("outcome",)),
    ("kernels", ("kernel", "missing")),
    ("designs, verdicts, keys", ("blueprint", "report", "key")),
)
_KEPT, _NOT_KEPT = "#d6f0d8", "#f6dcdc"
_FILLS: Mapping[Kind, str] = {
    "run": "#dfe6f5",
    "outcome": _NOT_KEPT,
    "kernel": "#fdf3d3",
    "blueprint": "#ece6f4",
    "report": "#e4f1f4",
    "key": "#eeeeee",
    "missing": "#ffffff",
}
_LEGEND = (
    ("kept", _KEPT),
    ("not kept", _NOT_KEPT),
    ("kernel", _FILLS["kernel"]),
    ("design", _FILLS["blueprint"]),
    ("verdict", _FILLS["report"]),
    ("validator's key", _FILLS["key"]),
)
_WIDTH, _HEIGHT = 3.2, 0.52
"""Inches of a box."""
_GAP = 0.9
_ROW = 0.72
_MOST_CHARACTERS = 38


def draw(lineage: Lineage, path: Path) -> None:
    """Write a picture, SVG or PNG by the path's ending.

    Raises:
        ConfigError: if the ending is another, or matplotlib is not installed.

    """
    if path.suffix.lower() not in (".svg", ".png"):
        raise ConfigError(f"{path}: expected a name that ends in .svg or .png")
    try:
        matplotlib: Any = import_module("matplotlib")
        figures: Any = import_module("matplotlib.figure")
    except ImportError as error:
        raise ConfigError(
            "drawing needs matplotlib; install the extra esper-urza[pictures]"
        ) from error
    columns = _columns(lineage)
    rows = max(len(column) for _, column in columns)
    width = len(columns) * (_WIDTH + _GAP) - _GAP + 0.6
    height = rows * _ROW + 1.9
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "esper", "text.parse_math": False}
    ):
        figure = figures.Figure(figsize=(width, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.axis("off")
        places = _place(columns, rows)
        _draw_edges(axes, lineage, places)
        for heading, column in columns:
            for node in column:
                _draw_box(axes, node, places[node.node_id])
            if column:
                x = places[column[0].node_id][0]
                axes.text(x, 1.02, heading, fontsize=9, color="#555555", va="bottom")
        _draw_title_and_legend(axes, lineage, height)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=metadata)


def _columns(lineage: Lineage) -> list[tuple[str, list[Node]]]:
    found = [
        (heading, [node for node in lineage.nodes if node.kind in kinds])
        for heading, kinds in _COLUMNS
    ]
    return [(heading, column) for heading, column in found if column]


def _place(
    columns: Sequence[tuple[str, Sequence[Node]]], rows: int
) -> dict[str, tuple[float, float]]:
    """Return the left upper corners of all boxes; shorter columns stand in the middle."""
    places: dict[str, tuple[float, float]] = {}
    for number, (_, column) in enumerate(columns):
        x = 0.3 + number * (_WIDTH + _GAP)
        top = 1.15 + (rows - len(column)) * _ROW / 2
        for row, node in enumerate(column):
            places[node.node_id] = (x, top + row * _ROW)
    return places


def _draw_edges(axes: Any, lineage: Lineage, places: Mapping[str, tuple[float, float]]) -> None:
    for edge in lineage.edges:
        (x0, y0), (x1, y1) = places[edge.source], places[edge.target]
        begin, end = (x0 + _WIDTH, y0 + _HEIGHT / 2), (x1, y1 + _HEIGHT / 2)
        axes.annotate(
            "",
            xy=end,
            xytext=begin,
            arrowprops={
                "arrowstyle": "-|>",
                "color": "#9a9a9a",
                "linewidth": 0.8,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )


def _draw_box(axes: Any, node: Node, place: tuple[float, float]) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = place
    fill = _FILLS[node.kind]
    if node.facts.get("outcome") == SeedState.FOSSILIZED.value:
        fill = _KEPT
    style = "--" if node.kind == "missing" else "-"
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            _WIDTH,
            _HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=fill,
            edgecolor="#777777",
            linewidth=0.8,
            linestyle=style,
        )
    )
    axes.text(x + 0.1, y + 0.17, _short(node.label), fontsize=9, va="center", color="#111111")
    axes.text(
        x + 0.1, y + 0.37, _short(_second_line(node)), fontsize=7, va="center", color="#444444"
    )


def _second_line(node: Node) -> str:
    facts = node.facts
    if node.kind == "run":
        return f"{facts['kept']} of {facts['outcomes']} kept, {facts['parameters_added']:,} parameters added"
    if node.kind == "outcome":
        outcome = str(facts["outcome"]).lower().replace("_", " ")
        return f"{outcome}, epochs {facts['epochs']}, seed {facts['seed']}"
    if node.kind == "kernel":
        return f"{facts['built_for']}, {facts['parameters']:,} parameters"
    if node.kind == "blueprint":
        return str(facts["operators"])
    if node.kind == "report":
        return f"by {facts['validator']}"
    return node.node_id.partition(" ")[2][:24]


def _draw_title_and_legend(axes: Any, lineage: Lineage, height: float) -> None:
    from matplotlib.patches import Rectangle

    root = next(node for node in lineage.nodes if node.node_id == lineage.root)
    axes.text(
        0.3, 0.5, f"Lineage of {_short(root.label, 80)}", fontsize=14, weight="bold", va="center"
    )
    x, y = 0.3, height - 0.4
    for name, fill in _LEGEND:
        axes.add_patch(
            Rectangle((x, y), 0.18, 0.18, facecolor=fill, edgecolor="#777777", linewidth=0.6)
        )
        axes.text(x + 0.26, y + 0.09, name, fontsize=8, va="center", color="#333333")
        x += 0.5 + 0.085 * len(name)


def _short(text: str, most: int = _MOST_CHARACTERS) -> str:
    plain = "".join(each if each.isprintable() else "?" for each in text)
    return plain if len(plain) <= most else plain[: most - 1] + "…"
