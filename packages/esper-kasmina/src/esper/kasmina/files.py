"""Bytes on disk: whole or not at all, and errors that name the file."""

import fcntl
import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from esper.contracts import ArtifactIntegrityError, HostError, NotFoundError


def write_atomically(path: Path, data: bytes) -> None:
    """Write all of it or nothing: readers see the old file or the new one, after a power cut too."""
    write_together(path.parent, {path.name: data})


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write several files, each whole or not at all; none is replaced before all of them are on disk."""
    temporaries: dict[str, Path] = {}
    try:
        for name, data in contents.items():
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            temporaries[name] = Path(temporary)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporaries[name].chmod(0o644)
        for name, temporary_path in temporaries.items():
            temporary_path.replace(folder / name)
        sync_folder(folder)
    finally:
        for temporary_path in temporaries.values():
            temporary_path.unlink(missing_ok=True)


@contextmanager
def only_writer(folder: Path) -> Generator[None]:
    """Hold `folder` for writing; the lock goes with the process that holds it (POSIX systems).

    Raises:
        HostError: if another process or thread is writing there.

    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise HostError(
            f"another process is writing a checkpoint into {folder}; give each run its own folder"
        ) from None
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the folder's own entries on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path, *, advice: str) -> bytes:
    """Return the file's bytes.

    Raises:
        NotFoundError: if it does not exist; ends with `advice`.
        ArtifactIntegrityError: if it is a folder.

    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path} does not exist; {advice}") from None
    except IsADirectoryError:
        raise ArtifactIntegrityError(f"{path} is a folder, not a file; {advice}") from None
