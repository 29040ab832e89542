"""A pytest plugin that runs the real `train` command in a process and a folder of its own.

torch takes seconds to import. So one process imports it, and each run is a fork of that one: as separate
as a new process, without the wait. Tests that watch or kill a process start `COMMAND` themselves.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import pytest

COMMAND = (sys.executable, "-W", "error", "-c", "from esper.tamiyo.entry import main; main()")
"""`train`, with warnings as errors."""

TIMEOUT_SECONDS = 300.0
_IMPORTED_ONCE = ["esper.tamiyo.run", "esper.tamiyo.cli", "esper.kasmina", "sklearn.datasets"]


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished `train` process."""

    exit_code: int
    stdout: str
    stderr: str
    cwd: Path

    @property
    def folder(self) -> Path:
        """The one run folder that it left under `runs`."""
        (folder,) = (path for path in (self.cwd / "runs").iterdir() if path.is_dir())
        return folder

    @property
    def summary(self) -> dict[str, Any]:
        """The content of its summary.json."""
        return json.loads((self.folder / "summary.json").read_text())


def start_until(text: str, command: Sequence[str], cwd: Path) -> subprocess.Popen[str]:
    """Start a command and return its process as soon as it has printed a line with `text`.

    Raises:
        RuntimeError: if it ends before.

    """
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while text not in process.stdout.readline():
        if process.poll() is not None:
            raise RuntimeError(f"{command[-1]} ended with {process.returncode} before {text!r}")
    return process


class Train(Protocol):
    """Runs `train` to its end."""

    def __call__(
        self, *options: str, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> FinishedRun:
        """Run with `options` in `cwd` (default: a fresh folder), `env` added to the environment."""
        ...


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Return a function that runs `train`."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(_IMPORTED_ONCE)

    def run(
        *options: str, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> FinishedRun:
        folder = cwd or tmp_path_factory.mktemp("train")
        said = tmp_path_factory.mktemp("said")
        environment = dict(os.environ) | (env or {})
        process = processes.Process(target=_train, args=(options, folder, said, environment))
        process.start()
        process.join(TIMEOUT_SECONDS)
        if process.exitcode is None:
            process.kill()
            pytest.fail(f"train {' '.join(options)} did not end within {TIMEOUT_SECONDS:.0f} s")
        return FinishedRun(
            exit_code=process.exitcode,
            stdout=(said / "stdout").read_text(),
            stderr=(said / "stderr").read_text(),
            cwd=folder,
        )

    return run


def _train(
    options: tuple[str, ...], folder: Path, said: Path, environment: Mapping[str, str]
) -> None:
    """Be the process: `COMMAND` with these options."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["train", *options]
    warnings.simplefilter("error")
    # By its name: the testkit does not require the trainer.
    (command,) = entry_points(group="console_scripts", name="train")
    command.load()()
