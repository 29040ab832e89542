"""The run folder: made whole or not at all.

A run writes into `runs/.<id>.partial` and the folder gets its name at the end; a run that fails before
its model is trained leaves nothing behind, one that fails later leaves the model and says so.
"""

import json
import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
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
    made = [path for path in (config.out, *config.out.parents) if not path.exists()]
    try:
        folder.path.mkdir(parents=True)
    except OSError as error:
        _remove_empty(made)
        raise ConfigError(
            f"the output folder {config.out} cannot be written ({error.strerror}); "
            "choose another with --out"
        ) from error
    try:
        yield folder
    except BaseException as error:
        if folder.keep:
            error.add_note(f"what was trained before that is in {folder.final_path}")
        raise
    finally:
        if folder.keep:
            folder.path.rename(folder.final_path)
        else:
            shutil.rmtree(folder.path)
            _remove_empty(made)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that a refused run made, unless something else is in them by now."""
    with suppress(OSError):
        for folder in folders:  # innermost first
            folder.rmdir()


def _run_id(config: RunConfig, now: datetime) -> str:
    """Return a name that sorts by time, says what ran, and is unique to this process."""
    task, host = (name.rpartition(":")[2] for name in (config.task, config.host))
    return f"{now:%Y%m%d-%H%M%S}-{task}-{host}-seed{config.seed}-{os.getpid():x}"
