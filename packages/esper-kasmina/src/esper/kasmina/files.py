"""Files on disk: whole or not at all, and errors that name the file."""

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from esper.contracts import ArtifactIntegrityError, HostError, NotFoundError

type Content = bytes | dict[str, Tensor]
"""Of a file: its bytes, or the tensors of a safetensors file, which are written from where they lie. They are
contiguous, on the CPU, and share no memory."""


class Apart:
    """Takes tensors one by one as a safetensors file can hold them: apart, for it refuses shared memory.

    What already has memory to itself is taken as it lies: clones of all would double a large state.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def take(self, tensor: Tensor) -> Tensor:
        """Return `tensor`, or a clone where it shares memory with one taken before, or is a part of some."""
        storage = tensor.untyped_storage()
        is_alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in self._seen
        self._seen.add(storage.data_ptr())
        return tensor if is_alone else tensor.clone()


def write_atomically(path: Path, content: Content) -> None:
    """Write all of it or nothing: readers see the old file or the new one, after a power cut too."""
    write_together(path.parent, {path.name: content})


def write_together(folder: Path, contents: Mapping[str, Content]) -> None:
    """Write several files, each whole or not at all; none is replaced before all of them are on disk."""
    temporaries: dict[str, Path] = {}
    try:
        for name, content in contents.items():
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            os.close(handle)
            temporaries[name] = Path(temporary)
            _write(temporaries[name], content)
            sync(temporaries[name])
            temporaries[name].chmod(0o644)
        for name, temporary_path in temporaries.items():
            temporary_path.replace(folder / name)
        sync(folder)
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


def sync(path: Path) -> None:
    """Have a file, or a folder's own entries, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _write(path: Path, content: Content) -> None:
    if not isinstance(content, dict):
        path.write_bytes(content)
        return
    try:
        safetensors.torch.save_file(content, path)  # pyright: ignore[reportUnknownMemberType]
    except SafetensorError as error:
        # Its versions spell it in two ways: `(os error 28)`, and `Os { code: 28, … }`.
        if (found := re.search(r"(?:os error|Os \{ code:) (\d+)", str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error
