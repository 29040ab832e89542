"""Artifacts as files in a folder: each under the sha256 of its content, written atomically.

The default store of a run on one machine; implements the port `esper.contracts.ArtifactStore`.

Bytes are written to a draft beside the artifacts, which is renamed when they are all on the disk. Putting
what is there already renews its age (the file's time) instead. Both happen under the folder's lock, shared
among writers; `delete` compares the age and deletes while it has the lock alone. So garbage collection
either sees that an artifact was put again or is over before it is: no put relies on a file that goes away.
"""

import builtins
import fcntl
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

from esper.contracts import (
    ConfigError,
    Draft,
    NotFoundError,
    StoredArtifact,
    new_id,
    sha256_hex,
)
from esper.urza.file_errors import translated
from esper.urza.keys import check_expected, key_of, sha256_of
from esper.urza.verifying import (
    CHUNK_BYTES,
    RunningHash,
    check_chunks,
    check_upload,
    merged,
    read_verified,
    verified_chunks,
)

_DRAFT = ".draft-"


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
            BackendUnavailableError: if it cannot; which kind tells why.

        """
        with self._translated("made and written"):
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / f"{_DRAFT}{new_id()}"
            probe.touch()
            probe.unlink()

    def close(self) -> None:
        """Nothing to release: every call closes its files."""

    def put(self, blob: bytes) -> str:
        """Store `blob` and return its sha256; storing the same bytes twice is one.

        Raises:
            ArtifactIntegrityError: if the file of that hash holds other bytes.
            BackendUnavailableError: if the folder cannot be written (`ServerFullError`, …).

        """
        sha256 = sha256_hex(blob)
        if not self._renewed(sha256):
            with self._draft() as draft:
                self._write(draft, blob)
                self._publish(draft, sha256)
        return sha256

    def put_stream(self, chunks: Iterable[bytes], *, sha256: str | None = None) -> StoredArtifact:
        """Store what `chunks` bring; see the port.

        Raises:
            ArtifactIntegrityError: if the bytes hash to something else than `sha256`, or if the file
                of their hash holds other bytes.
            BackendUnavailableError: if the folder cannot be written (`ServerFullError`, …).

        """
        check_expected(sha256)
        with self._draft() as draft, RunningHash() as running:
            for chunk in merged(chunks):
                running.update(chunk)
                self._write(draft, chunk)
            actual = running.hexdigest()
            check_upload(actual, sha256)
            if not self._renewed(actual):
                self._publish(draft, actual)
            return StoredArtifact(
                sha256=actual, size_bytes=running.size_bytes, modified_at=datetime.now(UTC)
            )

    def get(self, sha256: str) -> bytes:
        """Return the bytes filed under `sha256`, verified.

        Raises:
            NotFoundError: if there are none.
            ArtifactIntegrityError: if the file holds other bytes.
            BackendUnavailableError: if the file cannot be read.

        """
        with self._opened(sha256) as file:
            place = f"file {self._folder / key_of(sha256)}"
            return read_verified(self._chunks(file), sha256, place=place)

    @contextmanager
    def stream(self, sha256: str) -> Generator[Iterator[bytes]]:
        """Give the bytes in chunks, verified on the way; see the port.

        Raises:
            NotFoundError: on entering, if there are none.
            ArtifactIntegrityError: from the iterator, before its last chunk.
            BackendUnavailableError: if the file cannot be read.

        """
        place = f"file {self._folder / key_of(sha256)}"
        with (
            self._opened(sha256) as file,
            closing(verified_chunks(self._chunks(file), sha256, place=place)) as chunks,
        ):
            yield chunks

    def list(self) -> Iterator[StoredArtifact]:
        """Give every artifact, in order of its hash."""
        for folder in self._entries(self._folder):
            if len(folder.name) != 2 or not folder.is_dir(follow_symlinks=False):
                continue
            for entry in self._entries(folder):
                sha256 = sha256_of(f"{folder.name}/{entry.name}")
                found = None if sha256 is None else self._stat(entry)
                if sha256 is not None and found is not None:
                    size, modified_at = found
                    yield StoredArtifact(sha256=sha256, size_bytes=size, modified_at=modified_at)

    def delete(self, sha256: str, *, if_unmodified_since: datetime | None = None) -> bool:
        """Delete an artifact; tell whether there was one to delete. See the port."""
        path = self._folder / key_of(sha256)
        with self._translated("changed"), self._locked(fcntl.LOCK_EX):
            found = self._stat(path)
            if found is None or (if_unmodified_since and found[1] > if_unmodified_since):
                return False
            path.unlink()
            return True

    def drafts(self) -> Iterator[Draft]:
        """Give what unfinished uploads have left; every write to a draft renews its age."""
        for entry in self._entries(self._folder):
            found = self._stat(entry) if entry.name.startswith(_DRAFT) else None
            if found is not None:
                size, modified_at = found
                yield Draft(name=entry.name, size_bytes=size, modified_at=modified_at)

    def discard(self, draft: Draft) -> bool:
        """Delete a draft, which ends an upload that still goes on; tell whether it was there."""
        path = self._folder / Path(draft.name).name
        if not path.name.startswith(_DRAFT):
            return False
        with self._translated("changed"):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def _renewed(self, sha256: str) -> bool:
        """Tell whether the artifact is there, its age renewed and its bytes verified."""
        path = self._folder / key_of(sha256)
        with self._translated("written"):
            try:
                with self._locked(fcntl.LOCK_SH):
                    os.utime(path)
            except FileNotFoundError:
                return False
        with self._opened(sha256) as file:
            check_chunks(self._chunks(file), sha256, place=f"file {path}")
        return True

    def _write(self, draft: FileIO, blob: bytes) -> None:
        rest = memoryview(blob)
        with self._translated("written"):
            while rest:  # a disk that gets full takes a part, then nothing
                rest = rest[draft.write(rest) :]

    def _publish(self, draft: FileIO, sha256: str) -> None:
        """Make a draft that was written and verified an artifact: readers see all of it or nothing."""
        path = self._folder / key_of(sha256)
        with self._translated("written"):
            os.fsync(draft.fileno())
            try:
                path.parent.mkdir()
            except FileExistsError:
                pass
            else:
                _sync_folder(self._folder)
            with self._locked(fcntl.LOCK_SH):
                os.utime(draft.fileno())  # its age begins now, not with its last byte
                Path(str(draft.name)).replace(path)
            _sync_folder(path.parent)  # the new name itself must survive a power loss

    @contextmanager
    def _draft(self) -> Generator[FileIO]:
        """Give a new file that is gone afterwards, unless it was published."""
        path = self._folder / f"{_DRAFT}{new_id()}"
        with self._translated("written"):
            file = path.open("xb", buffering=0)
        try:
            with file:
                yield file
        finally:
            with suppress(OSError):  # what happened before is what matters
                path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, kind: int) -> Generator[None]:
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, kind)
            yield
        finally:
            os.close(folder)  # unlocks it, as the end of a process does

    @contextmanager
    def _opened(self, sha256: str) -> Generator[FileIO]:
        path = self._folder / key_of(sha256)
        with self._translated("read"):
            try:
                file = path.open("rb", buffering=0)
            except FileNotFoundError as error:
                raise NotFoundError(
                    f"artifact {sha256} is not in {self.url}; forge its kernel again"
                ) from error
        with file:
            yield file

    def _chunks(self, file: FileIO) -> Generator[bytes]:
        while True:
            with self._translated("read"):
                chunk = file.read(CHUNK_BYTES)
            if not chunk:
                return
            yield chunk

    def _entries(self, folder: Path | os.DirEntry[str]) -> builtins.list[os.DirEntry[str]]:
        with self._translated("read"):
            try:
                with os.scandir(folder) as entries:
                    return sorted(entries, key=lambda entry: entry.name)
            except FileNotFoundError:  # removed meanwhile
                return []

    def _stat(self, file: Path | os.DirEntry[str]) -> tuple[int, datetime] | None:
        """Return size and time of a file; None if it is gone."""
        with self._translated("read"):
            try:
                found = file.stat(follow_symlinks=False)
            except FileNotFoundError:
                return None
        return found.st_size, datetime.fromtimestamp(found.st_mtime, UTC)

    def _translated(self, verb: str) -> AbstractContextManager[None]:
        return translated(self._folder, verb)


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


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
