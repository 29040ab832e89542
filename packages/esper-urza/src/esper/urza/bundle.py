"""One file with many members in it: a tar archive that any tar program opens, read strictly.

`exporting` writes it, `importing` reads it. Names, order and every byte of it follow from the contents
(POSIX ustar headers without owners or times, numbers too large for them as GNU tar writes them), so the
reader takes exactly what the writer would have written, and no flipped bit goes unnoticed.
"""

import tarfile
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import BinaryIO

from esper.contracts import ArtifactIntegrityError
from esper.urza.file_errors import translated
from esper.urza.verifying import CHUNK_BYTES

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_MAX_LINE_BYTES = 64 * 2**20
"""An event about 100,000 kernels that were registered together is 14 MB long."""


class BundleWriter:
    """Writes members one after the other; `finish` makes the archive whole."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def add(self, name: str, size_bytes: int, chunks: Iterable[bytes]) -> None:
        """Write one member, whose size must be known beforehand.

        Raises:
            ArtifactIntegrityError: if the chunks are more or fewer bytes than that.
            BackendUnavailableError: if the file cannot be written (`ServerFullError`, …).

        """
        self._write(_header(name, size_bytes))
        written = 0
        for chunk in chunks:
            written += len(chunk)
            self._write(chunk)
        if written != size_bytes:
            raise ArtifactIntegrityError(
                f"{name} has {written} bytes; its record says {size_bytes}: `urza verify` names what is "
                "damaged"
            )
        self._write(bytes(-size_bytes % _BLOCK))

    def finish(self) -> None:
        """Write the end."""
        self._write(_END)

    def _write(self, content: bytes) -> None:
        with translated(self._path, "written", what="file"):
            self._file.write(content)


class BundleReader:
    """Reads the members of an archive in the order in which they must be there."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self.path = path

    @property
    def offset(self) -> int:
        """Where the next member begins."""
        return self._file.tell()

    def seek(self, offset: int) -> None:
        """Go back to where a member begins."""
        self._file.seek(offset)

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Read a member of unknown size.

        Raises:
            ArtifactIntegrityError: if another one is there, or it is larger.

        """
        at = self.offset
        header = self._take(_BLOCK, name)
        try:
            size_bytes = tarfile.TarInfo.frombuf(header, "ascii", "strict").size
        except (tarfile.HeaderError, UnicodeError, ValueError):
            size_bytes = 0
        if not 0 < size_bytes <= max_bytes:
            raise ArtifactIntegrityError(
                f"{self.path} is no library that `urza export` wrote, or was damaged: expected {name} of "
                f"at most {max_bytes:,} bytes at byte {at}"
            )
        self.seek(at)
        return b"".join(self.chunks(name, size_bytes))

    def chunks(self, name: str, size_bytes: int) -> Generator[bytes]:
        """Give the bytes of the next member, which must be this one; whether they are right, others ask.

        Raises:
            ArtifactIntegrityError: if another one is there, or the file ends before.

        """
        at = self.offset
        if self._take(_BLOCK, name) != _header(name, size_bytes):
            raise ArtifactIntegrityError(
                f"{self.path} was changed, damaged or put in another order: expected {name} of "
                f"{size_bytes} bytes at byte {at}; export the library again"
            )
        left = size_bytes
        while left:
            chunk = self._take(min(left, CHUNK_BYTES), name)
            left -= len(chunk)
            yield chunk
        if any(self._take(-size_bytes % _BLOCK, name)):
            raise ArtifactIntegrityError(
                f"{self.path} was changed or damaged behind {name}, at byte {self.offset}; export the "
                "library again"
            )

    def lines(self, name: str, size_bytes: int) -> Generator[bytes]:
        """Give the lines of the next member, each with its line break. Raises as `chunks`."""
        rest = b""
        for chunk in self.chunks(name, size_bytes):
            *whole, rest = _split(rest + chunk)
            yield from whole
            if len(rest) > _MAX_LINE_BYTES:
                raise ArtifactIntegrityError(
                    f"{self.path} has a line of more than {_MAX_LINE_BYTES:,} bytes in {name}; no library "
                    "writes such"
                )
        if rest:
            raise ArtifactIntegrityError(
                f"{self.path} was damaged: the last line of {name} has no end"
            )

    def end(self) -> None:
        """Pass silently if the archive ends here. Raises `ArtifactIntegrityError`."""
        at = self.offset
        if self._take(len(_END), "the end") != _END or self._file.read(1):
            raise ArtifactIntegrityError(
                f"{self.path} has more in it than its manifest says, from byte {at} on; export the "
                "library again"
            )

    def _take(self, size_bytes: int, name: str) -> bytes:
        with translated(self.path, "read", what="file"):
            taken = self._file.read(size_bytes)
        if len(taken) < size_bytes:
            raise ArtifactIntegrityError(
                f"{self.path} was cut off: it ends within {name}, after {self.offset} bytes; copy or "
                "export it again"
            )
        return taken


def room_of(size_bytes: int) -> int:
    """Return how many bytes of the archive a member of that size takes."""
    return _BLOCK + size_bytes + -size_bytes % _BLOCK


def _split(text: bytes) -> list[bytes]:
    """Split behind line feeds only; the last part has none."""
    *whole, rest = text.split(b"\n")
    return [*(line + b"\n" for line in whole), rest]


def _header(name: str, size_bytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size_bytes
    return member.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")
