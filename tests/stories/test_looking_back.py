"""Looking back at real runs: the report made again, explanations, comparisons."""

import subprocess
from pathlib import Path

import pytest

from esper.contracts.words import place
from esper.tamiyo.story import read_story
from esper.testkit.runs import FinishedRun, Train, run_command


@pytest.fixture(scope="module")
def grown(train: Train) -> FinishedRun:
    """A run of the default policy in which something grew."""
    finished = train("--epochs", "20", "--no-twin", "--quiet")
    assert finished.exit_code == 0, finished.stderr
    return finished


def tamiyo(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_command("tamiyo", *arguments, cwd=cwd)


def test_the_story_is_that_of_the_run(grown: FinishedRun) -> None:
    story = read_story(grown.folder)
    summary = grown.summary
    assert story.damage is None
    assert len(story.packets) == 20
    assert len(story.attempts) == len(summary["adaptations"]) > 0
    assert story.kept
    for attempt, told in zip(story.attempts, summary["adaptations"], strict=True):
        assert attempt.name == told["blueprint"]
        assert list(attempt.seed_id) == told["seed_id"]
        assert attempt.decision is not None
    assert sum(layer.parameters for layer in story.layers) == story.parameters_before
    assert story.grown.curve[0].flops is not None
    # 64 x 6 + 6 x 6 + 6 x 10 weights, each multiplied and added once.
    assert story.grown.curve[0].flops == 2 * (64 * 6 + 6 * 6 + 6 * 10)
    assert story.grown.curve[-1].flops > story.grown.curve[0].flops  # pyright: ignore
    assert story.summary["environment"]["torch"]


def test_the_report_can_be_made_again(grown: FinishedRun) -> None:
    page = grown.folder / "report.html"
    first = page.read_text()
    page.unlink()
    done = tamiyo("report", grown.folder, cwd=grown.cwd)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(page.name) in done.stdout
    assert page.read_text() == first


def test_a_run_is_explained_in_words(grown: FinishedRun) -> None:
    done = tamiyo("explain", grown.folder, cwd=grown.cwd)
    assert (done.returncode, done.stderr) == (0, "")
    for attempt in read_story(grown.folder).attempts:
        assert f"{attempt.name} at {place(attempt.site)}" in done.stdout
        assert attempt.report is not None
        assert attempt.report.reason in done.stdout
    one = tamiyo("explain", grown.folder, "--seed", "0,0", cwd=grown.cwd)
    assert "Seed 0,0 at layer 1 (Linear)" in one.stdout
    bad = tamiyo("explain", grown.folder, "--seed", "x", cwd=grown.cwd)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "expected L,S" in bad.stderr


def test_runs_are_drawn_together(grown: FinishedRun, train: Train) -> None:
    plain = train("--epochs", "2", "--no-twin", "--quiet", "--policy", "never")
    done = tamiyo("compare", grown.folder, plain.folder, "--to", "both.html", cwd=grown.cwd)
    assert (done.returncode, done.stderr) == (0, "")
    assert plain.folder.name in (grown.cwd / "both.html").read_text()
    assert "policy" in done.stdout
    bad = tamiyo("compare", grown.folder, cwd=grown.cwd)
    assert bad.returncode == 2
    assert "expected 2 to 10" in bad.stderr


def test_a_folder_that_is_no_run_is_one_clear_message(grown: FinishedRun) -> None:
    for command in ("report", "explain"):
        done = tamiyo(command, "nowhere", cwd=grown.cwd)
        assert done.returncode == 2
        assert done.stderr == (
            f"tamiyo {command}: there is no run folder nowhere; give one, for example runs/ID\n"
        )
