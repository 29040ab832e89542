"""The queue behind publishing: bounded, thread-safe, in order, and honest about what it lost.

The training thread puts messages in, `Outbox` takes them out. When it is full, telemetry drops its
oldest: it is plentiful, and the newest is worth the most. Everything else goes on to a journal on disk.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from threading import Lock
from typing import NamedTuple

from esper.contracts import BackendUnavailableError, TopicNames, get_logger
from esper.oona.envelope import Envelope
from esper.oona.journal import Journal

CAPACITY = 10_000
"""Messages that wait in memory; about 10 MB at a kilobyte each."""
MAY_BE_DROPPED = frozenset({TopicNames.TELEMETRY_SEED_HEALTH})
"""Topics whose oldest messages go when too many wait; those of the others go to the journal."""
_READ_BACK = 100
"""Messages that are read from the journal at once."""

_log = get_logger(__name__)


class Receipt:
    """Lets a publisher wait, until a deadline of its loop, for all of its messages to arrive."""

    __slots__ = ("_num_missing", "deadline", "done", "num_messages")

    def __init__(self, num_messages: int, deadline: float) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Once it is, by whatever way, nobody waits any more: what is still queued is not sent."""
        self.deadline = deadline
        """In the loop's seconds."""
        self.num_messages = num_messages
        self._num_missing = num_messages

    def settle(self, error: Exception | None = None) -> None:
        """Note that one message has arrived, or never will."""
        self._num_missing -= 1
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        elif not self._num_missing:
            self.done.set_result(None)


class Entry(NamedTuple):
    """One message in the queue."""

    sequence: int
    """Position in the order of arrival."""
    envelope: Envelope
    receipt: Receipt | None = None
    """Who waits for it; None if nobody does."""


class _Spilled:
    """Stands in the queue for messages that are in the journal, in this place."""

    __slots__ = ("num_messages", "sequence")

    def __init__(self, sequence: int, num_messages: int = 1) -> None:
        self.sequence = sequence
        """Of the first of them."""
        self.num_messages = num_messages


