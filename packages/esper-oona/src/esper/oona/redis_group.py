"""One consumer of one group on Redis streams: what to hand out next.

Reads overdue entries of other consumers first (XAUTOCLAIM), then new ones (XREADGROUP), and hands
decoded messages to `RedisBus.subscribe`. Raises the driver's errors; the bus waits out outages.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from redis.exceptions import ResponseError

from esper.contracts import MessageError, OonaMessage, TopicNames, get_logger
from esper.oona.delivery import MAX_BACKLOG, decode
from esper.oona.options import RedisOptions
from esper.oona.redis_client import DRIVER_ERRORS, Commands, Fields, StreamEntries

MESSAGE_FIELD = "message"
"""The one field of every stream entry: the envelope as JSON."""

_START = b"0-0"
_MAX_DEAD_LETTERS = 10_000
_LONGEST_BLOCK_SECONDS = 1.0
"""A reader looks up at least this often, so that it notices overdue entries and a closed bus."""
_LONGEST_RECLAIM_PAUSE_SECONDS = 5.0
_RELEASE_SECONDS = 2.0
_DAY_MS = 86_400_000

_log = get_logger(__name__)


def stream_key(options: RedisOptions, topic: TopicNames) -> str:
    """Return the key of a topic's stream."""
    return f"{options.prefix}:{topic.value}"


