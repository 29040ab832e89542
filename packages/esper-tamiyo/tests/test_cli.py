"""The command line's manners; runs that need the other packages are in the workspace's tests."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.tamiyo.cli import app

RUNNER = CliRunner()


def test_help_teaches_with_examples_and_defaults() -> None:
    shown = RUNNER.invoke(app, ["--help"], env={"COLUMNS": "120"}).output
    assert "Examples:" in shown
    assert "[default: digits]" in shown
    for option in (
        "--task",
        "--host",
        "--epochs",
        "--seed",
        "--policy",
        "--bus",
        "--library",
        "--artifacts",
        "--out",
        "--config",
        "--no-twin",
        "--track",
        "--quiet",
        "--debug",
    ):
        assert option in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--policy", "oracle"],
            "unknown policy 'oracle'; there are gap, heuristic, random, never",
        ),
        (["--task", "digit"], "unknown task 'digit'; there are digits, mnist1d, text, table"),
        (["--host", "vgg"], "unknown host 'vgg'; there are mlp, cnn, resnet, transformer"),
        (["--epochs", "0"], "epochs: Input should be greater than or equal to 1"),
        (["--config", "missing.yaml"], "missing.yaml does not exist"),
        (["--library", "sqlite:///x.db"], "train: library is given without artifacts"),
        (["--bus", "redis://[::1"], "bus: the URL is malformed"),
        (["--track", "wandb"], "track: unknown tracker 'wandb'; there are tensorboard, mlflow"),
        (["--threads", "99999"], "threads: Input should be less than or equal to 1024"),
    ],
)
def test_bad_input_is_one_clear_message_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("train: ") == 1
    assert list(tmp_path.iterdir()) == []
