"""A pytest plugin that runs the real `train` command in a process and a folder of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

COMMAND = (sys.executable, "-W", "error", "-c", "from esper.tamiyo.entry import main; main()")
"""`train`, with warnings as errors."""

TIMEOUT_SECONDS = 300.0


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
        done = subprocess.run(
            [*COMMAND, *options],
            cwd=folder,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        return FinishedRun(
            exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr, cwd=folder
        )

    return run
