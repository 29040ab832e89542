"""Every policy by its name, and a log that is replayed to the same weights."""

from pathlib import Path

import pytest

from esper.testkit.runs import FinishedRun, Train

SHORT = ("--epochs", "24", "--no-twin")


@pytest.fixture(scope="module")
def grown(train: Train) -> FinishedRun:
    run = train("--policy", "gap", *SHORT)
    assert run.exit_code == 0, run.stderr
    return run


def test_a_script_replays_a_log_to_the_same_weights(train: Train, grown: FinishedRun) -> None:
    replayed = train("--policy", f"scripted:{grown.folder}", *SHORT)
    assert replayed.exit_code == 0, replayed.stderr
    assert replayed.summary["weights_sha256"] == grown.summary["weights_sha256"]
    plain = train("--policy", "never", *SHORT)
    assert plain.summary["weights_sha256"] != grown.summary["weights_sha256"]


def test_a_script_of_another_host_is_told_before_training(train: Train, grown: FinishedRun) -> None:
    other = train("--policy", f"scripted:{grown.folder}", "--host", "cnn")
    assert other.exit_code == 2
    assert "this host has no such place" in other.stderr


def test_growth_at_random_runs_to_its_end(train: Train) -> None:
    run = train("--policy", "random", *SHORT)
    assert run.exit_code == 0, run.stderr


def test_a_policy_of_ones_own_is_found_and_checked(train: Train, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from esper.tamiyo import Gap, Periodic\n"
        "def early(): return Gap(timing=Periodic(every_epochs=50))\n"
        "def nothing(): return 5\n",
        encoding="utf-8",
    )
    run = train("--policy", "mine:early", *SHORT, cwd=tmp_path)
    assert run.exit_code == 0, run.stderr
    wrong = train("--policy", "mine:nothing", *SHORT, cwd=tmp_path)
    assert wrong.exit_code == 2
    assert "policy 'mine:nothing' is an int" in wrong.stderr
