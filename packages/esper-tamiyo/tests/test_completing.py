"""What shells offer."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.tamiyo import completing
from esper.tamiyo.cli import app
from esper.tamiyo.commands import app as tamiyo
from esper.tamiyo.hosts import COLLECTIONS, HOSTS
from esper.tamiyo.run import POLICIES
from esper.tamiyo.tasks import TASKS

RUNNER = CliRunner()


def test_the_names_that_are_offered_are_those_that_there_are() -> None:
    assert tuple(TASKS) == completing.TASKS
    assert tuple(HOSTS) == completing.HOSTS
    assert tuple(f"{name}:" for name in COLLECTIONS) == completing.COLLECTIONS
    assert tuple(POLICIES) == completing.POLICIES


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("train --task fash", ["fashion-mnist"]),
        ("train --host t", ["transformer", "torchvision:", "timm:"]),
        ("train --policy ", ["gap", "heuristic", "random", "never", "scripted:"]),
        ("train --policy scripted:runs/2", ["scripted:runs/2-b", "scripted:runs/2-a"]),
        ("train --precision bf", ["bfloat16"]),
        ("tamiyo run --track m", ["mlflow"]),
        ("tamiyo resume ", ["runs/2-b", "runs/2-a", "runs/1"]),
        ("tamiyo explain runs/2-", ["runs/2-b", "runs/2-a"]),
        ("tamiyo compare runs/1 other/", ["other/3"]),
        ("tamiyo report nowhere/", []),
    ],
)
def test_names_and_run_folders_are_completed(
    typed: str, offered: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/1", "runs/2-a", "runs/.2-b.partial", "other/3"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "runs" / "2-empty").mkdir()
    program = typed.split()[0]
    asked = {
        f"_{program.upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
    }
    chosen = {"train": app, "tamiyo": tamiyo}[program]
    shown = RUNNER.invoke(chosen, [], prog_name=program, env=asked)
    assert shown.output.split() == offered
