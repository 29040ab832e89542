"""The queue behind `publish_nowait`: takes messages from any thread, sends them in the background.

Reads what the training thread puts in, hands batches to a bus's `send`, waits out outages with
growing pauses, and counts what never arrived. When it is full, telemetry goes first: it is plentiful,
and the newest is worth the most.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from threading import Lock
from typing import NamedTuple

from esper.contracts import BackendUnavailableError, TopicNames, get_logger

CAPACITY = 10_000
"""Messages that wait for the server; about 10 MB at a kilobyte each."""
_BATCH = 100
"""Messages per round trip; larger batches gain little and are resent whole when a connection breaks."""

_log = get_logger(__name__)


def backoff(first_seconds: float = 0.05, longest_seconds: float = 2.0) -> Iterator[float]:
    """Yield pauses that double up to the longest, for ever.

    No jitter: the driver's own draws from the global random stream, which belongs to the host.
    """
    pause = first_seconds
    while True:
        yield pause
        pause = min(2 * pause, longest_seconds)


class Receipt:
    """Lets a publisher wait until all of its messages have arrived."""

    def __init__(self, num_messages: int) -> None:
        self.is_withdrawn = False
        """The publisher gave up: what is still queued is not sent."""
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._num_missing = num_messages

    def settle(self, error: Exception | None = None) -> None:
        """Note that one message has arrived, or never will."""
        self._num_missing -= 1
        if self._done.done():
            return
        if error is not None:
            self._done.set_exception(error)
        elif not self._num_missing:
            self._done.set_result(None)

    def refuse_from_any_thread(self) -> None:
        """Note that one message had to go because too many wait."""
        error = BackendUnavailableError(f"more than {CAPACITY} messages wait for the bus")
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._done.get_loop().call_soon_threadsafe(self.settle, error)

    async def wait(self, timeout_seconds: float) -> None:
        """Wait for all. Raises `TimeoutError`, or the first error noted."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._done
        finally:
            self.is_withdrawn = True


class Entry(NamedTuple):
    """One encoded message in the queue."""

    sequence: int
    """Position in the order of arrival."""
    topic: TopicNames
    data: bytes
    receipt: Receipt | None = None
    """Who waits for it; None if nobody does."""


class Outcome(NamedTuple):
    """What became of a batch; everything that is in neither list was accepted."""

    again: list[Entry]
    """Not accepted now; worth another try."""
    refused: list[tuple[Entry, Exception]]
    """Will never be accepted, and why."""


