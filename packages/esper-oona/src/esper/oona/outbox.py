"""Sends what publishers queue: batches, in order, through outages, each message until it is settled.

Drains an `OutboxQueue` in the event loop of the client; a bus says how a batch is sent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from esper.contracts import BackendUnavailableError, TopicNames, get_logger
from esper.oona.envelope import Envelope
from esper.oona.outbox_queue import Entry, OutboxQueue, Receipt

_BATCH = 250
"""Messages per round trip; larger batches gain little and are resent whole when a connection breaks."""

_EXPIRE_SECONDS = 0.25
"""How often the deadlines of those who wait are looked at."""

_log = get_logger(__name__)


def backoff(first_seconds: float = 0.05, longest_seconds: float = 2.0) -> Iterator[float]:
    """Yield pauses that double up to the longest, for ever.

    No jitter: the driver's own draws from the global random stream, which belongs to the host.
    """
    pause = first_seconds
    while True:
        yield pause
        pause = min(2 * pause, longest_seconds)


class Outcome(NamedTuple):
    """What became of a batch; everything that is in neither list was accepted."""

    again: list[Entry]
    """Not accepted now; worth another try."""
    refused: list[tuple[Entry, Exception]]
    """Will never be accepted, and why."""
    trouble: BackendUnavailableError | None = None
    """Why the first are not accepted now."""


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
        self._waiting: set[Receipt] = set()
        self._expiry: asyncio.TimerHandle | None = None
        self._progress = asyncio.Condition()
        self._trouble = BackendUnavailableError("the bus is slow")

    @property
    def lost(self) -> Mapping[TopicNames, int]:
        """Messages that never reached the bus, by topic."""
        return self._queue.lost

    @property
    def num_queued(self) -> int:
        """Messages that are on their way to the bus."""
        return len(self._queue) + len(self._in_flight)

    def start(self) -> None:
        """Begin to take and send messages, in the running loop.

        A loop that ended without `close` has left what it was sending: that goes first.

        Raises:
            ConfigError: if the journal's folder cannot be used.

        """
        self._queue.open()
        self._loop = asyncio.get_running_loop()
        self._wake, self._progress = asyncio.Event(), asyncio.Condition()
        self._waiting, self._expiry = set(), None
        self._task = self._loop.create_task(self._drain(), name="oona-outbox")

    def put(self, envelope: Envelope) -> None:
        """Queue one message from any thread; never blocks or raises."""
        if self._queue.put(envelope) and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._wake.set)
            except RuntimeError:  # the loop is closed: nobody will ever drain this queue
                self._queue.abandon()

    async def publish(self, messages: Sequence[Envelope], timeout_seconds: float) -> None:
        """Send messages, behind everything queued before, and wait until all have arrived.

        Raises:
            BackendUnavailableError: if that takes too long, or its child that says why; what is not
                on its way is withdrawn, and what is may still arrive.

        """
        if not messages:
            return
        loop = asyncio.get_running_loop()
        receipt = Receipt(len(messages), loop.time() + timeout_seconds)
        self._queue.put_awaited(messages, receipt)
        self._wake.set()
        self._waiting.add(receipt)
        if self._expiry is None:  # one timer for all: one for each costs as much as sending it
            self._expiry = loop.call_later(_EXPIRE_SECONDS, self._expire)
        try:
            await receipt.done
        finally:
            self._waiting.discard(receipt)

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
        """Send what is queued, keep the rest in the journal or count it as lost, stop."""
        if self._task is None:
            return
        await self.flush(timeout_seconds)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        self._queue.abandon(self._in_flight)
        self._in_flight = ()
        if lost := self.lost:
            _log.warning("messages were lost", **{topic.value: n for topic, n in lost.items()})

    def _expire(self) -> None:
        """Tell those who have waited too long, and look again as long as anybody waits."""
        loop = asyncio.get_running_loop()
        for receipt in self._waiting:
            if receipt.deadline <= loop.time() and not receipt.done.done():
                receipt.done.set_exception(
                    type(self._trouble)(
                        f"{receipt.num_messages} message(s) are not known to have arrived in time: "
                        f"{self._trouble}. Publish again what matters: what was on its way may still "
                        "arrive, so a handler could see it twice"
                    )
                )
        self._expiry = loop.call_later(_EXPIRE_SECONDS, self._expire) if self._waiting else None

    def _is_settled(self, target: int) -> bool:
        oldest = self._in_flight[0].sequence if self._in_flight else self._queue.oldest_sequence()
        return oldest is None or oldest > target

    async def _drain(self) -> None:
        if self._in_flight:
            await self._deliver(self._in_flight)
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
                outcome = await self._send_and_prepare(self._in_flight)
                if outcome.trouble is not None:
                    self._trouble = outcome.trouble
                self._settle(outcome)
                self._in_flight = outcome.again
            except BackendUnavailableError as error:
                self._trouble = error
            if not self._in_flight:
                break
            if not reported:
                _log.warning("messages wait for the bus", reason=str(self._trouble))
                reported = True
            await asyncio.sleep(next(pauses))
        if reported:
            _log.warning("the bus takes messages again")

    async def _send_and_prepare(self, batch: Sequence[Entry]) -> Outcome:
        """Send a batch, and encode the next one, if there is one, while the server is at work."""
        if self._queue.is_empty:
            return await self._send(batch)  # a task of its own would cost each lone message latency
        sending = asyncio.ensure_future(self._send(batch))
        try:
            await asyncio.sleep(0)  # it is on its way after this
            self._queue.prepare(_BATCH)
            return await sending
        finally:
            sending.cancel()  # does nothing unless we were cancelled

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
