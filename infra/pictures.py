"""Makes `docs/pictures` from the code: the life of a seed from its table, and what a real default run left.

    uv run python infra/pictures.py [--check]

Takes about ten seconds. Only the first picture is the same on every machine: `--check` fails where it is not
what the code says, and writes nothing.
"""

# matplotlib types its keyword arguments as unknown.
# pyright: reportUnknownMemberType=false

import argparse
import sys
import tempfile
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from esper.contracts import LIFECYCLE, SeedState
from esper.tamiyo import RunConfig
from esper.tamiyo.pictures import INK, STATE_COLOURS, style, to_svg
from esper.tamiyo.report import draw
from esper.tamiyo.run import run
from esper.tamiyo.story import read_story
from esper.tamiyo.ui import Ui

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
KEPT = {"accuracy", "seeds", "model"}
"""What is shown of the run's pictures."""

_S = SeedState
WAY = (
    _S.DORMANT,
    _S.GERMINATED,
    _S.LOADING,
    _S.TRAINING,
    _S.GRAFTING,
    _S.STABILIZATION,
    _S.EVALUATING,
    _S.FINE_TUNING,
    _S.FOSSILIZED,
)
"""A seed's way where all goes well, left to right."""

ENDS = (_S.CANCELLED, _S.CULLED, _S.ROLLED_BACK)
SEEN = {"nothing": 0.0, "ramp": 0.5, "all": 1.0}


def draw_lifecycle() -> Figure:
    """Draw the lifecycle table: the way to the right, the ways out below, and how much the host sees."""
    with style():
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        for column, state in enumerate(WAY):
            _box(above, column, 0.0, state)
            if column and state in LIFECYCLE[WAY[column - 1]].next:
                _arrow(above, (column - 0.58, 0.0), (column - 0.44, 0.0))
        for row, end in enumerate(ENDS, start=1):
            sources = [column for column, state in enumerate(WAY) if end in LIFECYCLE[state].next]
            _box(above, 0.0, -0.9 * row, end)
            for column in sources:
                above.plot(
                    [column, column], [-0.35, -0.9 * row], color=INK, linewidth=0.6, alpha=0.6
                )
            last = max(sources)
            above.plot([0.44, last], [-0.9 * row] * 2, color=STATE_COLOURS[end], linewidth=1.4)
            what = LIFECYCLE[end].happens
            above.text(len(WAY) - 1.9, -0.9 * row, what, fontsize=7.5, va="center")
        above.set_ylim(-3.2, 0.5)
        above.set_xlim(-0.55, len(WAY) - 0.4)
        above.axis("off")
        _draw_seen(below)
        return figure


def _box(axes: Axes, x: float, y: float, state: SeedState) -> None:
    colour = STATE_COLOURS.get(state, INK)
    axes.add_patch(
        FancyBboxPatch(
            (x - 0.42, y - 0.3),
            0.84,
            0.6,
            boxstyle="round,pad=0,rounding_size=0.08",
            edgecolor=colour,
            facecolor="none",
            linewidth=1.6,
        )
    )
    axes.text(x, y, state.value.replace("_", "\n"), fontsize=7, ha="center", va="center")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": INK, "lw": 1.2})


def _draw_seen(axes: Axes) -> None:
    """Draw alpha by state: how much of the block is in the host's features."""
    xs: list[float] = []
    ys: list[float] = []
    for column, state in enumerate(WAY):
        seen = LIFECYCLE[state].host_sees
        first, last = (0.0, 1.0) if seen == "ramp" else (SEEN[seen], SEEN[seen])
        xs += [column - 0.5, column + 0.5]
        ys += [first, last]
    axes.fill_between(xs, ys, color=STATE_COLOURS[_S.FOSSILIZED], alpha=0.35, linewidth=0)
    axes.plot(xs, ys, color=STATE_COLOURS[_S.FOSSILIZED])
    axes.set_ylim(0, 1.15)
    axes.set_yticks([0, 1])
    axes.set_xticks([])
    axes.set_ylabel("alpha")
    axes.set_title("what the host sees of the block", fontsize=8, loc="left")


def lifecycle_svg() -> str:
    """Return the first picture."""
    return to_svg(draw_lifecycle(), "the life of a seed") + "\n"


def main() -> None:
    """Write the pictures, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale")
    if parser.parse_args().check:
        if (FOLDER / "lifecycle.svg").read_text(encoding="utf-8") != lifecycle_svg():
            sys.exit("docs/pictures is not what the code says; run infra/pictures.py")
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "lifecycle.svg").write_text(lifecycle_svg(), encoding="utf-8")
    with tempfile.TemporaryDirectory() as out:
        run(RunConfig(out=Path(out)), Ui(quiet=True))
        (folder,) = Path(out).iterdir()
        for name, (figure, title) in draw(read_story(folder)).items():
            if name in KEPT:
                (FOLDER / f"run-{name}.svg").write_text(to_svg(figure, title) + "\n", "utf-8")
    print(f"made {', '.join(sorted(path.name for path in FOLDER.iterdir()))}")


if __name__ == "__main__":
    main()
