"""The run folder: made whole or not at all.

A run writes into `runs/.<id>.partial` and the folder gets its name at the end; a run that fails before
there is anything to go on from leaves nothing behind, one that fails later leaves that and says so. After
`kill -9` the folder is still there under its first name.
"""

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from esper.contracts import ConfigError, NotFoundError, load_yaml, utc_now
from esper.tamiyo.config import RunConfig, override

_PARTIAL = ".partial"
CHECKPOINTS = "checkpoints"
"""The folder within it that a run goes on from."""
LOG = "events.jsonl"
"""The hash-chained record of all that happened."""


def resume_command(folder: Path) -> str:
    """Return what a person types to go on with the run in `folder`."""
    return f"uv run --package esper-tamiyo tamiyo resume {shlex.quote(str(folder))}"


class RunFolder:
    """A run folder in the making."""

    def __init__(self, run_id: str, out: Path) -> None:
        self.run_id = run_id
        self.final_path = out / run_id
        self.path = _partial(self.final_path)
        self.keep = False
        """Set once there is something worth keeping."""
        self.can_go_on = False
        """Set once there is a checkpoint worth going on from."""
        self.is_complete = False
        """Set once there is nothing to go on with."""

    def write_text(self, name: str, text: str) -> None:
        """Write one file of the run, whole or not at all."""
        write_whole(self.path / name, text)

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Write one JSON file of the run."""
        self.write_text(name, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers see all of it or what was there before, also after a full disk.

    Raises:
        OSError: if it cannot be written.

    """
    beside = path.with_name(f".{path.name}.{os.getpid():x}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


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
        with _only_one(folder.path):
            yield folder
    except BaseException as error:
        _say_what_is_left(folder, error)
        raise
    finally:
        if folder.keep or folder.can_go_on:
            _finish(folder)
        else:
            shutil.rmtree(folder.path)
            _remove_empty(made)


@contextmanager
def reopened_folder(path: Path) -> Generator[RunFolder]:
    """Open the folder of a run that was stopped or killed, to go on in it.

    Raises:
        NotFoundError: if there is none.
        ConfigError: if the run is complete, or still going on.

    """
    final = path.with_name(path.name.removeprefix(".").removesuffix(_PARTIAL))
    folder = RunFolder(final.name, final.parent)
    if final.is_dir():
        folder.path = final
    if not folder.path.is_dir():
        raise NotFoundError(
            f"there is no run {path}; `tamiyo resume` takes a run folder, for example runs/{folder.run_id}"
        )
    # One that is hidden was killed before it got its name; with a checkpoint its end is written again.
    can_go_on = folder.path != final and (folder.path / CHECKPOINTS).is_dir()
    if not can_go_on and _is_complete(folder.path):
        with _only_one(folder.path):
            folder.is_complete = True
            _finish(folder)
        lacks = "" if (final / "report.html").is_file() else f"; tamiyo report {final} draws it"
        raise ConfigError(f"the run in {final} is complete; there is nothing to go on with{lacks}")
    with _only_one(folder.path):
        try:
            yield folder
        except BaseException as error:
            _say_what_is_left(folder, error)
            raise
    _finish(folder)


def _finish(folder: RunFolder) -> None:
    """Give the folder its name; its checkpoints stay until then, for a process that dies on the way."""
    folder.path.rename(folder.final_path)
    if folder.is_complete:
        shutil.rmtree(folder.final_path / CHECKPOINTS, ignore_errors=True)


def _is_complete(path: Path) -> bool:
    """Tell whether a run has its summary: the last that it writes. One that is damaged can be written again.

    Raises:
        ConfigError: if it is damaged, and there is no checkpoint to write it again from.

    """
    summary = path / "summary.json"
    if not summary.is_file():
        return False
    try:
        return not json.loads(summary.read_text(encoding="utf-8"))["interrupted"]
    except (ValueError, KeyError, TypeError) as error:
        if (path / CHECKPOINTS).is_dir():
            return False
        raise ConfigError(
            f"{summary} was damaged ({error}), and the run has no checkpoint left to write it again from; "
            f"restore a copy, or train again with train --config {path / 'config.yaml'}"
        ) from error


def keep_changed_config(folder: RunFolder, config: RunConfig) -> Path | None:
    """Copy the run's `config.yaml`, which is written anew, if it says something else than `config`.

    Returns:
        The copy; None where nothing was changed.

    """
    path = folder.path / "config.yaml"
    if not path.is_file():
        return None
    with suppress(ConfigError):
        written = override(load_yaml(path, RunConfig), {"out": config.out})
        if written.public() == config.public():
            return None
    return Path(shutil.copyfile(path, path.with_name("config-changed.yaml")))


def _say_what_is_left(folder: RunFolder, error: BaseException) -> None:
    if folder.keep:
        error.add_note(f"what was trained before that is in {folder.final_path}")
    elif folder.can_go_on:
        error.add_note(f"go on from the last checkpoint: {resume_command(folder.final_path)}")


@contextmanager
def _only_one(path: Path) -> Generator[None]:
    """Hold the folder for one process; the lock goes with it.

    Raises:
        ConfigError: if another holds it.

    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(f"the run in {path} is still going on in another process") from None
    finally:
        os.close(descriptor)


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}{_PARTIAL}")


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that a refused run made, unless something else is in them by now."""
    with suppress(OSError):
        for folder in folders:  # innermost first
            folder.rmdir()


def _run_id(config: RunConfig, now: datetime) -> str:
    """Return a name that sorts by time, says what ran, and is unique to this process."""
    task, host = (name.rpartition(":")[2] for name in (config.task, config.host))
    return f"{now:%Y%m%d-%H%M%S}-{task}-{host}-seed{config.seed}-{os.getpid():x}"
