"""The bus between processes: `redis://` and `rediss://`, one stream per topic.

Publishes directly or through the outbox; consumers read through a `RedisConsumer`. What is queued or
unread survives a dropped connection; what is unread survives a server that keeps its data.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from types import MappingProxyType

from esper.contracts import (
    BusHealth,
    BusTraffic,
    ConfigError,
    DeadLetter,
    GroupLosses,
    Payload,
    Record,
    TopicNames,
    get_logger,
)
from esper.oona.delivery import BusDelivery, check_reading, check_subscription
from esper.oona.envelope import enclose, enclose_many
from esper.oona.journal import Journal
from esper.oona.options import RedisOptions
from esper.oona.outbox import Outbox, Outcome
from esper.oona.outbox_queue import Entry, OutboxQueue
from esper.oona.redis_client import (
    DRIVER_ERRORS,
    PATIENCE_SECONDS,
    Commands,
    connect,
    not_open,
    patiently,
    unavailable,
)
from esper.oona.redis_consumer import RedisConsumer
from esper.oona.redis_group import GroupEntry
from esper.oona.redis_health import look
from esper.oona.redis_keeper import RedisKeeper, read_losses
from esper.oona.redis_letters import list_letters, requeue_letter
from esper.oona.redis_membership import create_group, remove_group
from esper.oona.redis_producer import RedisProducer
from esper.oona.redis_reading import StreamReader, bounds, replay
from esper.oona.traffic import Traffic

_CLOSE_SECONDS = 3.0

_log = get_logger(__name__)


def open_redis_bus(url: str) -> "RedisBus":
    """Return a client, not yet open, for `redis[s]://…[?prefix=esper&reclaim_after_seconds=60]`.

    Raises:
        ConfigError: if the URL or a query parameter is wrong.

    """
    return RedisBus(RedisOptions.from_url(url))


class RedisBus:
    """One client of a Redis server (6.2 or later); implements the port `Bus`.

    Methods raise `BackendUnavailableError` when an outage outlasts their patience.
    """

    def __init__(self, options: RedisOptions, *, outbox_queue: OutboxQueue | None = None) -> None:
        self._options = options
        self._client: Commands | None = None
        self._consumers: set[RedisConsumer] = set()
        self._keeper = RedisKeeper(options)
        self._producer = RedisProducer(options)
        self._traffic = Traffic()
        journal = Journal(options.journal, bus=f"{options.address}/{options.db}/{options.prefix}")
        queue = OutboxQueue(journal=journal) if outbox_queue is None else outbox_queue
        self._outbox = Outbox(self._send, queue)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Connect; does nothing if the client is open.

        Where an event loop ended without `close`, what is queued is sent from the running one.

        Raises:
            ConfigError: if the client is open in another event loop, or the journal cannot be used.

        """
        if self._client is not None and self._is_open_here():
            return
        client = connect(self._options)
        try:
            await client.ping()
            self._outbox.start()
        except BaseException as error:
            await client.aclose()
            if isinstance(error, DRIVER_ERRORS):
                raise unavailable(self._options, error) from error
            raise
        self._client, self._loop = client, asyncio.get_running_loop()
        self._keeper.start(client)

    def _is_open_here(self) -> bool:
        """Tell whether the running loop is the one that the client is open in; forget one that ended."""
        if self._loop is asyncio.get_running_loop():
            return True
        if self._loop is not None and not self._loop.is_closed():
            raise ConfigError(
                f"the client of the bus at {self._options.address} is open in another event loop; "
                "close it there, or make another client for this one"
            )
        self._client = None
        self._consumers.clear()
        return False

    async def close(self) -> None:
        """Send what is queued for up to 3 s, count the rest as lost, disconnect.

        Iterators end, and what they held goes to others.
        """
        await self._outbox.close(_CLOSE_SECONDS)
        client, self._client = self._client, None
        if client is not None:
            await asyncio.gather(*(consumer.stop() for consumer in list(self._consumers)))
            await self._keeper.stop()
            await client.aclose()

    async def publish(
        self, payload: Payload, *, sender_id: str, trace_id: str | None = None
    ) -> str:
        """Publish, after what was queued before, and return the event id once the server has it."""
        self._opened()
        envelope = enclose(payload, sender_id=sender_id, trace_id=trace_id)
        await self._outbox.publish([envelope], PATIENCE_SECONDS)
        return envelope.event_id

    async def publish_many(
        self, payloads: Sequence[Payload], *, sender_id: str, trace_id: str | None = None
    ) -> Sequence[str]:
        """Publish all of them, in order, and return their event ids once the server has every one."""
        self._opened()
        envelopes = enclose_many(payloads, sender_id=sender_id, trace_id=trace_id)
        await self._outbox.publish(envelopes, PATIENCE_SECONDS)
        return [envelope.event_id for envelope in envelopes]

    def publish_nowait(
        self, payload: Payload, *, sender_id: str, trace_id: str | None = None
    ) -> None:
        """Queue from any thread; sent in the background, in order.

        When a connection breaks with the answer outstanding, messages are sent again, and land once.

        Raises:
            MessageError: if no topic carries such a payload.

        """
        self._outbox.put(enclose(payload, sender_id=sender_id, trace_id=trace_id))

    async def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything queued so far was sent; tell whether that happened in time."""
        return await self._outbox.flush(timeout_seconds)

    async def create_group(self, topics: Collection[TopicNames], *, group: str) -> None:
        """Let `group` receive what is published to `topics` from now on."""
        client = self._opened()
        for topic in topics:
            recreated = await self._patiently(
                lambda topic=topic: create_group(client, self._options, topic, group)
            )
            if recreated is not None:
                self._keeper.count_recreated(topic, group, recreated)

    async def remove_group(self, topics: Collection[TopicNames], *, group: str) -> None:
        """Forget `group` on `topics`."""
        client = self._opened()
        for topic in topics:
            await self._patiently(
                lambda topic=topic: remove_group(client, self._options, topic, group)
            )

    async def group_losses(self) -> Sequence[GroupLosses]:
        """Return what each group has lost so far, whoever noticed."""
        client = self._opened()
        return await self._patiently(lambda: read_losses(client, self._options))

    async def subscribe(
        self,
        topics: Collection[TopicNames],
        *,
        group: str,
        consumer: str,
        prefetch: int = 1,
        exclusive: bool = False,
        stop: asyncio.Event | None = None,
    ) -> AsyncGenerator[BusDelivery[GroupEntry]]:
        """Yield messages for `group`; waits out outages.

        What is not acknowledged when the iterator is closed is delivered to others soon; entries
        that are no messages go to the stream `prefix:dead-letters`.
        """
        client = self._opened()
        check_subscription(topics, consumer, prefetch)
        reading = RedisConsumer(
            client,
            self._options,
            topics,
            keeper=self._keeper,
            group=group,
            consumer=consumer,
            prefetch=prefetch,
            traffic=self._traffic,
            exclusive=exclusive,
            is_open=lambda: self._client is client,
        )
        self._consumers.add(reading)
        draining = asyncio.create_task(reading.drain_at(stop)) if stop is not None else None
        try:
            while self._client is client and (delivery := await reading.next()):
                yield delivery
        finally:
            if draining is not None:
                draining.cancel()
            if self._client is client:
                await reading.stop()
            self._consumers.discard(reading)

    async def read(
        self,
        topics: Collection[TopicNames],
        *,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[Record]:
        """Yield what the streams hold, without a group. Raises if an outage outlasts its patience."""
        check_reading(until, follow=follow)
        client = self._opened()
        reader = StreamReader(
            client,
            self._options,
            topics,
            bounds(since, until),
            is_open=lambda: self._client is client,
        )
        async with aclosing(reader.read(follow=follow)) as records:
            async for record in records:
                yield record

    async def replay(
        self, topics: Collection[TopicNames], *, group: str, since: datetime | str | None = None
    ) -> None:
        """Set the group back, so that it gets again all that its streams hold from `since` on."""
        client, (first, _) = self._opened(), bounds(since, None)
        await self._patiently(lambda: replay(client, self._options, topics, group, first))

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        """Return what was set aside, by any group, oldest first."""
        client = self._opened()
        return await self._patiently(lambda: list_letters(client, self._options, limit))

    async def requeue(self, letter_id: str) -> None:
        """Hand a dead letter to its group once more. Raises `NotFoundError`."""
        client = self._opened()
        await self._patiently(lambda: requeue_letter(client, self._options, letter_id))
        for consumer in self._consumers:
            consumer.reader.look_soon()

    async def health(self) -> BusHealth:
        """Return how the bus stands; from any thread, open or not, over a connection of its own."""
        return await look(self._options, num_queued=self._outbox.num_queued, lost=self.lost)

    @property
    def traffic(self) -> BusTraffic:
        """What this client has moved."""
        return self._traffic.read()

    @property
    def lost(self) -> Mapping[TopicNames, int]:
        """Messages not known to have arrived, or found by this client to be lost to a group, by topic."""
        return MappingProxyType(Counter(self._outbox.lost) + self._keeper.losses.copy())

    def _opened(self) -> Commands:
        if self._client is None:
            raise not_open(self._options)
        return self._client

    async def _patiently[T](self, call: Callable[[], Awaitable[T]]) -> T:
        return await patiently(self._options, call, is_open=lambda: self._client is not None)

    async def _send(self, batch: Sequence[Entry]) -> Outcome:
        outcome = await self._producer.append(self._opened(), batch)
        self._traffic.count_published(batch, outcome)
        self._keeper.note_published(entry.envelope.topic for entry in batch)
        return outcome
