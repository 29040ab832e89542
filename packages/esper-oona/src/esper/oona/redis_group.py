"""One consumer of one group on Redis streams: what to hand out next.

Claims one overdue entry of other consumers (XAUTOCLAIM), then reads new ones (XREADGROUP), and keeps
what is read but not yet handed out. `redis_consumer` drives it, waits out outages and hands out.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import cast

from redis.exceptions import ResponseError

from esper.contracts import MessageError, TopicNames, get_logger
from esper.oona.delivery import exhausted
from esper.oona.envelope import Envelope, decode
from esper.oona.options import RedisOptions
from esper.oona.redis_client import Commands, Fields, StreamEntries
from esper.oona.redis_letters import MESSAGE_FIELD, Failed, file_letter, stream_key
from esper.oona.redis_watch import StreamWatch, order
from esper.oona.traffic import GroupTally

_START = b"0-0"
_LONGEST_BLOCK_SECONDS = 1.0
"""A reader looks up at least this often, so that it notices overdue entries."""
_LONGEST_PAUSE_SECONDS = 5.0
_DAY_MS = 86_400_000
_MANY = 1000
"""Entries to look through at a time; the next claim looks again."""

_log = get_logger(__name__)


@dataclass(kw_only=True, eq=False, slots=True)
class GroupEntry:
    """One entry of a stream in the hands of this consumer."""

    key: str
    topic: TopicNames
    entry_id: bytes
    envelope: Envelope
    delivery_count: int
    held_since: float
    """Monotonic seconds of the reading or the latest renewal."""
    is_handed_out: bool = False


async def create_group(client: Commands, key: str, group: str, *, start: str) -> None:
    """Create stream and group; leaves an existing group as it is."""
    try:
        await client.xgroup_create(key, group, id=start, mkstream=True)
    except ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise


async def remove_group(client: Commands, key: str, group: str) -> None:
    """Destroy the group; leaves a stream that does not exist as it is."""
    try:
        await client.xgroup_destroy(key, group)
    except ResponseError as error:
        if "requires the key to exist" not in str(error):
            raise


class GroupReader:
    """Reads for one consumer, and remembers what that consumer has not acknowledged.

    Raises the driver's errors; after one it can simply be asked again.

    Args:
        client: for everything that does not block.
        blocking: a client of its own connection, for the reads that wait.
        options: of the bus.
        topics: what to read.
        group: for whom.
        consumer: by whom.
        tallies: by stream, where to count what is set aside.

    """

    def __init__(
        self,
        client: Commands,
        blocking: Commands,
        options: RedisOptions,
        topics: Collection[TopicNames],
        *,
        group: str,
        consumer: str,
        tallies: Mapping[str, GroupTally],
    ) -> None:
        self.group = group
        self._tallies = tallies
        self.watch = StreamWatch(client, group)
        self._client = client
        self._blocking = blocking
        self._options = options
        self._consumer = consumer
        self._topics = {stream_key(options, topic): topic for topic in topics}
        self._cursor = dict.fromkeys(self._topics, _START)
        self._buffer: deque[GroupEntry] = deque()
        self._held: dict[tuple[str, bytes], GroupEntry] = {}
        self._reclaim_ms = max(1, round(options.reclaim_after_seconds * 1000))
        self.pause_seconds = min(options.reclaim_after_seconds / 4, _LONGEST_PAUSE_SECONDS)
        """How often to look for what is overdue."""
        self._look_at = 0.0
        self._inspect_at = 0.0
        self._may_claim = True

    def pop(self) -> GroupEntry | None:
        """Hand out the next entry that was read and is still ours, if there is one."""
        while self._buffer:
            entry = self._buffer.popleft()
            if self.is_ours(entry):
                entry.is_handed_out = True
                return entry
            self.forget(entry)  # it comes again, to this consumer or to another
        return None

    async def fetch(self, limit: int) -> None:
        """Read what comes next, at most `limit` entries per topic; perhaps nothing, after a moment."""
        try:
            if time.monotonic() >= self._inspect_at:
                await self._inspect()
            # Every other time at most, so that failing messages do not hold up the new ones.
            if self._may_claim and time.monotonic() >= self._look_at:
                self._may_claim = False
                if await self._claim_one():
                    return
                self._look_at = time.monotonic() + self.pause_seconds
            self._may_claim = True
            await self._read_new(limit)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self._recreate_groups()

    def is_ours(self, entry: GroupEntry) -> bool:
        """Tell whether nobody can have taken the entry over since it was read or renewed."""
        return time.monotonic() - entry.held_since < self._options.reclaim_after_seconds

    def forget(self, entry: GroupEntry) -> bool:
        """Note that the entry is no longer in hand; tell whether it was."""
        return self._held.pop((entry.key, entry.entry_id), None) is not None

    async def renew(self, entry: GroupEntry) -> None:
        """Start the time anew after which others get the entry."""
        if (entry.key, entry.entry_id) in self._held and self.is_ours(entry):
            now = time.monotonic()
            await self._set_idle(entry.key, [entry.entry_id], idle_ms=0)
            entry.held_since = now

    async def give_back(
        self, entry: GroupEntry, *, delay_seconds: float = 0.0, counted: bool = True
    ) -> None:
        """Make the entry overdue after the delay, unless others may have it already."""
        if not self.is_ours(entry) or (entry.key, entry.entry_id) not in self._held:
            return
        delay_seconds = min(delay_seconds, self._options.reclaim_after_seconds)
        idle_ms = self._reclaim_ms - round(delay_seconds * 1000) if delay_seconds else _DAY_MS
        retry_count = None if counted else entry.delivery_count - 1
        await self._set_idle(entry.key, [entry.entry_id], idle_ms=idle_ms, retry_count=retry_count)
        self.forget(entry)
        self._look_at = min(self._look_at, time.monotonic() + delay_seconds)

    def look_soon(self) -> None:
        """Look for overdue entries next, because there may be some."""
        self._look_at = 0.0

    async def release_stale(self) -> None:
        """Let others have what waits behind a slow handler, before they take it for abandoned."""
        patience = self._options.reclaim_after_seconds / 2
        if self._buffer and time.monotonic() - self._buffer[0].held_since > patience:
            waiting = list(self._buffer)
            self._buffer.clear()
            await self._release(waiting)

    async def release(self) -> None:
        """Let others have at once what was not acknowledged."""
        held = list(self._held.values())
        self._buffer.clear()
        await self._release(held)

    async def bury(self, entry: GroupEntry, reason: str) -> None:
        """Move the entry to the dead letters."""
        await self._file(
            entry.key,
            entry.entry_id,
            entry.envelope.data,
            reason,
            delivery_count=entry.delivery_count,
        )
        self.forget(entry)

    async def _release(self, entries: Iterable[GroupEntry]) -> None:
        """Make entries overdue for anyone; what was not handed out was not tried."""
        ours = [entry for entry in entries if self.is_ours(entry)]
        order: Callable[[GroupEntry], tuple[str, int]] = lambda entry: (  # noqa: E731
            entry.key,
            -1 if entry.is_handed_out else entry.delivery_count - 1,
        )
        for (key, retry_count), group in groupby(sorted(ours, key=order), order):
            ids = [entry.entry_id for entry in group]
            await self._set_idle(
                key, ids, idle_ms=_DAY_MS, retry_count=None if retry_count < 0 else retry_count
            )
        for entry in entries:
            self.forget(entry)

    async def _set_idle(
        self, key: str, ids: list[bytes], *, idle_ms: int, retry_count: int | None = None
    ) -> None:
        await self._client.xclaim(
            key,
            self.group,
            consumername=self._consumer,
            min_idle_time=0,
            message_ids=ids,
            idle=idle_ms,
            retrycount=retry_count,
            justid=True,
        )

    async def _inspect(self) -> None:
        for key, topic in self._topics.items():
            if not self.watch.knows(key):
                await create_group(self._client, key, self.group, start="$")
            await self.watch.look(key, topic)
        self._inspect_at = time.monotonic() + self.pause_seconds

    async def _recreate_groups(self) -> None:
        positions = {key: self.watch.safe_position(key) for key in self._topics}
        _log.error(
            "consumer group vanished; created anew where it stood, so messages may come twice, and "
            "those that the server no longer has are lost",
            group=self.group,
            positions=positions,
        )
        for key, position in positions.items():
            await create_group(self._client, key, self.group, start=position)

    async def _claim_one(self) -> bool:
        """Take over one overdue entry.

        Only one, and handed out before anything else is claimed: if it kills this process too, its
        neighbours have not been tried once more.
        """
        for key, topic in self._topics.items():
            reply = await self._client.xautoclaim(
                key,
                self.group,
                consumername=self._consumer,
                min_idle_time=self._reclaim_ms,
                start_id=self._cursor[key],
                count=1,
            )
            self._cursor[key] = cast("bytes", reply[0])
            if len(reply) > 2:  # Redis 7 names here what was trimmed in somebody's hands
                self.watch.trimmed[topic] += len(cast("list[bytes]", reply[2]))
            for entry_id, fields in cast("list[tuple[bytes | None, Fields | None]]", reply[1]):
                if entry_id is None:  # trimmed in somebody's hands; Redis 6.2 does not say which
                    await self._drop_vanished(key)
                    return True
                if fields is None:
                    await self._drop_trimmed(key, entry_id)
                    continue
                count = await self._delivery_count(key, entry_id)
                data = fields.get(MESSAGE_FIELD.encode(), b"")
                if count > self._options.max_deliveries:
                    reason = exhausted(count - 1)
                    await self._file(key, entry_id, data, reason, delivery_count=count - 1)
                else:
                    await self._accept(key, [(entry_id, fields)], delivery_count=count)
                return True
        return False

    async def _read_new(self, limit: int) -> None:
        until_look = self._look_at - time.monotonic()
        block_seconds = min(self.pause_seconds, _LONGEST_BLOCK_SECONDS, max(until_look, 0.0))
        reply = await self._blocking.xreadgroup(
            self.group,
            self._consumer,
            streams=dict.fromkeys(self._topics, ">"),
            count=limit,
            block=max(1, round(block_seconds * 1000)),
        )
        for raw_key, found in reply or []:
            await self._accept(raw_key.decode(), found, delivery_count=1)
        if len(reply or []) > 1:
            self._buffer = deque(sorted(self._buffer, key=lambda entry: order(entry.entry_id)))

    async def _accept(self, key: str, found: StreamEntries, *, delivery_count: int) -> None:
        topic = self._topics[key]
        now = time.monotonic()
        for entry_id, fields in found:
            if fields is None:
                await self._drop_trimmed(key, entry_id)
                continue
            data = fields.get(MESSAGE_FIELD.encode())
            try:
                if data is None:
                    raise MessageError(f"an entry of {key} has no field {MESSAGE_FIELD!r}")
                envelope = decode(data, topic=topic)
            except MessageError as error:
                await self._file(
                    key, entry_id, data or b"", str(error), delivery_count=delivery_count
                )
                continue
            entry = GroupEntry(
                key=key,
                topic=topic,
                entry_id=entry_id,
                envelope=envelope,
                delivery_count=delivery_count,
                held_since=now,
            )
            self._held[key, entry_id] = entry
            self._buffer.append(entry)

    async def _drop_trimmed(self, key: str, entry_id: bytes) -> None:
        self.watch.trimmed[self._topics[key]] += 1
        await self._client.xack(key, self.group, entry_id)

    async def _drop_vanished(self, key: str) -> None:
        """Give up what this consumer took over although it is no longer in the stream."""
        ours = await self._client.xpending_range(
            key,
            self.group,
            min=b"-",
            max=b"+",
            count=_MANY,
            consumername=self._consumer,
        )
        for pending in ours:
            entry_id = cast("bytes", pending["message_id"])
            if (key, entry_id) not in self._held and not await self._client.xrange(
                key, min=entry_id, max=entry_id, count=1
            ):
                await self._drop_trimmed(key, entry_id)

    async def _delivery_count(self, key: str, entry_id: bytes) -> int:
        found = await self._client.xpending_range(
            key, self.group, min=entry_id, max=entry_id, count=1
        )
        return cast("int", found[0]["times_delivered"]) if found else 1

    async def _file(
        self, key: str, entry_id: bytes, data: bytes, reason: str, *, delivery_count: int
    ) -> None:
        failed = Failed(
            topic=self._topics[key],
            group=self.group,
            entry_id=entry_id,
            delivery_count=delivery_count,
            data=data,
            reason=reason,
        )
        if await file_letter(self._client, self._options, failed):
            self._tallies[key].dead_lettered += 1
