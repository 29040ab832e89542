"""The run folder: made whole or not at all.

A run writes into `runs/.<id>.partial` and the folder gets its name when everything is in it; a run
that fails leaves nothing behind.
"""

import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from esper.contracts import ConfigError, utc_now
from esper.tamiyo.config import RunConfig


class RunFolder:
    """A run folder in the making."""

    def __init__(self, run_id: str, out: Path) -> None:
        self.run_id = run_id
        self.final_path = out / run_id
        self.path = out / f".{run_id}.partial"
        self.keep = False
        """Set once there is something worth keeping."""

    def write_text(self, name: str, text: str) -> None:
        """Write one file of the run."""
        (self.path / name).write_text(text, encoding="utf-8")

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Write one JSON file of the run."""
        self.write_text(name, json.dumps(data, indent=2, allow_nan=False) + "\n")


@contextmanager
def run_folder(config: RunConfig) -> Generator[RunFolder]:
    """Make the folder of a run, and give it its final name at the end.

    Raises:
        ConfigError: if the folder cannot be made or written.

    """
    folder = RunFolder(_run_id(config, utc_now()), config.out)
    try:
        folder.path.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"the output folder {config.out} cannot be written ({error.strerror}); "
            "choose another with --out"
        ) from error
    try:
        yield folder
    finally:
        if folder.keep:
            folder.path.rename(folder.final_path)
        else:
            shutil.rmtree(folder.path)


def _run_id(config: RunConfig, now: datetime) -> str:
    """Return a name that sorts by time, says what ran, and is unique to this process."""
    task, host = (name.rpartition(":")[2] for name in (config.task, config.host))
    return f"{now:%Y%m%d-%H%M%S}-{task}-{host}-seed{config.seed}-{os.getpid():x}"