class OutboxQueue:
    """A bounded, thread-safe queue in order of arrival that knows what it lost.

    When full it drops the oldest telemetry; with no telemetry queued, a new telemetry message is not
    taken in, and any other drops the oldest there is.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._lock = Lock()
        self._telemetry: deque[Entry] = deque()
        self._others: deque[Entry] = deque()
        self._sequence = 0
        self._lost: Counter[TopicNames] = Counter()
        self._open = False

    def __len__(self) -> int:
        with self._lock:
            return len(self._telemetry) + len(self._others)

    @property
    def lost(self) -> dict[TopicNames, int]:
        """Messages that were dropped or refused, by topic."""
        with self._lock:
            return dict(self._lost)

    @property
    def last_sequence(self) -> int:
        """The sequence number of the newest message so far; 0 before the first."""
        with self._lock:
            return self._sequence

    def open(self) -> None:
        """Take messages from now on; until then they count as lost."""
        with self._lock:
            self._open = True

    def put(self, topic: TopicNames, data: bytes) -> bool:
        """Queue a message or count it as lost; tell whether the queue was empty before."""
        with self._lock:
            if not self._open:
                self._lost[topic] += 1
                return False
            num_queued = len(self._telemetry) + len(self._others)
            is_telemetry = topic is TopicNames.TELEMETRY_SEED_HEALTH
            if num_queued >= self._capacity:
                if is_telemetry and not self._telemetry:
                    self._lost[topic] += 1
                    return False
                dropped = (self._telemetry or self._others).popleft()
                self._lost[dropped.topic] += 1
                if dropped.receipt is not None:
                    dropped.receipt.refuse_from_any_thread()
            self._sequence += 1
            entry = Entry(self._sequence, topic, data)
            (self._telemetry if is_telemetry else self._others).append(entry)
            return num_queued == 0

    def put_awaited(self, messages: Sequence[tuple[TopicNames, bytes]], receipt: Receipt) -> None:
        """Queue messages that somebody waits for; nothing is dropped for them or of them."""
        with self._lock:
            for topic, data in messages:
                self._sequence += 1
                self._others.append(Entry(self._sequence, topic, data, receipt))

    def take(self, limit: int) -> list[Entry]:
        """Remove and return the oldest messages, at most `limit`."""
        with self._lock:
            taken: list[Entry] = []
            while len(taken) < limit and (self._telemetry or self._others):
                entry = self._older().popleft()
                if entry.receipt is None or not entry.receipt.is_withdrawn:
                    taken.append(entry)
            return taken

    def oldest_sequence(self) -> int | None:
        """Return the sequence number of the oldest queued message, if there is one."""
        with self._lock:
            return self._older()[0].sequence if self._telemetry or self._others else None

    def count_lost(self, entries: Sequence[Entry]) -> None:
        """Count messages that were taken out but never arrived."""
        with self._lock:
            self._lost.update(entry.topic for entry in entries if entry.receipt is None)
        _refuse(entries)

    def abandon(self) -> None:
        """Take no more; count what is queued as lost."""
        with self._lock:
            self._open = False
            queued = [*self._telemetry, *self._others]
            self._lost.update(entry.topic for entry in queued if entry.receipt is None)
            self._telemetry.clear()
            self._others.clear()
        _refuse(queued)

    def _older(self) -> deque[Entry]:
        if not self._telemetry:
            return self._others
        if not self._others:
            return self._telemetry
        return min(self._telemetry, self._others, key=lambda queue: queue[0].sequence)


def _refuse(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.receipt is not None and not entry.receipt.is_withdrawn:
            error = "the bus was closed before a message arrived; publish it again"
            entry.receipt.settle(BackendUnavailableError(error))


class Outbox:
    """Drains an `OutboxQueue` in the loop that started it.

    Args:
        send: delivers a batch; raises `BackendUnavailableError` if nothing of it is known to have
            arrived, and then gets the same batch again.
        queue: what to drain.

    """

    def __init__(
        self, send: Callable[[Sequence[Entry]], Awaitable[Outcome]], queue: OutboxQueue
    ) -> None:
        self._send = send
        self._queue = queue
        self._in_flight: Sequence[Entry] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._progress = asyncio.Condition()
        self._trouble = "the bus is slow"

    @property
    def lost(self) -> Mapping[TopicNames, int]:
        """Messages that never reached the bus, by topic."""
        return self._queue.lost

    def start(self) -> None:
        """Begin to take and send messages, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._queue.open()
        self._task = self._loop.create_task(self._drain(), name="oona-outbox")

    def put(self, topic: TopicNames, data: bytes) -> None:
        """Queue one encoded message from any thread; never blocks or raises."""
        if self._queue.put(topic, data) and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._wake.set)
            except RuntimeError:  # the loop is closed: nobody will ever drain this queue
                self._queue.abandon()

    async def publish(
        self, messages: Sequence[tuple[TopicNames, bytes]], timeout_seconds: float
    ) -> None:
        """Send messages, behind everything queued before, and wait until all have arrived.

        Raises:
            BackendUnavailableError: if that takes too long; what is not on its way is withdrawn.

        """
        if not messages:
            return
        receipt = Receipt(len(messages))
        self._queue.put_awaited(messages, receipt)
        self._wake.set()
        try:
            await receipt.wait(timeout_seconds)
        except TimeoutError:
            raise BackendUnavailableError(
                f"a message did not arrive within {timeout_seconds:.0f} s: {self._trouble}"
            ) from None

    async def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything queued so far is settled; tell whether that happened in time."""
        target = self._queue.last_sequence
        try:
            async with asyncio.timeout(timeout_seconds), self._progress:
                await self._progress.wait_for(lambda: self._is_settled(target))
        except TimeoutError:
            return False
        return True

    async def close(self, timeout_seconds: float) -> None:
        """Send what is queued, count the rest as lost, stop."""
        if self._task is None:
            return
        await self.flush(timeout_seconds)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        self._queue.count_lost(self._in_flight)
        self._in_flight = ()
        self._queue.abandon()
        if lost := self.lost:
            _log.warning("messages were lost", **{topic.value: n for topic, n in lost.items()})

    def _is_settled(self, target: int) -> bool:
        oldest = self._in_flight[0].sequence if self._in_flight else self._queue.oldest_sequence()
        return oldest is None or oldest > target

    async def _drain(self) -> None:
        while True:
            self._wake.clear()
            batch = self._queue.take(_BATCH)
            if batch:
                await self._deliver(batch)
            async with self._progress:
                self._progress.notify_all()
            if not batch:
                await self._wake.wait()

    async def _deliver(self, batch: Sequence[Entry]) -> None:
        self._in_flight = batch
        pauses = backoff()
        reported = False
        while True:
            try:
                outcome = await self._send(self._in_flight)
                self._trouble = "the server takes no messages at the moment"
                self._settle(outcome)
                self._in_flight = outcome.again
            except BackendUnavailableError as error:
                self._trouble = str(error)
            if not self._in_flight:
                break
            if not reported:
                _log.warning("messages wait for the bus", reason=self._trouble)
                reported = True
            await asyncio.sleep(next(pauses))
        if reported:
            _log.warning("the bus takes messages again")

    def _settle(self, outcome: Outcome) -> None:
        """Tell those who wait; count what nobody waits for and will never arrive."""
        open_sequences = {entry.sequence for entry in outcome.again}
        for entry, error in outcome.refused:
            open_sequences.add(entry.sequence)
            if entry.receipt is not None:
                entry.receipt.settle(error)
        self._queue.count_lost([e for e, _ in outcome.refused if e.receipt is None])
        for entry in self._in_flight:
            if entry.receipt is not None and entry.sequence not in open_sequences:
                entry.receipt.settle()
