"""Artifacts as files in a folder: each under the sha256 of its content, written atomically.

The default store of a run on one machine; implements the port `esper.contracts.ports.ArtifactStore`.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from esper.contracts import BackendUnavailableError, ConfigError, NotFoundError, new_id, sha256_hex
from esper.urza.keys import check_bytes, key_of


class FileStore:
    """A folder of files named `ab/cdef…`; several processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def url(self) -> str:
        """The folder as a `file:` URL."""
        return self._folder.as_uri()

    def open(self) -> None:
        """Make the folder, with its parents, and prove that it can be written.

        Raises:
            BackendUnavailableError: if it cannot.

        """
        with self._translated("made and written"):
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / f".probe-{new_id()}"
            probe.touch()
            probe.unlink()

    def close(self) -> None:
        """Nothing to release: every call closes its files."""

    def put(self, blob: bytes) -> str:
        """Store `blob` and return its sha256; storing the same bytes twice is one.

        Raises:
            ArtifactIntegrityError: if the file of that hash holds other bytes.
            BackendUnavailableError: if the folder cannot be written.

        """
        sha256 = sha256_hex(blob)
        path = self._folder / key_of(sha256)
        with self._translated("written"):
            if path.exists():
                check_bytes(path.read_bytes(), sha256, place=f"file {path}")
            else:
                path.parent.mkdir(exist_ok=True)
                _write_atomically(path, blob)
        return sha256

    def get(self, sha256: str) -> bytes:
        """Return the bytes filed under `sha256`, verified.

        Raises:
            NotFoundError: if there are none.
            ArtifactIntegrityError: if the file holds other bytes.
            BackendUnavailableError: if the file cannot be read.

        """
        path = self._folder / key_of(sha256)
        with self._translated("read"):
            try:
                blob = path.read_bytes()
            except FileNotFoundError as error:
                raise NotFoundError(
                    f"artifact {sha256} is not in {self.url}; forge its kernel again"
                ) from error
        check_bytes(blob, sha256, place=f"file {path}")
        return blob

    @contextmanager
    def _translated(self, verb: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise BackendUnavailableError(
                f"the artifact folder {self._folder} cannot be {verb}: {error.strerror}; "
                "check its mode, owner and free space, or choose another"
            ) from error


def open_file_store(url: str) -> FileStore:
    """Make the store for `file:///absolute/folder` or `file:relative/folder`; `open()` makes the folder.

    The relative form counts from the current directory. The entry point `file` in the group
    `esper.artifacts`.

    Raises:
        ConfigError: if the URL names a host or no folder.

    """
    parts = urlsplit(url)
    expected = (
        "expected file:///absolute/folder or file:relative/folder, with '#' and '?' written as "
        "%23 and %3F"
    )
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"artifact store {url!r} names a host, {parts.netloc!r}; {expected}")
    if not parts.path or parts.query or parts.fragment:
        raise ConfigError(f"artifact store {url!r} does not name a folder; {expected}")
    return FileStore(Path(unquote(parts.path)).absolute())


def _write_atomically(path: Path, blob: bytes) -> None:
    """Write under another name, then rename: a reader sees all of the file or none."""
    draft = path.with_name(f".draft-{new_id()}")
    try:
        with draft.open("xb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself must survive a power loss
    finally:
        os.close(folder)
