"""A pytest plugin that runs the real commands `train` and `tamiyo`, each in a process of its own.

torch takes seconds to import. So one process imports it, and each run is a fork of that one, without the
wait. Forks share what the interpreter is given at its start, such as the seed of its hashes: tests that
watch or kill a process start `COMMAND` themselves, and so does the one that repeats the default run.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import pytest

COMMAND = (sys.executable, "-W", "error", "-c", "from esper.tamiyo.entry import main; main()")
"""`train`, with warnings as errors."""

TIMEOUT_SECONDS = 600.0
_STREAMS = {"stdout": 1, "stderr": 2}
_IMPORTED_ONCE = [
    "esper.tamiyo.cli",
    "esper.tamiyo.run",
    "esper.kasmina",
    "sklearn.datasets",
    # What a run imports when it needs it, which is half of the work of a short one.
    "torch._dynamo",
    "esper.oona",
    "esper.urza",
    "esper.urabrask",
    "esper.tezzeret",
    "esper.tamiyo.report",
    "matplotlib.backends.backend_svg",
]


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

    def run(
        *options: str, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> FinishedRun:
        folder = cwd or tmp_path_factory.mktemp("train")
        done = run_command("train", *options, cwd=folder, env=env)
        return FinishedRun(
            exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr, cwd=folder
        )

    return run


def run_command(
    name: str, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a console script to its end, `train` or `tamiyo`, with warnings as errors.

    `env` is added to the environment.

    Raises:
        TimeoutError: if it does not end; it is killed.

    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(_IMPORTED_ONCE)
    words = [name, *map(str, arguments)]
    with tempfile.TemporaryDirectory(prefix="esper-") as folder:
        said = Path(folder)
        environment = dict(os.environ) | dict(env or {})
        process = processes.Process(target=_be, args=(words, cwd, said, environment))
        process.start()

        def read() -> list[str]:
            return [
                path.read_text() if path.exists() else "" for path in map(said.joinpath, _STREAMS)
            ]

        process.join(TIMEOUT_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(
                f"{' '.join(words)} did not end within {TIMEOUT_SECONDS:.0f} s; it said\n{read()}"
            )
        stdout, stderr = read()
    return subprocess.CompletedProcess(words, process.exitcode, stdout, stderr)


def _be(words: Sequence[str], folder: Path, said: Path, environment: Mapping[str, str]) -> None:
    """Be the process of these words of a command line."""
    for name, number in _STREAMS.items():
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [*words]
    warnings.simplefilter("error")
    # By its name: the testkit does not require the trainer.
    (command,) = entry_points(group="console_scripts", name=words[0])
    command.load()()
