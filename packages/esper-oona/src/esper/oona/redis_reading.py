"""Streams read without a group, and groups set back: looking at what was published, and replaying it.

`redis_streams` hands out what a `StreamReader` reads. Nothing here acknowledges anything.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import cast

from redis.exceptions import ResponseError

from esper.contracts import Record, TopicNames
from esper.oona.delivery import check_bound, unknown_group
from esper.oona.options import RedisOptions
from esper.oona.redis_client import Commands, patiently
from esper.oona.redis_letters import MESSAGE_FIELD, stream_key

_CHUNK = 100
"""Entries per topic and round trip."""
_LOOK_SECONDS = 0.2
"""A reader that follows asks this often. It has no connection of its own to block."""
_LARGEST_NUMBER = 2**64 - 1
"""Of each part of an entry id."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

type EntryId = tuple[int, int]
"""Milliseconds and number."""

OLDEST: EntryId = (0, 0)
NEWEST: EntryId = (_LARGEST_NUMBER, _LARGEST_NUMBER)


def bounds(since: datetime | str | None, until: datetime | str | None) -> tuple[EntryId, EntryId]:
    """Return the first and the last entry id of a span. Raises `ConfigError` if a bound is none."""
    return _bound(since, OLDEST, 0), _bound(until, NEWEST, _LARGEST_NUMBER)


def parse_id(entry_id: bytes | str) -> EntryId:
    """Return the two numbers of an entry id."""
    text = entry_id if isinstance(entry_id, str) else entry_id.decode()
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number)


class StreamReader:
    """Reads topics in the order of publishing, some entries at a time.

    Args:
        client: reads.
        options: of the bus.
        topics: what to read.
        span: the first and the last entry id.
        is_open: whether the bus still is.

    """

    def __init__(
        self,
        client: Commands,
        options: RedisOptions,
        topics: Collection[TopicNames],
        span: tuple[EntryId, EntryId],
        *,
        is_open: Callable[[], bool],
    ) -> None:
        self._client = client
        self._options = options
        self._is_open = is_open
        first, self._last = span
        self._next = dict.fromkeys(topics, first)
        """By topic, where to read on."""
        self._has_more = dict.fromkeys(topics, True)
        self._found: dict[TopicNames, deque[tuple[EntryId, Record]]] = {t: deque() for t in topics}

    async def read(self, *, follow: bool) -> AsyncGenerator[Record]:
        """Yield the entries of the span; wait for more if told to follow."""
        if not follow and self._last == NEWEST:
            self._last = max([await self._newest(topic) for topic in self._next], default=OLDEST)
        while self._is_open():
            for topic in self._next:
                if self._has_more[topic] and not self._found[topic]:
                    await self._read_chunk(topic)
            waiting = [found for found in self._found.values() if found]
            if waiting:
                _, record = min(waiting, key=lambda found: found[0][0]).popleft()
                yield record
            elif follow:
                await asyncio.sleep(_LOOK_SECONDS)
                self._has_more = dict.fromkeys(self._next, True)
            else:
                return

    async def _newest(self, topic: TopicNames) -> EntryId:
        key = stream_key(self._options, topic)
        found = await patiently(
            self._options, lambda: self._client.xrevrange(key, count=1), is_open=self._is_open
        )
        return parse_id(found[0][0]) if found else OLDEST

    async def _read_chunk(self, topic: TopicNames) -> None:
        first = self._next[topic]
        key = stream_key(self._options, topic)
        found = await patiently(
            self._options,
            lambda: self._client.xrange(key, min=_text(first), max=_text(self._last), count=_CHUNK),
            is_open=self._is_open,
        )
        self._has_more[topic] = len(found) == _CHUNK
        for raw_id, fields in found:
            entry_id = parse_id(raw_id)
            record = Record(
                topic=topic,
                position=raw_id.decode(),
                data=(fields or {}).get(MESSAGE_FIELD.encode(), b""),
            )
            self._found[topic].append((entry_id, record))
            self._next[topic] = _after(entry_id)


async def replay(
    client: Commands,
    options: RedisOptions,
    topics: Collection[TopicNames],
    group: str,
    first: EntryId,
) -> None:
    """Set a group back to before an entry, never forward: what it has not read stays unread.

    Raises:
        NotFoundError: if a topic has no such group; then nothing is set back.

    """
    reached = {topic: await _reached(client, options, topic, group) for topic in topics}
    for topic, last_delivered in reached.items():
        if first <= last_delivered:
            key = stream_key(options, topic)
            await client.xgroup_setid(key, group, _text(_before(first)))


async def _reached(
    client: Commands, options: RedisOptions, topic: TopicNames, group: str
) -> EntryId:
    """Return the newest entry id that the group was given."""
    found: list[Mapping[str, bytes | int | None]] = []
    try:
        found.extend(await client.xinfo_groups(stream_key(options, topic)))
    except ResponseError as error:
        if "no such key" not in str(error):
            raise
    for row in found:
        if row["name"] == group.encode():
            return parse_id(cast("bytes", row["last-delivered-id"]))
    raise unknown_group(topic, group)


def _bound(bound: datetime | str | None, default: EntryId, number: int) -> EntryId:
    position = check_bound(bound, pattern=r"\d{1,20}-\d{1,20}")
    if position is not None:
        return min(parse_id(position), NEWEST)
    if isinstance(bound, datetime):
        return max(0, (bound - _EPOCH) // timedelta(milliseconds=1)), number
    return default


def _after(entry_id: EntryId) -> EntryId:
    milliseconds, number = entry_id
    return (milliseconds, number + 1) if number < _LARGEST_NUMBER else (milliseconds + 1, 0)


def _before(entry_id: EntryId) -> EntryId:
    milliseconds, number = entry_id
    if number:
        return milliseconds, number - 1
    return (milliseconds - 1, _LARGEST_NUMBER) if milliseconds else OLDEST


def _text(entry_id: EntryId) -> str:
    return f"{entry_id[0]}-{entry_id[1]}"