@dataclass(frozen=True, kw_only=True)
class GroupEntry:
    """One entry of a stream in the hands of this consumer."""

    topic: TopicNames
    entry_id: bytes
    message: OonaMessage
    delivery_count: int
    read_at: float
    """Monotonic seconds."""


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

    Entries are read one per topic at a time, so that consumers of a group share slow work evenly.
    """

    def __init__(
        self,
        client: Commands,
        options: RedisOptions,
        topics: Collection[TopicNames],
        *,
        group: str,
        consumer: str,
    ) -> None:
        self.group = group
        self._client = client
        self._options = options
        self._consumer = consumer
        self._topics = {stream_key(options, topic): topic for topic in topics}
        self._position: dict[str, str] = {}
        """The last entry that the group was handed, by stream; where a vanished group begins anew."""
        self._cursor = dict.fromkeys(self._topics, _START)
        self.trimmed: Counter[TopicNames] = Counter()
        """Entries known to have gone before the group had read or acknowledged them, by topic."""
        self._told: dict[str, tuple[bytes, int]] = {}
        """By stream, where the group stood when entries were last counted as trimmed, and how many."""
        self._held: dict[tuple[TopicNames, bytes], float] = {}
        self._reclaim_ms = max(1, round(options.reclaim_after_seconds * 1000))
        self._reclaim_pause = min(options.reclaim_after_seconds / 4, _LONGEST_RECLAIM_PAUSE_SECONDS)
        self._reclaim_at = 0.0

    async def read(self) -> list[GroupEntry]:
        """Return the next entries, oldest first; none if nothing came for a moment."""
        if not self._position:
            await self._join()
        try:
            if time.monotonic() >= self._reclaim_at:
                await self._look_for_trimmed()
                if entries := await self._read_overdue():
                    return entries
                self._reclaim_at = time.monotonic() + self._reclaim_pause
            return await self._read_new()
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self._recreate_groups()
            return []

    def is_overdue(self, entry: GroupEntry) -> bool:
        """Tell whether others may have taken the entry over since it was read."""
        return time.monotonic() - entry.read_at >= self._options.reclaim_after_seconds

    def forget(self, entry: GroupEntry) -> None:
        """Note that the entry was acknowledged."""
        self._held.pop((entry.topic, entry.entry_id), None)

    async def release(self) -> None:
        """Let others have at once what was not acknowledged.

        Best effort: where the server is away, they get it when it is overdue.
        """
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._call_idle()
        except DRIVER_ERRORS as error:
            _log.warning("messages stay with a closed consumer", reason=str(error))
        self._held.clear()

    async def _call_idle(self) -> None:
        """Tell the server that what this consumer holds was idle for a day: overdue for anyone."""
        overdue_before = time.monotonic() - self._options.reclaim_after_seconds
        for key, topic in self._topics.items():
            ids = [
                entry_id
                for (held_topic, entry_id), read_at in self._held.items()
                if held_topic is topic and read_at > overdue_before
            ]
            if ids:
                await self._client.xclaim(
                    key,
                    self.group,
                    consumername=self._consumer,
                    min_idle_time=0,
                    message_ids=ids,
                    idle=_DAY_MS,
                    justid=True,
                )

    async def _join(self) -> None:
        position: dict[str, str] = {}
        for key in self._topics:
            await create_group(self._client, key, self.group, start="$")
            for info in await self._client.xinfo_groups(key):
                if info["name"] == self.group.encode():
                    position[key] = cast("bytes", info["last-delivered-id"]).decode()
        self._position = position

    async def _recreate_groups(self) -> None:
        _log.error(
            "consumer group vanished; created anew", group=self.group, keys=sorted(self._topics)
        )
        for key in self._topics:
            await create_group(self._client, key, self.group, start=self._position[key])

    async def _look_for_trimmed(self) -> None:
        """Count what the server dropped (MAXLEN) although the group had not read it."""
        for key, topic in self._topics.items():
            with suppress(ResponseError):  # no such stream: reading will say so
                stream = await self._client.xinfo_stream(key)
                for group in await self._client.xinfo_groups(key):
                    if group["name"] == self.group.encode():
                        self._count_trimmed(key, topic, num_trimmed(stream, group), group)

    def _count_trimmed(
        self, key: str, topic: TopicNames, count: int, group: Mapping[str, object]
    ) -> None:
        position = cast("bytes", group["last-delivered-id"])
        told_at, told = self._told.get(key, (position, 0))
        new = count - told if told_at == position else count
        if new <= 0:
            return
        self._told[key] = (position, count)
        self.trimmed[topic] += new
        _log.error(
            "a group reads too slowly; its oldest messages were dropped",
            group=self.group,
            key=key,
            at_least=new,
        )

    async def _read_overdue(self) -> list[GroupEntry]:
        entries: list[GroupEntry] = []
        for key in self._topics:
            reply = await self._client.xautoclaim(
                key,
                self.group,
                consumername=self._consumer,
                min_idle_time=self._reclaim_ms,
                start_id=self._cursor[key],
                count=1,
            )
            self._cursor[key] = cast("bytes", reply[0])
            claimed = cast("StreamEntries", reply[1])
            if len(reply) > 2:  # Redis 7 names here what was trimmed in somebody's hands
                self.trimmed[self._topics[key]] += len(cast("list[bytes]", reply[2]))
            entries += await self._accept(key, claimed, redelivered=True)
        return entries

    async def _read_new(self) -> list[GroupEntry]:
        block_seconds = min(self._reclaim_pause, _LONGEST_BLOCK_SECONDS)
        reply = await self._client.xreadgroup(
            self.group,
            self._consumer,
            streams=dict.fromkeys(self._topics, ">"),
            count=1,
            block=max(1, round(block_seconds * 1000)),
        )
        entries: list[GroupEntry] = []
        for raw_key, found in reply or []:
            key = raw_key.decode()
            if found:
                self._position[key] = found[-1][0].decode()
            entries += await self._accept(key, found, redelivered=False)
        return sorted(entries, key=lambda entry: _order(entry.entry_id))

    async def _accept(
        self, key: str, found: StreamEntries, *, redelivered: bool
    ) -> list[GroupEntry]:
        accepted: list[GroupEntry] = []
        topic = self._topics[key]
        for entry_id, fields in found:
            if fields is None:  # trimmed while it was pending
                self.trimmed[topic] += 1
                await self._client.xack(key, self.group, entry_id)
                continue
            try:
                message = decode(_envelope(key, fields), topic=topic)
            except MessageError as error:
                await self._bury(key, entry_id, fields, str(error))
                continue
            count = await self._delivery_count(key, entry_id) if redelivered else 1
            now = time.monotonic()
            self._held[topic, entry_id] = now
            accepted.append(
                GroupEntry(
                    topic=topic,
                    entry_id=entry_id,
                    message=message,
                    delivery_count=count,
                    read_at=now,
                )
            )
        return accepted

    async def _delivery_count(self, key: str, entry_id: bytes) -> int:
        found = await self._client.xpending_range(
            key, self.group, min=entry_id, max=entry_id, count=1
        )
        return found[0]["times_delivered"] if found else 1

    async def _bury(self, key: str, entry_id: bytes, fields: Fields, reason: str) -> None:
        """Move an entry that is no message to the dead letters, so that the group goes on."""
        _log.error("undecodable message", key=key, entry_id=entry_id.decode(), reason=reason)
        pipeline = self._client.pipeline(transaction=False)
        letter: dict[str, str | bytes] = {
            "key": key,
            "group": self.group,
            "entry_id": entry_id,
            "reason": reason,
            MESSAGE_FIELD: fields.get(MESSAGE_FIELD.encode(), b""),
        }
        dead_letters = f"{self._options.prefix}:dead-letters"
        pipeline.xadd(dead_letters, letter, maxlen=_MAX_DEAD_LETTERS, approximate=True)
        pipeline.xack(key, self.group, entry_id)
        await pipeline.execute(raise_on_error=True)


def num_trimmed(stream: Mapping[str, object], group: Mapping[str, object]) -> int:
    """Return how many entries of a stream were trimmed before a group had read them.

    Exact from Redis 7 on. Redis 6 does not count entries, so a full stream that begins after the
    group's position counts as one.

    Args:
        stream: the server's answer to XINFO STREAM.
        group: its answer to XINFO GROUPS for this group, asked afterwards.

    """
    first = cast("tuple[bytes, object] | None", stream.get("first-entry"))
    position = cast("bytes", group["last-delivered-id"])
    if first is not None and _order(first[0]) <= _order(position):
        return 0
    length = cast("int", stream["length"])
    added, read = stream.get("entries-added"), group.get("entries-read")
    if isinstance(added, int) and isinstance(read, int):
        return max(0, added - read - length)
    return int(length >= MAX_BACKLOG)


def _envelope(key: str, fields: Fields) -> bytes:
    try:
        return fields[MESSAGE_FIELD.encode()]
    except KeyError:
        raise MessageError(f"an entry of {key} has no field {MESSAGE_FIELD!r}") from None


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)
