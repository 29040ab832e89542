"""Where a task's data is, as the user said it, and the errors when it is not there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.contracts import ConfigError, NotFoundError
from esper.contracts.words import with_article


@dataclass(frozen=True, kw_only=True)
class Source:
    """The user's data: `--data` and `--target`."""

    path: Path | None = None
    target: str | None = None
    """The column to be learned, of a table."""

    def folder(self, task: str, contents: str) -> Path:
        """Return the folder that was given.

        Raises:
            ConfigError: if none was, saying what belongs into it.
            NotFoundError: if there is none.

        """
        return self._given(task, f"--data FOLDER with {contents}", Path.is_dir)

    def file(self, task: str, contents: str) -> Path:
        """Return the file that was given. Raises as `folder`."""
        return self._given(task, f"--data FILE, {contents}", Path.is_file)

    def _given(self, task: str, expected: str, is_right: object) -> Path:
        if self.path is None:
            raise ConfigError(f"task {task!r} needs data of yours: {expected}")
        if not self.path.exists():
            raise NotFoundError(f"there is no {self.path}; task {task!r} expects {expected}")
        if callable(is_right) and not is_right(self.path):
            kind = "folder" if self.path.is_dir() else "file"
            raise ConfigError(
                f"{self.path} is {with_article(kind)}; task {task!r} expects {expected}"
            )
        return self.path

    def refuse(self, task: str) -> None:
        """Pass silently if nothing was given. Raises `ConfigError` if something was."""
        if self.path is not None:
            raise ConfigError(f"task {task!r} brings its own data; leave out --data")
        self.refuse_target(task)

    def refuse_target(self, task: str) -> None:
        """Pass silently if no column was named. Raises `ConfigError` if one was."""
        if self.target is not None:
            raise ConfigError(f"task {task!r} has no columns; leave out --target")


def find(folder: Path, names: Sequence[str], *, task: str, contents: str) -> Path:
    """Return the first of these names that is a file in `folder` or in a folder right below it.

    Raises:
        NotFoundError: naming what is missing and what should be there.

    """
    below = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    for place in below:
        for name in names:
            if (place / name).is_file():
                return place / name
    raise NotFoundError(
        f"{folder} has no {' or '.join(names)}; task {task!r} expects a folder with {contents}"
    )
