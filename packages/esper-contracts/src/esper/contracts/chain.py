"""A hash-chained, append-only log in JSON Lines: every line seals the one before it.

The trainer appends each event of a run to `events.jsonl`; anybody can verify that no line was
changed, dropped or reordered. Format of a line: `{"seq", "at", "kind", "data", "previous", "hash"}`
with `hash` = sha256 over the canonical JSON of the other five fields, `previous` = the hash of the
line before (64 zeros for the first).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

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


class EventLog:
    """Appends to a new hash-chained log; a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._seq = 0
        self._head = GENESIS

    @property
    def head(self) -> str:
        """The hash of the last line: whoever keeps it can detect any later change."""
        return self._head

    def __enter__(self) -> Self:
        """Create the file; it must not exist yet."""
        self._file = self._path.open("x", encoding="utf-8")
        return self

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
        """Write one event and return it; the line has left the process when this returns."""
        if self._file is None:
            raise ValueError("the event log is not open; use it in a with statement")
        data = json.loads(canonical_json(content))
        draft = ChainedEvent(
            seq=self._seq, at=utc_now(), kind=kind, data=data, previous=self._head, hash=GENESIS
        )
        event = draft.model_copy(update={"hash": draft.expected_hash()})
        self._file.write(event.model_dump_json() + "\n")
        self._file.flush()
        self._seq += 1
        self._head = event.hash
        return event


def read_chain(path: Path) -> Iterator[ChainedEvent]:
    """Yield the events of a log, verifying the chain on the way.

    Raises:
        ChainError: naming the first line that is malformed, changed, missing or out of order.

    """
    head, seq = GENESIS, 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            try:
                event = ChainedEvent.model_validate_json(line)
            except ValidationError as error:
                raise ChainError(f"{where} is not an event of this log: {error}") from error
            if event.seq != seq or event.previous != head:
                raise ChainError(
                    f"{where} does not follow the line before it (seq {event.seq}, expected {seq}); "
                    "a line was removed, inserted or moved"
                )
            if event.hash != event.expected_hash():
                raise ChainError(f"{where} was changed: its content does not match its hash")
            head, seq = event.hash, seq + 1
            yield event
