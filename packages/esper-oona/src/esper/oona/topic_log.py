"""The newest messages of a topic in memory, whoever has handled them; read and replayed from here.

`broker` adds what is published and keeps one log for each topic, under its lock.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from esper.oona.delivery import check_bound
from esper.oona.envelope import Envelope
from esper.oona.group_queue import Waiter

CAPACITY = 10_000
"""Messages kept in each log; with a kilobyte each, seven topics take 70 MB at the most."""


class Logged(NamedTuple):
    """One message and its place."""

    sequence: int
    """Position among all messages of the broker; also its `position`, as text."""
    envelope: Envelope


@dataclass(frozen=True, kw_only=True)
class Span:
    """From where to where to read, both included."""

    first_sequence: int = 0
    since: datetime | None = None
    last_sequence: int | None = None
    until: datetime | None = None

    @classmethod
    def of(cls, since: datetime | str | None, until: datetime | str | None) -> "Span":
        """Read the bounds as the port has them. Raises `ConfigError`."""
        return cls(
            first_sequence=_sequence(since) or 0,
            since=since if isinstance(since, datetime) else None,
            last_sequence=_sequence(until),
            until=until if isinstance(until, datetime) else None,
        )

    def holds(self, logged: Logged) -> bool:
        """Tell whether the message is within."""
        timestamp = logged.envelope.timestamp
        return (
            logged.sequence >= self.first_sequence
            and (self.last_sequence is None or logged.sequence <= self.last_sequence)
            and (self.since is None or timestamp >= self.since)
            and (self.until is None or timestamp <= self.until)
        )


def _sequence(bound: datetime | str | None) -> int | None:
    position = check_bound(bound, pattern=r"\d{1,18}")
    return None if position is None else int(position)


class TopicLog:
    """The newest messages of one topic, oldest first."""

    def __init__(self) -> None:
        self.last_sequence = 0
        self.waiters: set[Waiter] = set()
        """Whom to wake when a message comes."""
        self._messages: deque[Logged] = deque(maxlen=CAPACITY)

    def add(self, sequence: int, envelope: Envelope) -> None:
        """Keep a message; the oldest goes if there are too many."""
        self._messages.append(Logged(sequence, envelope))
        self.last_sequence = sequence

    def within(self, span: Span) -> Iterator[Logged]:
        """Yield the messages of the span."""
        start = bisect_left(self._messages, span.first_sequence, key=lambda each: each.sequence)
        return filter(span.holds, islice(self._messages, start, None))
