"""Samples that are read by other processes: the same model as without them, however the run is ended.

The data is a folder of images that a task of the user's reads late, as `--task images` does with a large one.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esper.testkit.runs import COMMAND, FinishedRun, Train, run_command

TASK = """
import time
from pathlib import Path
from esper.tamiyo.tasks import Source, images
from torch import nn

class Slow(images.Images):
    def __getitem__(self, index):
        time.sleep(0.01)
        return super().__getitem__(index)

def load():
    images.IN_MEMORY_BYTES, images.Images = 0, Slow
    return images.images(Source(path=Path("photos")))

def build(task):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(task.num_features, 6), nn.ReLU(), nn.Dropout(0.1),
        nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, task.num_classes),
    )
"""

EPOCHS = 20
"""Of a fifth of a second each, with two workers: time to look at them and to disturb them."""

OPTIONS = (
    *("--host", "late:build", "--epochs", str(EPOCHS), "--batch-size", "4", "--no-twin"),
    *("--checkpoint-seconds", "0"),
)
LATE = ("--task", "late:load", "--workers", "2")


def _write(folder: Path) -> Path:
    numbers = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 60)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(30):
            pixels = numbers.integers(low, low + 190, (6, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{number}.png")
    (folder / "late.py").write_text(TASK)
    return folder


@pytest.fixture(scope="module")
def in_memory(train: Train, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The same run, undisturbed, with its data in memory: workers bring it nothing."""
    folder = _write(tmp_path_factory.mktemp("in_memory"))
    run = train(*OPTIONS, "--task", "images", "--data", "photos", "--workers", "2", cwd=folder)
    assert run.exit_code == 0, run.stderr
    return run


def test_workers_for_data_in_memory_are_said_to_bring_nothing(in_memory: FinishedRun) -> None:
    assert in_memory.stdout.count("--workers 2 brings nothing: the data of task 'images'") == 1
    assert in_memory.stderr == ""


@contextmanager
def _begun(folder: Path) -> Generator[tuple["subprocess.Popen[str]", set[int]]]:
    """Return a run that is some epochs old, and its workers."""
    _write(folder)
    process = subprocess.Popen(
        [*COMMAND, *LATE, *OPTIONS],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert any("epoch   1" in line for line in process.stdout)
            workers = _workers(process.pid)
            assert len(workers) == 2
            yield process, workers
        finally:
            process.kill()


def _workers(parent: int) -> set[int]:
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True
    )
    lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return {int(pid) for pid, owner, what in lines if int(owner) == parent and "spawn" in what}


def _check_gone(processes: set[int]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        listed = subprocess.run(
            ["ps", "-A", "-o", "pid="], capture_output=True, text=True, check=True
        )
        if not processes & {int(pid) for pid in listed.stdout.split()}:
            return
        time.sleep(0.1)
    pytest.fail(f"of {processes} some live on")


def _check_resumed(folder: Path, in_memory: FinishedRun) -> None:
    (path,) = (path for path in (folder / "runs").iterdir() if path.is_dir())
    again = run_command("tamiyo", "resume", path, cwd=folder)
    assert (again.returncode, again.stderr) == (0, "")
    (found,) = (folder / "runs").glob("*/summary.json")
    mine = json.loads(found.read_text())
    assert mine["weights_sha256"] == in_memory.summary["weights_sha256"]
    assert mine["grown"] == in_memory.summary["grown"]


def test_a_killed_run_with_workers_goes_on_to_the_same_weights(
    in_memory: FinishedRun, tmp_path: Path
) -> None:
    with _begun(tmp_path) as (process, workers):
        process.kill()
    _check_resumed(tmp_path, in_memory)
    _check_gone(workers)


def test_ctrl_c_reaches_the_workers_too_and_the_run_ends_in_good_order(
    in_memory: FinishedRun, tmp_path: Path
) -> None:
    with _begun(tmp_path) as (process, workers):
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "")
    assert re.search(r"tamiyo resume \S+", stdout)
    _check_gone(workers)
    _check_resumed(tmp_path, in_memory)