class OutboxQueue:
    """A bounded, thread-safe queue in order of arrival that knows what it lost.

    Args:
        capacity: messages kept in memory.
        journal: where the others wait that must not be dropped; by default a temporary file.

    """

    def __init__(self, capacity: int = CAPACITY, journal: Journal | None = None) -> None:
        self._capacity = capacity
        self._journal = Journal() if journal is None else journal
        self._lock = Lock()
        self._telemetry: deque[Entry] = deque()
        self._others: deque[Entry | _Spilled] = deque()
        self._sequence = 0
        self._lost: Counter[TopicNames] = Counter()
        self._num_kept = 0
        self._open = False

    def __len__(self) -> int:
        """Count the messages in memory and in the journal."""
        with self._lock:
            spilled = (item.num_messages for item in self._others if isinstance(item, _Spilled))
            return (
                len(self._telemetry)
                + sum(spilled)
                + sum(isinstance(item, Entry) for item in self._others)
            )

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, here or in the journal."""
        return not self._telemetry and not self._others

    @property
    def lost(self) -> dict[TopicNames, int]:
        """Messages that were dropped or refused, by topic."""
        with self._lock:
            return dict(self._lost)

    @property
    def num_kept(self) -> int:
        """Messages left in the journal for the next client, at the latest `abandon`."""
        with self._lock:
            return self._num_kept

    @property
    def last_sequence(self) -> int:
        """The sequence number of the newest message so far; 0 before the first."""
        with self._lock:
            return self._sequence

    def open(self) -> None:
        """Take messages from now on; until then they count as lost.

        Raises:
            ConfigError: if the journal's folder cannot be used.

        """
        with self._lock:
            if num_left := self._journal.adopt():
                self._sequence += 1
                self._others.append(_Spilled(self._sequence, num_left))
            self._open = True

    def put(self, envelope: Envelope) -> bool:
        """Queue a message, or count it as lost; tell whether the queue was empty before."""
        with self._lock:
            if not self._open:
                self._lost[envelope.topic] += 1
                return False
            num_queued = len(self._telemetry) + len(self._others)
            may_be_dropped = envelope.topic in MAY_BE_DROPPED
            if num_queued >= self._capacity and self._telemetry:
                self._lost[self._telemetry.popleft().envelope.topic] += 1
            elif num_queued >= self._capacity and may_be_dropped:
                self._lost[envelope.topic] += 1
                return False
            elif num_queued >= self._capacity or (not may_be_dropped and self._is_spilling()):
                self._spill(envelope)
                return False
            self._sequence += 1
            entry = Entry(self._sequence, envelope)
            (self._telemetry if may_be_dropped else self._others).append(entry)
            return num_queued == 0

    def put_awaited(self, messages: Sequence[Envelope], receipt: Receipt) -> None:
        """Queue messages that somebody waits for; nothing is dropped for them or of them."""
        with self._lock:
            for envelope in messages:
                self._sequence += 1
                self._others.append(Entry(self._sequence, envelope, receipt))

    def take(self, limit: int) -> list[Entry]:
        """Remove and return the oldest messages, at most `limit`; those taken before have arrived."""
        with self._lock:
            self._journal.forget()
            taken: list[Entry] = []
            while len(taken) < limit and (self._telemetry or self._others):
                entry = self._older().popleft()
                if isinstance(entry, _Spilled):
                    try:
                        self._read_back(entry)
                    except OSError:
                        break  # it is tried again with the next message
                elif entry.receipt is None or not entry.receipt.done.done():
                    taken.append(entry)
            return taken

    def prepare(self, limit: int) -> None:
        """Encode the messages that are taken next, or most of them."""
        with self._lock:
            entries = [*islice(self._others, limit), *islice(self._telemetry, limit)][:limit]
        for entry in entries:
            if isinstance(entry, Entry):
                entry.envelope.data  # noqa: B018 - asking for it makes it

    def oldest_sequence(self) -> int | None:
        """Return the sequence number of the oldest queued message, if there is one."""
        with self._lock:
            return self._older()[0].sequence if self._telemetry or self._others else None

    def count_lost(self, entries: Sequence[Entry]) -> None:
        """Count messages that were taken out but never arrived."""
        with self._lock:
            self._lost.update(entry.envelope.topic for entry in entries if entry.receipt is None)
        _refuse(entries)

    def abandon(self, in_flight: Sequence[Entry] = ()) -> None:
        """Take no more. What is left stays in the journal if that outlives us, else it is lost.

        Args:
            in_flight: taken out, and not known to have arrived.

        """
        with self._lock:
            self._open = False
            others = [entry for entry in in_flight if entry.envelope.topic not in MAY_BE_DROPPED]
            lost = [entry for entry in in_flight if entry.envelope.topic in MAY_BE_DROPPED]
            lost += self._telemetry
            while self._others and not (self._journal.outlives_process and self._is_all_spilled()):
                item = self._others.popleft()
                if isinstance(item, _Spilled):
                    with suppress(OSError):
                        self._read_back(item, limit=item.num_messages)
                        continue
                    self._others.popleft()
                else:
                    others.append(item)
            kept = [entry.envelope for entry in others if entry.receipt is None]
            if not self._journal.outlives_process or not self._keep(kept):
                lost += others
            self._lost.update(entry.envelope.topic for entry in lost if entry.receipt is None)
            self._telemetry.clear()
            self._others.clear()
            self._journal.close()
        _refuse([*others, *lost])

    def _keep(self, envelopes: Sequence[Envelope]) -> bool:
        """Leave messages, and what is in the journal, to the next client; tell whether that worked."""
        spilled = sum(item.num_messages for item in self._others if isinstance(item, _Spilled))
        if not envelopes and not spilled:
            return True
        try:
            self._journal.keep(envelopes)
        except OSError as error:
            _log.error("the journal cannot be written", file=self._journal.name, reason=str(error))
            return False
        self._num_kept = len(envelopes) + spilled
        _log.warning(
            "messages wait on disk for the next client",
            file=self._journal.name,
            count=self._num_kept,
        )
        return True

    def _spill(self, envelope: Envelope) -> None:
        """Write a message to the journal, in its place; lost and counted if the disk takes no more."""
        try:
            self._journal.append([envelope])
        except OSError as error:
            if not self._lost[envelope.topic]:
                _log.error("messages are lost", file=self._journal.name, reason=str(error))
            self._lost[envelope.topic] += 1
            return
        self._sequence += 1
        newest = self._others[-1] if self._others else None
        if isinstance(newest, _Spilled):
            newest.num_messages += 1
        else:
            _log.warning("too many messages wait; now on disk", file=self._journal.name)
            self._others.append(_Spilled(self._sequence))

    def _read_back(self, spilled: _Spilled, limit: int = _READ_BACK) -> None:
        """Put the next messages of the journal in the place of `spilled`, which was taken out.

        Raises `OSError`, with all as it was before `spilled` was taken out.
        """
        num_messages = min(limit, spilled.num_messages)
        try:
            read = self._journal.read(num_messages)
        except OSError as error:
            _log.error("the journal cannot be read", file=self._journal.name, reason=str(error))
            self._others.appendleft(spilled)
            raise
        if spilled.num_messages > num_messages:
            left = _Spilled(spilled.sequence, spilled.num_messages - num_messages)
            self._others.appendleft(left)
        self._others.extendleft(Entry(spilled.sequence, envelope) for envelope in reversed(read))

    def _is_spilling(self) -> bool:
        return bool(self._others) and isinstance(self._others[-1], _Spilled)

    def _is_all_spilled(self) -> bool:
        return all(isinstance(item, _Spilled) for item in self._others)

    def _older(self) -> deque[Entry] | deque[Entry | _Spilled]:
        if not self._telemetry:
            return self._others
        if not self._others:
            return self._telemetry
        return min(self._telemetry, self._others, key=lambda queue: queue[0].sequence)


def _refuse(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.receipt is not None and not entry.receipt.done.done():
            error = "the bus was closed before a message arrived; publish it again"
            entry.receipt.settle(BackendUnavailableError(error))
