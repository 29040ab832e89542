"""A hash-chained, append-only log in JSON Lines: every line seals the one before it.

The trainer appends each event of a run to `events.jsonl`; anybody can verify that no line was
changed, dropped or reordered. Format of a line: `{"seq", "at", "kind", "data", "previous", "hash"}`
with `hash` = sha256 over the canonical JSON of the other five fields, `previous` = the hash of the
line before (64 zeros for the first).
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from pydantic import Field, ValidationError

from esper.contracts.base import (
    Contract,
    Sha256,
    UtcDatetime,
    canonical_json,
    sha256_hex,
    utc_now,
)
from esper.contracts.errors import ChainError
from esper.contracts.logging import get_logger

_log = get_logger(__name__)

GENESIS = "0" * 64
"""What stands for the hash before the first line."""


class ChainedEvent(Contract):
    """One line of the log."""

    seq: int = Field(ge=0)
    at: UtcDatetime
    kind: str = Field(min_length=1)
    data: dict[str, Any]
    previous: Sha256
    hash: Sha256

    def expected_hash(self) -> str:
        """Return the hash that this line must carry."""
        fields = json.loads(self.model_dump_json(exclude={"hash"}))
        return sha256_hex(canonical_json(fields))

    def line(self) -> bytes:
        """Return the one form in which the event stands in a file."""
        return self.model_dump_json().encode() + b"\n"


def next_event(
    kind: str, content: Contract | dict[str, Any], *, seq: int, previous: str
) -> ChainedEvent:
    """Return an event that happens now, as link number `seq` behind the one of hash `previous`."""
    fields: dict[str, Any] = {"seq": seq, "at": utc_now(), "kind": kind, "previous": previous}
    fields["data"] = json.loads(canonical_json(content))
    # What `expected_hash` hashes, without a record in between.
    hashed = fields | {"at": fields["at"].isoformat().replace("+00:00", "Z")}
    return ChainedEvent.model_validate(fields | {"hash": sha256_hex(canonical_json(hashed))})


class LogPosition(Contract):
    """How far a log has been written."""

    size_bytes: int = Field(ge=0)
    seq: int = Field(ge=0)
    head: Sha256


class EventLog:
    """Appends to a new hash-chained log; a context manager.

    With `after`, the position that an earlier log in the same file had, it goes on from there: what a
    process wrote between that moment and its death is cut off, for it will happen again.

    A full disk does not stop what is logged: from the first line that cannot be written on, nothing
    more is, `failure` says why and `lost` counts. The lines before it still verify, up to `head`.
    """

    def __init__(self, path: Path, *, after: LogPosition | None = None) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._after = after
        self._size = 0 if after is None else after.size_bytes
        self._seq = 0 if after is None else after.seq
        self._head = GENESIS if after is None else after.head
        self._lost = 0
        self._failure: str | None = None

    @property
    def head(self) -> str:
        """The hash of the last line written: whoever keeps it can detect any later change."""
        return self._head

    @property
    def position(self) -> LogPosition:
        """How far the log has been written; for `after`."""
        return LogPosition(size_bytes=self._size, seq=self._seq, head=self._head)

    @property
    def lost(self) -> int:
        """Events that could not be written; 0 when the log is complete."""
        return self._lost

    @property
    def failure(self) -> str | None:
        """Why events are lost, None as long as none are."""
        return self._failure

    def __enter__(self) -> Self:
        """Create the file, which must not exist yet, or open it to go on.

        Raises:
            ChainError: if the file is shorter than it was at the position to go on from, or has another line
                there; it is left as it is.

        """
        # Unbuffered: a line has left the process when `append` returns, or is known to be lost.
        if self._after is None:
            self._file = self._path.open("xb", buffering=0)
            return self
        file = self._path.open("r+b", buffering=0)
        if file.seek(0, os.SEEK_END) < self._size:
            file.close()
            raise ChainError(f"{self._path} was cut: it is shorter than the log to go on with")
        if self._last_hash(file) != self._head:
            file.close()
            raise ChainError(f"{self._path} is not the log to go on with, or it was changed")
        file.truncate(self._size)
        file.seek(self._size)
        self._file = file
        return self

    def _last_hash(self, file: BinaryIO) -> str | None:
        """Return the hash of the line that ends where the log goes on; None if none ends there."""
        if self._size == 0:
            return GENESIS
        file.seek(0)
        _, _, line = file.read(self._size - 1).rpartition(b"\n")
        try:
            return parse_event(line + file.read(1), str(self._path)).hash
        except ChainError:
            return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, kind: str, content: Contract | dict[str, Any]) -> ChainedEvent:
        """Write one event and return it; the line has left the process when this returns.

        An event that cannot be written is returned all the same, and counted in `lost`.
        """
        if self._file is None:
            raise ValueError("the event log is not open; use it in a with statement")
        event = next_event(kind, content, seq=self._seq, previous=self._head)
        if self._write(self._file, event.line()):
            self._seq += 1
            self._head = event.hash
        else:
            self._lost += 1
        return event

    def _write(self, file: BinaryIO, line: bytes) -> bool:
        if self._failure is not None:
            return False
        try:
            written = file.write(line)
            if written < len(line):  # the disk took a part: ask for the rest, to hear why
                file.write(line[written:])
        except OSError as error:
            self._failure = error.strerror or str(error)
            with suppress(OSError):
                file.truncate(self._size)  # no torn line behind the good ones
            _log.error("the event log ends here", path=str(self._path), reason=self._failure)
            return False
        self._size += len(line)
        return True


def read_chain(path: Path, *, head: str | None = None) -> Iterator[ChainedEvent]:
    """Yield the events of a log, verifying the chain on the way.

    Args:
        path: the log.
        head: the hash that its last line must have, as whoever wrote it noted elsewhere. Without it,
            lines missing at the end go unnoticed: the rest is a whole chain.

    Raises:
        ChainError: naming the first line that is malformed, changed, missing or out of order.

    """
    last, seq = GENESIS, 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            event = parse_event(line, where)
            check_link(event, where, seq=seq, previous=last)
            last, seq = event.hash, seq + 1
            yield event
    if head is not None and last != head:
        raise ChainError(
            f"{path} ends after line {seq} with hash {last}; expected {head}: lines are missing at "
            "its end, or it is another log"
        )


def check_link(event: ChainedEvent, where: str, *, seq: int, previous: str) -> None:
    """Pass silently if `event` is unchanged, and link number `seq` behind the one of hash `previous`.

    Raises:
        ChainError: naming the place.

    """
    if event.seq != seq or event.previous != previous:
        raise ChainError(
            f"{where} does not follow the line before it (seq {event.seq}, expected {seq}); "
            "a line was removed, inserted or moved"
        )
    if event.hash != event.expected_hash():
        raise ChainError(f"{where} was changed: its content does not match its hash")


def parse_event(line: bytes, where: str) -> ChainedEvent:
    """Return the event that a line is, written as this log writes its events.

    Raises:
        ChainError: naming the place.

    """
    try:
        event = ChainedEvent.model_validate_json(line)
    except ValidationError as error:
        raise ChainError(f"{where} is not an event of this log: {error}") from error
    # A repeated key or white space would pass the hash, which is over what was parsed.
    if event.line() != line:
        raise ChainError(f"{where} was changed: it is not written as this log writes its events")
    return event
