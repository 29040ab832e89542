"""A run that is stopped or killed goes on to the very weights that it would have come to.

ESPER_KILLS=50 uv run pytest tests/stories/test_resume.py kills at 50 random moments instead of 4.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from esper.contracts import read_chain
from esper.testkit.runs import COMMAND, FinishedRun, Train, run_command, start_until

NUM_KILLS = int(os.environ.get("ESPER_KILLS", "4"))

RESUME = (
    *(sys.executable, "-W", "error", "-c"),
    "from esper.tamiyo.entry import tamiyo; tamiyo()",
    "resume",
)

HOST = """
from torch import nn

def build(task):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(task.num_features, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, task.num_classes),
    )
"""
"""Draws from the random streams and keeps statistics: both must go on as they were."""

OPTIONS = (
    *("--host", "dropout:build", "--epochs", "30", "--no-twin", "--checkpoint-seconds", "0"),
    *("--schedule", "cosine", "--accumulate", "2", "--ema", "0.9"),
)


@pytest.fixture(scope="module")
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "dropout.py").write_text(HOST)
    run = train(*OPTIONS, cwd=folder)
    assert run.exit_code == 0, run.stderr
    assert run.summary["adaptations"]
    assert run.summary["averaged_sha256"] not in (None, run.summary["weights_sha256"])
    assert (run.folder / "ema" / "model.safetensors").is_file()
    assert not (run.folder / "checkpoints").exists()
    return run


def _begin(cwd: Path, *options: str) -> "subprocess.Popen[str]":
    (cwd / "dropout.py").write_text(HOST)
    return subprocess.Popen(
        [*COMMAND, *(options or OPTIONS)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def _wait_for_checkpoints(cwd: Path) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for manifest in cwd.glob("runs/.*/checkpoints/*/checkpoint.json"):
            return manifest.parents[2]
        time.sleep(0.02)
    pytest.fail("no checkpoint was written within 60 s")


def _wait_for_outcomes(cwd: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for memory in cwd.glob("runs/.*/checkpoints/*/step-*/controller.json"):
            with suppress(FileNotFoundError):  # the next checkpoint took its place
                if json.loads(memory.read_text())["field_reports"]:
                    return
        time.sleep(0.02)
    pytest.fail("no block came to its end within 60 s")


def _resume(path: Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return run_command("tamiyo", "resume", path, cwd=cwd)


def _summary(cwd: Path) -> dict[str, Any]:
    (path,) = cwd.glob("runs/*/summary.json")
    return json.loads(path.read_text())


def _check_same(cwd: Path, undisturbed: FinishedRun) -> None:
    """Check that the run in `cwd` came to the same model by the same way, and that its record holds."""
    mine, expected = _summary(cwd), undisturbed.summary
    assert mine["weights_sha256"] == expected["weights_sha256"]
    assert mine["averaged_sha256"] == expected["averaged_sha256"]
    assert mine["grown"] == expected["grown"]
    assert mine["adaptations"] == expected["adaptations"]
    (log,) = cwd.glob("runs/*/events.jsonl")
    events = list(read_chain(log, head=mine["events_head"]))
    epochs = [event.data["epoch"] for event in events if event.kind == "epoch"]
    assert epochs == list(range(30))


@pytest.mark.parametrize("number", range(NUM_KILLS))
def test_a_killed_run_goes_on_to_the_same_weights(
    number: int, undisturbed: FinishedRun, tmp_path: Path
) -> None:
    with _begin(tmp_path) as process:
        run_folder = _wait_for_checkpoints(tmp_path)
        time.sleep(random.Random(number).uniform(0.0, 1.6))
        process.kill()
    if not run_folder.exists():  # it was done before it was killed
        _check_same(tmp_path, undisturbed)
        return
    again = _resume(run_folder, tmp_path)
    assert again.returncode == 0, again.stderr
    _check_same(tmp_path, undisturbed)


def test_a_run_that_is_killed_twice_goes_on_too(undisturbed: FinishedRun, tmp_path: Path) -> None:
    with _begin(tmp_path) as process:
        run_folder = _wait_for_checkpoints(tmp_path)
        process.kill()
    if run_folder.exists():
        with subprocess.Popen(
            [*RESUME, str(run_folder)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        ) as again:
            assert again.stdout is not None
            for line in again.stdout:
                if "kernels" in line:
                    break
            again.kill()
        last = _resume(
            tmp_path / "runs" / run_folder.name.strip(".").removesuffix(".partial"), tmp_path
        )
        assert last.returncode == 0, last.stderr
    _check_same(tmp_path, undisturbed)


def test_a_killed_run_had_said_how_to_go_on(undisturbed: FinishedRun, tmp_path: Path) -> None:
    with _begin(tmp_path) as process:
        assert process.stdout is not None
        found = None
        for line in process.stdout:
            assert "epoch" not in line
            if (found := re.search(r"if it is killed: .*tamiyo resume (\S+)", line)) is not None:
                break
        process.kill()
    assert found is not None
    again = _resume(Path(found[1]), tmp_path)
    assert again.returncode == 0, again.stderr
    _check_same(tmp_path, undisturbed)


def test_a_stopped_run_says_how_to_go_on_and_does(undisturbed: FinishedRun, tmp_path: Path) -> None:
    process = _begin(tmp_path)
    _wait_for_checkpoints(tmp_path)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    found = re.search(r"tamiyo resume (\S+)", stdout)
    assert found is not None, stdout
    again = _resume(Path(found[1]), tmp_path)
    assert again.returncode == 0, again.stderr
    _check_same(tmp_path, undisturbed)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    undisturbed: FinishedRun, tmp_path: Path
) -> None:
    process = _begin(tmp_path)
    run_folder = _wait_for_checkpoints(tmp_path)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    (run_folder,) = (tmp_path / "runs").iterdir()
    manifests = {
        path.parent: json.loads(path.read_text())
        for path in run_folder.glob("checkpoints/*/checkpoint.json")
    }
    last = max(manifest["step"] for manifest in manifests.values())
    for slot, manifest in manifests.items():
        if manifest["step"] == last:
            path = slot / manifest["folder"] / "run.safetensors"
            path.write_bytes(path.read_bytes()[:-1])
    config = run_folder / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 30", "epochs: 31"))
    again = _resume(run_folder, tmp_path)
    assert again.returncode == 0, again.stderr
    assert "an older checkpoint is used" in again.stdout
    assert "the changed file is kept as config-changed.yaml" in again.stdout
    assert "epochs: 31" in (run_folder / "config-changed.yaml").read_text()
    _check_same(tmp_path, undisturbed)


def test_outcomes_that_the_library_missed_are_filed_when_the_run_goes_on(
    undisturbed: FinishedRun, tmp_path: Path
) -> None:
    process = _begin(tmp_path)
    _wait_for_outcomes(tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    (run_folder,) = (tmp_path / "runs").iterdir()
    for file in run_folder.glob("library.db*"):
        file.unlink()
    again = _resume(run_folder, tmp_path)
    assert again.returncode == 0, again.stderr
    assert "config.yaml was changed" not in again.stdout
    assert _summary(tmp_path)["unfiled"] == 0
    assert _summary(tmp_path)["complete"]
    _check_same(tmp_path, undisturbed)


def test_a_run_says_that_its_data_changed_and_goes_on(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = [f"{x},{x % 3},{'yes' if x % 2 else 'no'}" for x in range(300)]
    table.write_text("\n".join(["a,b,answer", *rows]))
    options = ("--task", "table", "--data", str(table), "--target", "answer")
    process = _begin(tmp_path, *options, "--epochs", "2000", "--no-twin")
    _wait_for_checkpoints(tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    (run_folder,) = (tmp_path / "runs").iterdir()
    saved = json.loads((run_folder / "task.json").read_text())["data_sha256"]
    for rows[7], ends_by, changed in (
        ("7,1,yes", signal.SIGINT, False),
        ("7,2,yes", signal.SIGKILL, True),
        ("7,2,yes", signal.SIGINT, True),  # the last checkpoint is still of the data before
        ("7,2,yes", signal.SIGINT, False),
    ):
        table.write_text("\n".join(["a,b,answer", *rows]))
        with start_until("grown  epoch", [*RESUME, str(run_folder)], tmp_path) as again:
            again.send_signal(ends_by)
            again.communicate(timeout=60)  # a closed pipe would end it before it saves
        events = list(read_chain(run_folder / "events.jsonl"))
        resumed = [event.data for event in events if event.kind == "resumed"]
        assert resumed[-1]["data_changed"] is changed
    now = json.loads((run_folder / "task.json").read_text())["data_sha256"]
    assert now != saved


def test_what_cannot_go_on_is_explained(undisturbed: FinishedRun, tmp_path: Path) -> None:
    for path, said in (
        (undisturbed.folder, "is complete"),
        (tmp_path / "nowhere", "there is no run"),
        (tmp_path, "no checkpoint"),
    ):
        run = _resume(path, undisturbed.cwd)
        assert run.returncode == 2, run.stdout
        assert said in run.stderr
        assert run.stderr.count("\n") == 1
