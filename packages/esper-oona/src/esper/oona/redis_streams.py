"""The bus between processes: `redis://` and `rediss://`, one stream per topic.

Publishes directly or through the outbox; consumers read through a `GroupReader`. What is queued or
unread survives a dropped connection; what is unread survives a server that keeps its data.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from esper.contracts import (
    BackendUnavailableError,
    ConfigError,
    OonaMessage,
    Payload,
    TopicNames,
    get_logger,
    seal,
)
from esper.oona.delivery import MAX_BACKLOG, BusDelivery, encode
from esper.oona.options import RedisOptions
from esper.oona.outbox import Entry, Outbox, OutboxQueue, Outcome, backoff
from esper.oona.redis_client import DRIVER_ERRORS, Commands, connect, is_passing, unavailable
from esper.oona.redis_group import (
    MESSAGE_FIELD,
    GroupEntry,
    GroupReader,
    create_group,
    remove_group,
    stream_key,
)

_PATIENCE_SECONDS = 10.0
"""For how long publishing, acknowledging and group changes wait out an outage."""
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

    Each stream keeps about its newest 100,000 entries (MAXLEN ~); a group that falls further behind
    loses the oldest. Methods raise `BackendUnavailableError` when an outage outlasts their patience.
    """

    def __init__(self, options: RedisOptions, *, outbox_queue: OutboxQueue | None = None) -> None:
        self._options = options
        self._client: Commands | None = None
        self._readers: set[GroupReader] = set()
        self._trimmed: Counter[TopicNames] = Counter()
        """What the readers that are done had counted."""
        self._outbox = Outbox(self._send, outbox_queue or OutboxQueue())

    async def open(self) -> None:
        """Connect; does nothing if the client is open."""
        if self._client is not None:
            return
        client = connect(self._options)
        try:
            await client.ping()
        except DRIVER_ERRORS as error:
            await client.aclose()
            raise unavailable(self._options, error) from error
        self._client = client
        self._outbox.start()

    async def close(self) -> None:
        """Send what is queued for up to 3 s, count the rest as lost, disconnect.

        Iterators end, and what they held goes to others.
        """
        await self._outbox.close(_CLOSE_SECONDS)
        client, self._client = self._client, None
        if client is not None:
            await asyncio.gather(*(reader.release() for reader in self._readers))
            await client.aclose()

    async def publish(self, payload: Payload, *, sender_id: str, trace_id: str) -> OonaMessage:
        """Publish, after what was queued before, and return the envelope once the server has it."""
        client = self._opened()
        message = seal(payload, sender_id=sender_id, trace_id=trace_id)
        await self._outbox.flush(_PATIENCE_SECONDS)
        key, fields = stream_key(self._options, message.topic), {MESSAGE_FIELD: encode(message)}
        await self._patiently(
            lambda: client.xadd(key, fields, maxlen=MAX_BACKLOG, approximate=True)
        )
        return message

    def publish_nowait(self, payload: Payload, *, sender_id: str, trace_id: str) -> None:
        """Queue from any thread; sent in the background, in order.

        When a connection breaks with the answer outstanding, messages are sent again, so one may
        arrive twice with the same `event_id`.

        Raises:
            MessageError: if no topic carries such a payload.

        """
        message = seal(payload, sender_id=sender_id, trace_id=trace_id)
        self._outbox.put(message.topic, encode(message))

    async def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything queued so far was sent; tell whether that happened in time."""
        return await self._outbox.flush(timeout_seconds)

    async def create_group(self, topics: Collection[TopicNames], *, group: str) -> None:
        """Let `group` receive what is published to `topics` from now on."""
        client = self._opened()
        for topic in topics:
            key = stream_key(self._options, topic)
            await self._patiently(lambda key=key: create_group(client, key, group, start="$"))

    async def remove_group(self, topics: Collection[TopicNames], *, group: str) -> None:
        """Forget `group` on `topics`."""
        client = self._opened()
        for topic in topics:
            key = stream_key(self._options, topic)
            await self._patiently(lambda key=key: remove_group(client, key, group))

    async def subscribe(
        self, topics: Collection[TopicNames], *, group: str, consumer: str
    ) -> AsyncGenerator[BusDelivery]:
        """Yield messages for `group`; waits out outages.

        What is not acknowledged when the iterator is closed is delivered to others soon; entries
        that are no messages go to the stream `prefix:dead-letters`.
        """
        client = self._opened()
        if not topics:
            raise ConfigError(
                f"consumer {consumer!r} subscribes to no topics; expected at least one"
            )
        reader = GroupReader(client, self._options, topics, group=group, consumer=consumer)
        self._readers.add(reader)
        try:
            while self._client is client:
                for entry in await self._read(reader, client):
                    if reader.is_overdue(entry):
                        break  # it comes again, to this consumer or to another
                    yield self._delivery(client, reader, entry)
        finally:
            self._readers.discard(reader)
            self._trimmed += reader.trimmed
            if self._client is client:
                await reader.release()

    @property
    def lost(self) -> Mapping[TopicNames, int]:
        """Messages not known to have arrived, or trimmed before a group here had read them, by topic."""
        lost = Counter(self._outbox.lost) + self._trimmed
        for reader in self._readers:
            lost += reader.trimmed
        return MappingProxyType(lost)

    def _opened(self) -> Commands:
        if self._client is None:
            raise BackendUnavailableError(
                f"the bus at {self._options.address} is not open; await open() first"
            )
        return self._client

    async def _read(self, reader: GroupReader, client: Commands) -> list[GroupEntry]:
        """Read once, however long the outage before it."""
        pauses = backoff()
        reported = False
        while self._client is client:
            try:
                entries = await reader.read()
            except DRIVER_ERRORS as error:
                if self._client is not client:
                    break
                if not is_passing(error):
                    raise unavailable(self._options, error) from error
                if not reported:
                    _log.warning(
                        "consumer waits for the bus", group=reader.group, reason=str(error)
                    )
                    reported = True
                await asyncio.sleep(next(pauses))
            else:
                if reported:
                    _log.warning("consumer is connected again", group=reader.group)
                return entries
        return []

    def _delivery(self, client: Commands, reader: GroupReader, entry: GroupEntry) -> BusDelivery:
        async def acknowledge() -> None:
            key = stream_key(self._options, entry.topic)
            await self._patiently(lambda: client.xack(key, reader.group, entry.entry_id))
            reader.forget(entry)

        return BusDelivery(
            message=entry.message,
            delivery_count=entry.delivery_count,
            acknowledge=acknowledge,
        )

    async def _patiently(self, call: Callable[[], Awaitable[object]]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        pauses = backoff()
        while True:
            self._opened()
            try:
                await call()
            except DRIVER_ERRORS as error:
                if not is_passing(error) or time.monotonic() > deadline:
                    raise unavailable(self._options, error) from error
                await asyncio.sleep(next(pauses))
            else:
                return

    async def _send(self, batch: Sequence[Entry]) -> Outcome:
        pipeline = self._opened().pipeline(transaction=False)
        for entry in batch:
            key, fields = stream_key(self._options, entry.topic), {MESSAGE_FIELD: entry.data}
            pipeline.xadd(key, fields, maxlen=MAX_BACKLOG, approximate=True)
        try:
            replies = await pipeline.execute(raise_on_error=False)
        except DRIVER_ERRORS as error:
            raise unavailable(self._options, error) from error
        outcome = Outcome(again=[], refused=[])
        for entry, reply in zip(batch, replies, strict=True):
            if isinstance(reply, Exception):
                if is_passing(reply):
                    outcome.again.append(entry)
                else:
                    _log.error("message refused", topic=entry.topic.value, reason=str(reply))
                    outcome.refused.append(entry)
        return outcome
