"""Pictures of a run: what they must show, whatever the run did."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from run_factory import CULLED, record, write_run

from esper.contracts import SeedState
from esper.contracts.words import place
from esper.tamiyo.model_picture import draw_model, draw_narrow_model
from esper.tamiyo.pictures import draw_curve, draw_timeline
from esper.tamiyo.story import Story, read_story

ROLLED_BACK = (*CULLED[:4], SeedState.ROLLED_BACK)


def _story(folder: Path, life: tuple[SeedState, ...] = CULLED) -> Story:
    return read_story(write_run(folder, record(life=life)))


def test_a_graft_in_the_first_epoch_does_not_hide_behind_the_axis(tmp_path: Path) -> None:
    axes = draw_curve([_story(tmp_path)], "val_loss", "loss").axes[0]
    low, high = axes.get_xlim()
    assert low < 1 < 9 < high


@pytest.mark.parametrize("life", [CULLED, ROLLED_BACK])
def test_the_bar_of_a_seed_ends_where_it_was_removed(
    tmp_path: Path, life: tuple[SeedState, ...]
) -> None:
    figure = draw_timeline(_story(tmp_path, life))
    removed = 1 + next(n for n, state in enumerate(life) if state in (CULLED[6], ROLLED_BACK[4]))
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    full = [bar for bar in bars if to_rgba(bar.get_facecolor())[3] == 1]
    assert max(bar.get_x() + bar.get_width() for bar in full) == removed
    (mark,) = (each for each in figure.axes[0].collections if isinstance(each, LineCollection))
    assert mark.get_segments()[0][0][0] == removed


def test_a_name_gives_way_to_the_next_one_in_its_row(tmp_path: Path) -> None:
    story = _story(tmp_path)
    (first,) = story.attempts
    later = [each.model_copy(update={"epoch": each.epoch + 1}) for each in first.states]
    story.attempts.append(replace(first, states=later))
    earlier, last = (text.get_text() for text in draw_timeline(story).axes[0].texts)
    assert last == f"{first.name} (removed)"
    assert earlier.endswith("…")
    assert last.startswith(earlier[:-1])
    assert len(earlier) < len(last)


def test_a_narrow_picture_has_what_the_wide_one_has(tmp_path: Path) -> None:
    story = _story(tmp_path)
    (attempt,) = story.attempts
    wide, narrow = draw_model(story), draw_narrow_model(story)
    for layer in story.layers:
        assert any(f"layer {layer.name}\n{layer.kind}, " in said for said in _said(wide))
        assert any(f"layer {layer.name}\n{layer.kind}, " in said for said in _said(narrow))
    assert [said for said in _said(wide) if attempt.name in said]
    below = [said for said in _said(narrow) if attempt.name in said]
    assert ["removed in epoch" in said for said in below] == [True]
    assert draw_timeline(story, narrow=True).get_figwidth() < 5
    assert place(attempt.site) in _said(draw_timeline(story, narrow=True))


def _said(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_names_of_states_are_for_people(tmp_path: Path) -> None:
    (legend,) = draw_timeline(_story(tmp_path, ROLLED_BACK)).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert "rolled back" in names
    assert not [name for name in names if "_" in name]


def test_a_curve_without_a_finite_figure_says_so_over_the_runs_epochs(tmp_path: Path) -> None:
    folder = write_run(tmp_path, record(twin=False))
    summary = json.loads((folder / "summary.json").read_text())
    for point in summary["grown"]["curve"]:
        point |= {"val_loss": None, "train_loss": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    axes = draw_curve([read_story(folder)], "val_loss", "loss").axes[0]
    assert "no finite figure" in [text.get_text() for text in axes.texts]
    assert list(axes.get_yticks()) == []
    low, high = axes.get_xlim()
    assert (round(low), round(high)) == (1, 9)
