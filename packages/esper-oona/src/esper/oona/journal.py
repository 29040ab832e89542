"""Messages that wait on disk because too many wait in memory: a file, first in, first out.

`OutboxQueue` writes here what it must not drop, and reads it back in order when the server takes
messages again. Without a folder the file has no name and goes with the process; with one it outlives
the process, and the next client of the same bus takes it over.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from io import FileIO
from pathlib import Path

from esper.contracts import ConfigError, MessageError, get_logger, new_id, parse_message
from esper.oona.envelope import Envelope, decode

MAX_BYTES = 256_000_000
"""Of one journal; beyond it messages are lost, and counted."""
_SUFFIX = ".journal"
_DRAFT = ".draft"
_CHUNK_BYTES = 65_536
"""How much is read at once; more where a line is longer."""

_log = get_logger(__name__)


class Journal:
    """A first-in-first-out file of messages, one JSON line each. Not thread-safe: its queue locks.

    Args:
        folder: where files outlive the process; None for a file that goes with it.
        bus: what tells one bus from another among the files of a folder; its hash is in their names.

    """

    def __init__(self, folder: Path | None = None, *, bus: str = "") -> None:
        self._folder = folder
        self._stem = sha256(bus.encode()).hexdigest()[:12]
        self._path: Path | None = None
        self._file: FileIO | None = None
        self._read_to = 0
        """Bytes that were read back."""
        self._size = 0

    @property
    def outlives_process(self) -> bool:
        """Tell whether what is kept can be read by a later process."""
        return self._folder is not None

    @property
    def is_read(self) -> bool:
        """Tell whether everything in it was read back."""
        return self._read_to == self._size

    def adopt(self) -> int:
        """Take over what clients that are gone have left; return how many messages.

        Raises:
            ConfigError: if the folder cannot be used.

        """
        if self._folder is None:
            return 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            left = [
                *sorted(self._folder.glob(f"{self._stem}-*{_SUFFIX}")),
                *self._folder.glob(f"{self._stem}-*{_DRAFT}"),
            ]
            return sum(self._take_over(path) for path in left if path != self._path)
        except OSError as error:
            raise ConfigError(
                f"bus parameter journal is the folder {self._folder}, which cannot be used: {error}"
            ) from error

    def append(self, messages: Iterable[Envelope]) -> None:
        """Write messages behind the others.

        Raises:
            OSError: if the disk takes no more, or the journal is full; then none of them is kept.

        """
        lines = b"".join(message.data + b"\n" for message in messages)
        if self._size + len(lines) > MAX_BYTES and self._read_to:
            self.keep([])  # make room: what was read back is in memory
        if self._size + len(lines) > MAX_BYTES:
            raise OSError(f"the journal holds {self._size} bytes already; its limit is {MAX_BYTES}")
        self._write(lines)

    def read(self, limit: int) -> list[Envelope]:
        """Return the next messages, at most `limit`; they stay in the file until `forget`.

        Raises:
            OSError: if the disk does not give them back.

        """
        messages: list[Envelope] = []
        for line in self._next_lines(limit):
            try:
                messages.append(decode(line, topic=parse_message(line).topic))
            except MessageError as error:  # the last line of a process that was killed as it wrote
                _log.error("a line of the journal is no message", file=self.name, reason=str(error))
        return messages

    def forget(self) -> None:
        """Empty the file once all of it was read and has arrived."""
        if self._file is not None and self._size and self.is_read:
            self._file.truncate(0)
            self._read_to = self._size = 0

    def keep(self, messages: Sequence[Envelope]) -> None:
        """Put messages, which did not arrive, before what was not read yet.

        Writes another file and then changes names: whatever happens, one of the two is whole.

        Raises:
            OSError: if the disk takes no more; then the journal is as it was.

        """
        old = self._opened()
        rest = _read(old, self._size - self._read_to, at=self._read_to)
        lines = b"".join(message.data + b"\n" for message in messages) + rest
        draft = None if self._path is None else self._path.with_suffix(_DRAFT)
        new = _temporary_file() if draft is None else _locked(draft)
        try:
            _write_all(new, lines, at=0)
            os.fsync(new.fileno())
            if draft is not None and self._path is not None:
                draft.replace(self._path)
        except BaseException:
            if draft is not None:
                draft.unlink(missing_ok=True)
            new.close()
            raise
        old.close()
        self._file, self._read_to, self._size = new, 0, len(lines)

    def close(self) -> None:
        """Let the file go: an empty one is removed, another waits for the next client."""
        file, self._file = self._file, None
        if file is None:
            return
        if self._path is not None and not self._size:
            self._path.unlink(missing_ok=True)
        file.close()  # the lock goes with it
        self._path, self._read_to, self._size = None, 0, 0

    @property
    def name(self) -> str:
        """Where the messages are, for people."""
        return "a temporary file" if self._path is None else str(self._path)

    def _next_lines(self, limit: int) -> list[bytes]:
        """Read on, at most so many lines; a line that lacks its end comes with what there is."""
        file, num_left = self._opened(), self._size - self._read_to
        length = min(_CHUNK_BYTES, num_left)
        while b"\n" not in (chunk := _read(file, length, at=self._read_to)) and length < num_left:
            length = min(2 * length, num_left)
        *lines, rest = chunk.split(b"\n")
        num_bytes = sum(map(len, lines[:limit])) + len(lines[:limit])
        if rest and not lines:
            lines, num_bytes = [rest], len(rest)
        self._read_to += num_bytes
        return lines[:limit]

    def _opened(self) -> FileIO:
        while self._file is None:
            if self._folder is None:
                self._file = _temporary_file()
                break
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self._folder / f"{self._stem}-{new_id()}{_SUFFIX}"
            file = _locked(path)
            if _is_named(file, path):
                self._path, self._file = path, file
            else:  # between its making and its lock, somebody took it for one that was left
                file.close()
        return self._file

    def _write(self, lines: bytes) -> None:
        """Write behind what is there, all or nothing. Raises `OSError`."""
        file = self._opened()
        try:
            _write_all(file, lines, at=self._size)
        except OSError:
            with suppress(OSError):
                file.truncate(self._size)
            raise
        self._size += len(lines)

    def _take_over(self, path: Path) -> int:
        """Move the messages of one file into ours, unless its owner lives or somebody else was first."""
        try:
            file = path.open("r+b", buffering=0)
        except FileNotFoundError:
            return 0
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            if not _is_named(file, path):
                return 0
            left = _read(file, os.fstat(file.fileno()).st_size, at=0)
            if left and not left.endswith(b"\n"):
                left += b"\n"
            if left and path.suffix == _SUFFIX:
                self._write(left)
                os.fsync(self._opened().fileno())
            else:
                left = b""  # a draft: what it was to replace is still there
            path.unlink()
            num_messages = left.count(b"\n")
        if num_messages:
            _log.warning("messages of an earlier process are sent now", count=num_messages)
        return num_messages


def _temporary_file() -> FileIO:
    """Return a file without a name; unbuffered, so that what it did not take is not tried again."""
    return tempfile.TemporaryFile(prefix="esper-oona-", buffering=0)


def _locked(path: Path) -> FileIO:
    """Return a new file that is ours as long as it is open."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    file = os.fdopen(descriptor, "r+b", buffering=0)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _is_named(file: FileIO, path: Path) -> bool:
    """Tell whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read(file: FileIO, length: int, *, at: int) -> bytes:
    """Read so many bytes, or all there are."""
    parts: list[bytes] = []
    while length and (part := os.pread(file.fileno(), length, at)):
        parts.append(part)
        length, at = length - len(part), at + len(part)
    return b"".join(parts)


def _write_all(file: FileIO, lines: bytes, *, at: int) -> None:
    """Write everything, however little the system takes at a time. Raises `OSError`."""
    written = 0
    while written < len(lines):
        written += os.pwrite(file.fileno(), lines[written:], at + written)
