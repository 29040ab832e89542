"""Explanations and comparisons: what they say is what is on record."""

from pathlib import Path

import pytest
from run_factory import KEPT, record, write_run

from esper.contracts import ConfigError, NotFoundError
from esper.tamiyo.comparing import compared, read_runs, render_comparison
from esper.tamiyo.explaining import explain, parse_seed
from esper.tamiyo.story import read_story


def test_an_explanation_says_when_where_against_what_and_how_it_ended(tmp_path: Path) -> None:
    said = explain(read_story(write_run(tmp_path, record())))
    assert "residual_mlp at layer 1 (seed 0,0), 7 parameters, epochs 1 to 8" in said
    assert "why then   growth is due\n" in said
    assert "of 2 possible blocks it had the highest score, 2.5 (gap 0.25)" in said
    assert "rather than layer 1 wider, into 3: wider scored 1.5 (gap 0.15)" in said
    assert "epoch    4 it was mixed in" in said
    assert "verdict    removed: it does not help: loss 0.6 with it" in said
    assert "blocks tried 1, kept 0, removed 1" in said
    assert "Why no more:\n  epochs 8 to 9: one block at a time" in said


def test_what_stayed_is_said_to_stay(tmp_path: Path) -> None:
    said = explain(read_story(write_run(tmp_path, record(life=KEPT))))
    assert "epoch    8 it stayed for good" in said
    assert "verdict    kept: it helps" in said


def test_a_seed_that_never_grew_is_told_what_went_before_it(tmp_path: Path) -> None:
    said = explain(read_story(write_run(tmp_path, record())), (1, 0))
    assert "Seed 1,0 at layer 1 wider, into 3 (Linear)." in said
    assert "Nothing was ever grown there." in said
    assert "its best was wider with a score of 1.5 (gap 0.15); layer 1 had 2.5" in said


def test_a_run_that_grew_nothing_says_why_not(tmp_path: Path) -> None:
    bare = record()
    bare.events, bare.field_reports = [], []
    said = explain(read_story(write_run(tmp_path, bare)))
    assert "Nothing was grown.\n  epochs 1 to 9: one block at a time" in said


def test_a_seed_that_is_not_there_is_explained(tmp_path: Path) -> None:
    story = read_story(write_run(tmp_path, record()))
    with pytest.raises(NotFoundError, match=r"there is no seed 4,0; there are 0,0, 1,0"):
        explain(story, (4, 0))


@pytest.mark.parametrize("text", ["", "1", "1,", ",1", "a,b", "1,2,3", "-1,0"])
def test_a_seed_is_named_by_two_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="expected L,S"):
        parse_seed(text)
    assert parse_seed("12, 3") == (12, 3)


def _two(tmp_path: Path) -> list[Path]:
    one, other = record(), record(life=KEPT)
    other.run_id, other.config = "run-2", other.config.model_copy(update={"seed": 5})
    return [write_run(tmp_path / "1", one), write_run(tmp_path / "2", other)]


def test_a_comparison_says_what_differs_and_draws_runs_together(tmp_path: Path) -> None:
    stories = read_runs(_two(tmp_path))
    first, second = compared(stories)
    assert (first.setting, second.setting) == ("seed 0", "seed 5")
    assert (first.kept, first.removed, second.kept, second.removed) == (0, 1, 1, 0)
    page = render_comparison(stories)
    assert page.count("<svg") == 3
    assert page.count(">run-2<") >= 3
    assert "cannot be compared" not in page


def test_runs_of_different_tasks_are_said_not_to_compare(tmp_path: Path) -> None:
    folders = _two(tmp_path)
    other = record(task="mnist1d")
    other.run_id = "run-3"
    stories = read_runs([folders[0], write_run(tmp_path / "3", other)])
    assert "different tasks (digits, mnist1d)" in render_comparison(stories)


def test_one_run_or_the_same_one_twice_cannot_be_compared(tmp_path: Path) -> None:
    folders = _two(tmp_path)
    with pytest.raises(ConfigError, match="1 run; expected 2 to 10"):
        read_runs(folders[:1])
    with pytest.raises(ConfigError, match="run run-1 is named twice"):
        read_runs([folders[0], folders[0]])
