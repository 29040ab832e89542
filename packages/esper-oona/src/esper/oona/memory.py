"""The bus inside one process: `memory://` and `memory://NAME`.

Clients of one name share a broker across threads and event loops. Payloads are frozen, so they are handed
over as they are; what JSON does to them over Redis is the identity (tests/test_envelope.py).
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from types import MappingProxyType

from esper.contracts import (
    BackendUnavailableError,
    BusHealth,
    BusTraffic,
    DeadLetter,
    GroupLosses,
    Payload,
    Record,
    TopicNames,
    utc_now,
)
from esper.oona.broker import Broker, shared_broker
from esper.oona.delivery import (
    SETTLE_LOOK_SECONDS,
    BusDelivery,
    check_reading,
    check_subscription,
    unknown_group,
)
from esper.oona.envelope import enclose, enclose_many
from esper.oona.group_queue import Consumer, Item, Waiter
from esper.oona.options import MemoryOptions
from esper.oona.outbox_queue import OutboxQueue
from esper.oona.topic_log import Span
from esper.oona.traffic import Traffic

_CALLS_IN_A_ROW = 32
_MEASURED_EVERY = 16
"""Latency of one in so many messages is measured: looking at the clock costs a tenth of handling one."""
_LOOK_SECONDS = 1.0
"""A reader that follows looks this often whether its client was closed."""


def open_memory_bus(url: str) -> "MemoryBus":
    """Return a client, not yet open, for `memory://[NAME][?reclaim_after_seconds=60]`.

    Raises:
        ConfigError: if the URL or a query parameter is wrong.

    """
    return MemoryBus(MemoryOptions.from_url(url))


class MemoryBus:
    """One client of an in-memory broker; implements the port `Bus`.

    The broker lasts as long as one of its clients is open.
    """

    def __init__(self, options: MemoryOptions) -> None:
        self._options = options
        self._broker: Broker | None = None
        self._shared = ExitStack()
        self._unsent = OutboxQueue()
        """Never opened: it only counts what comes while the client is closed."""
        self._dropped: Counter[TopicNames] = Counter()
        """What the broker had dropped when the client was closed."""
        self._consumers: set[Consumer] = set()
        self._num_calls = 0
        self._traffic = Traffic()

    async def open(self) -> None:
        """Join the broker; does nothing if the client is open."""
        if self._broker is None:
            self._broker = self._shared.enter_context(
                shared_broker(self._options.name, self._options.retention)
            )

    async def close(self) -> None:
        """Leave the broker; iterators end, and what they held goes to others."""
        broker, self._broker = self._broker, None
        if broker is not None:
            self._dropped = broker.dropped
        for consumer in self._consumers:
            if broker is not None:
                broker.release(consumer)
            consumer.wake()
        self._shared.close()

    async def publish(
        self, payload: Payload, *, sender_id: str, trace_id: str | None = None
    ) -> str:
        """Publish and return the event id."""
        envelope = enclose(payload, sender_id=sender_id, trace_id=trace_id)
        self._opened().publish([envelope])
        self._traffic.published[envelope.topic] += 1
        await self._give_way()
        return envelope.event_id

    async def publish_many(
        self, payloads: Sequence[Payload], *, sender_id: str, trace_id: str | None = None
    ) -> Sequence[str]:
        """Publish all of them, in order, and return their event ids."""
        envelopes = enclose_many(payloads, sender_id=sender_id, trace_id=trace_id)
        self._opened().publish(envelopes)
        self._traffic.published.update([envelope.topic for envelope in envelopes])
        await asyncio.sleep(0)
        return [envelope.event_id for envelope in envelopes]

    def publish_nowait(
        self, payload: Payload, *, sender_id: str, trace_id: str | None = None
    ) -> None:
        """Publish from any thread; lost only while the client is not open.

        Raises:
            MessageError: if no topic carries such a payload.

        """
        envelope = enclose(payload, sender_id=sender_id, trace_id=trace_id)
        broker = self._broker
        if broker is None:
            self._unsent.put(envelope)
        else:
            broker.publish([envelope])
            self._traffic.published[envelope.topic] += 1

    async def flush(self, timeout_seconds: float) -> bool:  # noqa: ARG002
        """Return True: nothing is ever queued on the way to the broker."""
        return True

    async def create_group(self, topics: Collection[TopicNames], *, group: str) -> None:
        """Let `group` receive what is published to `topics` from now on."""
        self._opened().create_group(topics, group)

    async def remove_group(self, topics: Collection[TopicNames], *, group: str) -> None:
        """Forget `group` on `topics`."""
        self._opened().remove_group(topics, group)

    async def subscribe(
        self,
        topics: Collection[TopicNames],
        *,
        group: str,
        consumer: str,
        prefetch: int = 1,
        exclusive: bool = False,
        stop: asyncio.Event | None = None,
    ) -> AsyncGenerator[BusDelivery[Item]]:
        """Yield messages for `group`, across topics in the order in which they were published.

        What is not acknowledged when the iterator is closed is delivered to others at once. Nothing
        is fetched ahead, whatever `prefetch` says: nothing is far away.
        """
        broker = self._opened()
        check_subscription(topics, consumer, prefetch)
        reader = Consumer(topics, group, consumer, self._traffic, exclusive=exclusive)
        holder = _MemoryHolder(broker, reader, self._options, self._give_way)
        stopping = asyncio.create_task(_wake_at(stop, reader)) if stop is not None else None
        self._consumers.add(reader)
        broker.create_group(topics, group)
        try:
            while self._broker is broker:
                if stop is not None and stop.is_set():
                    if not broker.holds(reader, self._options.reclaim_after_seconds):
                        break
                    await asyncio.sleep(SETTLE_LOOK_SECONDS)
                    continue
                taken = broker.take(
                    reader,
                    reclaim_after_seconds=self._options.reclaim_after_seconds,
                    max_deliveries=self._options.max_deliveries,
                )
                if isinstance(taken, Item):
                    tally = reader.tallies[taken.envelope.topic]
                    tally.received += 1
                    if taken.delivery_count > 1:
                        tally.redelivered += 1
                    yield BusDelivery(
                        taken.envelope, taken.delivery_count, entry=taken, holder=holder
                    )
                else:
                    await reader.wait(taken)
        finally:
            if stopping is not None:
                stopping.cancel()
            self._consumers.discard(reader)
            broker.release(reader)

    async def read(
        self,
        topics: Collection[TopicNames],
        *,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[Record]:
        """Yield what was published, without a group; each topic keeps its newest 10,000."""
        check_reading(until, follow=follow)
        broker = self._opened()
        span = Span.of(since, until)
        if not follow and until is None:
            span = replace(span, last_sequence=broker.last_sequence)
        waiter = Waiter() if follow else None
        while self._broker is broker:
            found = broker.read(topics, span, waiter)
            for sequence, envelope in found:
                yield Record(topic=envelope.topic, position=str(sequence), data=envelope.data)
                span = replace(span, first_sequence=sequence + 1)
            if not found:
                if waiter is None:
                    return
                await waiter.wait(_LOOK_SECONDS)

    async def replay(
        self, topics: Collection[TopicNames], *, group: str, since: datetime | str | None = None
    ) -> None:
        """Hand the group again what it has acknowledged; of what is kept, from `since` on."""
        if topic := self._opened().replay(topics, group, Span.of(since, None)):
            raise unknown_group(topic, group)

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        """Return what was set aside, by any group, oldest first."""
        return self._opened().dead_letters(limit)

    async def requeue(self, letter_id: str) -> None:
        """Hand a dead letter to its group once more. Raises `NotFoundError`."""
        self._opened().requeue(letter_id)

    async def health(self) -> BusHealth:
        """Return how the broker stands; from any thread, open or not."""
        address, lost = f"memory://{self._options.name}", dict(self.lost)
        broker = self._broker
        if broker is None:
            problem = str(_not_open(self._options))
            return BusHealth(address=address, is_reachable=False, problem=problem, lost=lost)
        asked_at = time.monotonic()
        losses = broker.group_losses()
        topics = tuple(topic.with_losses(losses) for topic in broker.health())
        return BusHealth(
            address=address,
            is_reachable=True,
            server="memory",
            version=version("esper-oona"),
            round_trip_seconds=time.monotonic() - asked_at,
            topics=topics,
            num_dead_letters=broker.num_letters(),
            lost=lost,
        )

    async def group_losses(self) -> Sequence[GroupLosses]:
        """Return what each group of the broker lost so far."""
        return self._opened().group_losses()

    @property
    def traffic(self) -> BusTraffic:
        """What this client has moved; the latency of one in sixteen messages is measured."""
        return self._traffic.read()

    @property
    def lost(self) -> Mapping[TopicNames, int]:
        """Messages published while the client was not open, or dropped by the broker, by topic."""
        dropped = self._dropped if self._broker is None else self._broker.dropped
        return MappingProxyType(Counter(self._unsent.lost) + dropped)

    async def _give_way(self) -> None:
        """Let other tasks of the loop run now and then, as waiting for a real server would."""
        self._num_calls += 1
        if self._num_calls % _CALLS_IN_A_ROW == 0:
            await asyncio.sleep(0)

    def _opened(self) -> Broker:
        if self._broker is None:
            raise _not_open(self._options)
        return self._broker


def _not_open(options: MemoryOptions) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"the bus memory://{options.name} is not open; await open() first"
    )


async def _wake_at(stop: asyncio.Event, reader: Consumer) -> None:
    await stop.wait()
    reader.wake()


@dataclass(frozen=True)
class _MemoryHolder:
    """What one consumer's deliveries report to; implements `Holder`."""

    broker: Broker
    consumer: Consumer
    options: MemoryOptions
    give_way: Callable[[], Awaitable[None]]

    @property
    def hold_seconds(self) -> float:
        return self.options.reclaim_after_seconds

    @property
    def max_deliveries(self) -> int:
        return self.options.max_deliveries

    def position(self, entry: Item) -> str:
        return str(entry.sequence)

    async def attempt(self, entry: Item, *, counted: bool) -> int:
        return self.broker.attempt(
            entry, self.consumer, counted=counted, max_deliveries=self.options.max_deliveries
        )

    async def acknowledge(self, entry: Item) -> None:
        self.broker.acknowledge(entry)
        tally = self.consumer.tallies[entry.envelope.topic]
        if not tally.acknowledged % _MEASURED_EVERY:
            tally.count_latency((utc_now() - entry.envelope.timestamp).total_seconds())
        tally.acknowledged += 1
        await self.give_way()

    async def give_back(self, entry: Item, *, delay_seconds: float, counted: bool) -> None:
        self.broker.give_back(entry, self.consumer, delay_seconds=delay_seconds, counted=counted)

    async def bury(self, entry: Item, reason: str) -> None:
        if self.broker.bury(entry, reason):
            self.consumer.tallies[entry.envelope.topic].dead_lettered += 1

    async def renew(self, entry: Item) -> None:
        self.broker.renew(entry, self.consumer)
