"""Explanations and comparisons: what they say is what is on record."""

import math
from pathlib import Path

import pytest
from run_factory import KEPT, record, write_run

from esper.contracts import Action, ConfigError, NotFoundError
from esper.tamiyo import Figures
from esper.tamiyo.commands import report
from esper.tamiyo.comparing import compared, read_runs, render_comparison
from esper.tamiyo.diverging import Setback
from esper.tamiyo.explaining import explain, headline, parse_seed
from esper.tamiyo.report import write_report
from esper.tamiyo.story import read_story
from esper.tamiyo.ui import Ui

TEN_CLASSES = Figures(accuracy=0.1, loss=2.3)
"""Of the best constant answer."""


def test_an_explanation_says_when_where_against_what_and_how_it_ended(tmp_path: Path) -> None:
    said = explain(read_story(write_run(tmp_path, record())))
    assert "residual_mlp at layer 1 (seed 0,0), 7 parameters, epochs 1 to 7" in said
    assert "why then   growth is due\n" in said
    assert "of 2 possible blocks it had the highest score, 2.5 (gap 0.25, worth_so_far 1)" in said
    assert (
        "rather than layer 1 wider, into 3: wider scored 1.5 (gap 0.15)\n" in said
    )  # what is alike is said once
    assert "epoch    4 it was mixed in" in said
    assert "verdict    removed: it does not help: loss 0.6 with it" in said
    assert "blocks tried 1, kept 0, removed 1" in said
    assert "Why no more:\n  epochs 7 to 9: one block at a time" in said


def test_what_stayed_is_said_to_stay(tmp_path: Path) -> None:
    said = explain(read_story(write_run(tmp_path, record(life=KEPT))))
    assert "epoch    8 it stayed for good" in said
    assert "verdict    kept: it helps" in said


def test_a_seed_that_never_grew_is_told_what_went_before_it(tmp_path: Path) -> None:
    said = explain(read_story(write_run(tmp_path, record())), (1, 0))
    assert "Seed 1,0 at layer 1 wider, into 3 (Linear)." in said
    assert "Nothing was ever grown there." in said
    assert (
        "its best was wider with a score of 1.5 (gap 0.15, worth_so_far 1); layer 1 had 2.5" in said
    )


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


def test_a_verdict_behind_the_damage_is_not_said_to_be_missing(tmp_path: Path) -> None:
    folder = write_run(tmp_path, record())
    log = folder / "events.jsonl"
    lines = log.read_text().splitlines()
    cut = next(number for number, line in enumerate(lines) if '"field_report"' in line)
    log.write_text(
        "\n".join([*lines[:cut], lines[cut].replace("0.6", "0.5"), *lines[cut + 1 :]]) + "\n"
    )
    said = explain(read_story(folder))
    assert "verdict    not known: the record cannot be read up to its end" in said
    assert "could be judged" not in said


def test_lines_that_are_missing_at_the_end_are_damage_too(tmp_path: Path) -> None:
    folder = write_run(tmp_path, record())
    log = folder / "events.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:-1]) + "\n")
    assert "lines are missing at its end" in explain(read_story(folder))


def test_of_many_reasons_the_first_and_the_last_are_told(tmp_path: Path) -> None:
    story = read_story(write_run(tmp_path, record()))
    last = story.packets[-1]
    waits = [d for d in last.decisions if d.action is Action.WAIT]
    story.packets += [
        last.model_copy(
            update={
                "epoch": epoch,
                "decisions": [d.model_copy(update={"epoch": epoch, "reason": why}) for d in waits],
            }
        )
        for epoch, why in [(9, "a"), (10, "b"), (11, "c"), (12, "d")]
    ]
    told = explain(story).partition("Why no more:\n")[2].splitlines()
    assert told[1:] == ["  epoch 10: a", "  … 2 reasons between …", "  epoch 13: d"]


def test_a_missing_record_is_said_first_and_nothing_is_claimed_from_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path, record())
    (folder / "events.jsonl").unlink()
    story = read_story(folder)
    said = explain(story)
    assert said.splitlines()[2].startswith("The record is damaged")
    assert "events.jsonl is missing" in said
    for claim in ("Nothing was grown", "blocks tried"):
        assert claim not in said
    assert "Nothing was ever grown there" not in explain(story, (0, 0))


def test_a_report_of_a_missing_record_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, record())
    (folder / "events.jsonl").unlink()
    report(folder)
    out, err = capsys.readouterr()
    assert "report.html" in out
    assert err.startswith("tamiyo report: the record is damaged")
    page = (folder / "report.html").read_text()
    assert "Nothing was tried" not in page
    assert "0 kept" not in page


def test_losses_that_are_not_finite_are_told_as_such(tmp_path: Path) -> None:
    made = record()
    assert made.twin is not None
    made.twin.hold_out(Figures(loss=math.nan))
    assert headline(read_story(write_run(tmp_path / "1", made))).endswith(
        "answers 90.0% of the held-out data correctly. Its twin's loss is not finite."
    )
    made.grown.hold_out(Figures(loss=math.inf, accuracy=0.1))
    assert "loss is not finite on" in headline(read_story(write_run(tmp_path / "2", made)))


@pytest.mark.parametrize(
    ("figures", "constant", "is_said"),
    [
        (Figures(accuracy=0.1, loss=2.4), TEN_CLASSES, True),
        (Figures(accuracy=0.12, loss=2.4), TEN_CLASSES, False),
        (Figures(accuracy=0.1, loss=2.2), TEN_CLASSES, False),
        (Figures(accuracy=1.0, loss=0.1), Figures(accuracy=1.0, loss=0.0), False),
        (Figures(loss=1.5), Figures(loss=1.5), True),
        (Figures(loss=1.4), Figures(loss=1.5), False),
        (Figures(accuracy=0.1, loss=2.4), None, False),
    ],
)
def test_a_model_that_has_learned_nothing_is_told_as_such(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    figures: Figures,
    constant: Figures | None,
    is_said: bool,
) -> None:
    made = record()
    made.grown.hold_out(figures)
    made.best_constant = constant
    sentence = "does no better than always giving the same answer"
    assert (sentence in headline(read_story(write_run(tmp_path, made)))) is is_said
    with Ui() as ui:
        ui.result(made, tmp_path)
    assert (sentence in " ".join(capsys.readouterr().out.split())) is is_said


def test_setbacks_are_told(tmp_path: Path) -> None:
    made = record()
    first = Setback(epoch=6, train_loss=math.nan, val_loss=math.inf, back_to=4, rate_share=0.5)
    made.setbacks = [first]
    folder = write_run(tmp_path / "1", made)
    said = (
        "On the way the loss was not finite in epoch 7 (training nan, validation inf), and no block was to "
        "blame: the run went back to its state after epoch 4, and on from there at 0.5 of the learning rate."
    )
    assert said in explain(read_story(folder))
    assert first.told in write_report(folder)[0].read_text()
    made.setbacks = [first, first.model_copy(update={"rate_share": None, "batches": 3})]
    assert headline(read_story(write_run(tmp_path / "2", made))) == (
        "The run diverged: the loss was not finite in epoch 7 (training nan, validation inf), again after "
        "going back once; the model is as it was after epoch 4 and 3 mini-batches."
    )
