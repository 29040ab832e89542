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
from pathlib import Path
from typing import BinaryIO

from esper.contracts import ConfigError, MessageError, get_logger, new_id, parse_message
from esper.oona.envelope import Envelope, decode

MAX_BYTES = 256_000_000
"""Of one journal; beyond it messages are lost, and counted."""
_SUFFIX = ".journal"

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
        self._file: BinaryIO | None = None
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
            left = sorted(self._folder.glob(f"{self._stem}-*{_SUFFIX}"))
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
        file = self._opened()
        try:
            file.seek(self._size)
            file.write(lines)
            file.flush()
        except OSError:
            with suppress(OSError):
                file.truncate(self._size)
            raise
        self._size += len(lines)

    def read(self, limit: int) -> list[Envelope]:
        """Return the next messages, at most `limit`; they stay in the file until `forget`."""
        messages: list[Envelope] = []
        file = self._opened()
        file.seek(self._read_to)
        while len(messages) < limit and not self.is_read:
            line = file.readline()
            self._read_to += len(line)
            try:
                messages.append(decode(line.rstrip(b"\n"), topic=parse_message(line).topic))
            except MessageError as error:  # the last line of a process that was killed as it wrote
                _log.error("a line of the journal is no message", file=self.name, reason=str(error))
        return messages

    def forget(self) -> None:
        """Empty the file once all of it was read and has arrived."""
        if self._file is not None and self._size and self.is_read:
            self._file.truncate(0)
            self._read_to = self._size = 0

    def keep(self, messages: Sequence[Envelope]) -> None:
        """Put messages, which did not arrive, before what was not read yet. Raises `OSError`."""
        file = self._opened()
        file.seek(self._read_to)
        rest = file.read(self._size - self._read_to)
        lines = b"".join(message.data + b"\n" for message in messages) + rest
        file.seek(0)
        file.write(lines)
        file.truncate(len(lines))
        file.flush()
        os.fsync(file.fileno())
        self._read_to, self._size = 0, len(lines)

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

    def _opened(self) -> BinaryIO:
        if self._file is None:
            if self._folder is None:
                self._file = tempfile.TemporaryFile(prefix="esper-oona-")  # noqa: SIM115 - see close
            else:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._path = self._folder / f"{self._stem}-{new_id()}{_SUFFIX}"
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                self._file = os.fdopen(descriptor, "r+b")
                fcntl.flock(self._file, fcntl.LOCK_EX)
        return self._file

    def _take_over(self, path: Path) -> int:
        """Move the messages of one file into ours, unless its owner lives."""
        with path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            left = file.read()
            if left and not left.endswith(b"\n"):
                left += b"\n"
            ours = self._opened()
            ours.seek(self._size)
            ours.write(left)
            ours.flush()
            os.fsync(ours.fileno())
            self._size += len(left)
            path.unlink()
            num_messages = left.count(b"\n")
        if num_messages:
            _log.warning("messages of an earlier process are sent now", count=num_messages)
        return num_messages
