"""Bytes on disk: whole or not at all, and errors that name the file."""

import os
import tempfile
from pathlib import Path

from esper.contracts import NotFoundError


def write_atomically(path: Path, data: bytes) -> None:
    """Write all of it or nothing: readers see the old file or the new one, after a power cut too."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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

    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path} does not exist; {advice}") from None
