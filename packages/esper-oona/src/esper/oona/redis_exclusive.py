"""The reader of an exclusive subscription: alone for its group, in the order of the streams.

`RedisConsumer` drives it in place of a plain `GroupReader`. Under the lease it first takes over all that
is pending, oldest first, then reads what is new. Tries are counted when they begin, so that what only
waited in a killed consumer is not blamed.
"""

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import cast

from redis.exceptions import ResponseError

from esper.contracts import TopicNames
from esper.oona.delivery import exhausted
from esper.oona.options import RedisOptions
from esper.oona.redis_client import Commands, Fields
from esper.oona.redis_group import GroupEntry, GroupReader
from esper.oona.redis_keeper import RedisKeeper
from esper.oona.redis_lease import Lease
from esper.oona.redis_letters import MESSAGE_FIELD
from esper.oona.redis_script import run_script
from esper.oona.traffic import GroupTally

_BATCH = 100
"""Pending entries that are taken over in one round trip."""
_TURN_SECONDS = 0.5
"""Who waits for its turn asks this often, or when the lease would run out."""
_LONGEST_BLOCK_SECONDS = 1.0

_READ = """
local num = #KEYS / 2
local command = {'XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS'}
for i = 1, num do
  if redis.call('GET', KEYS[i]) ~= ARGV[1] then return false end
  command[#command + 1] = KEYS[num + i]
end
for i = 1, num do command[#command + 1] = '>' end
return redis.call(unpack(command)) or {}
"""

_TAKE_OVER = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local stream, group, limit = KEYS[2], ARGV[2], tonumber(ARGV[6])
local found = redis.call('XPENDING', stream, group, 'IDLE', ARGV[4], ARGV[5], '+', limit)
local taken, num_gone = {}, 0
for _, row in ipairs(found) do
  local id, count = row[1], row[4]
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if entry then
    redis.call('XCLAIM', stream, group, ARGV[3], 0, id, 'RETRYCOUNT', count, 'JUSTID')
    taken[#taken + 1] = {id, count, entry[2]}
  else
    redis.call('XACK', stream, group, id)
    num_gone = num_gone + 1
  end
end
return {#found == limit and '(' .. found[limit][1] or '', num_gone, taken}
"""
"""Claims without counting; what is claimed is renewed, too, if it is ours already."""

_FROM_THE_START = b"-"


class ExclusiveReader(GroupReader):
    """Reads for the one active consumer of a group; raises the driver's errors."""

    def __init__(
        self,
        client: Commands,
        blocking: Commands,
        options: RedisOptions,
        topics: Collection[TopicNames],
        *,
        keeper: RedisKeeper,
        group: str,
        consumer: str,
        tallies: Mapping[str, GroupTally],
    ) -> None:
        super().__init__(
            client,
            blocking,
            options,
            topics,
            keeper=keeper,
            group=group,
            consumer=consumer,
            tallies=tallies,
        )
        self.lease = Lease(client, options, self._topics.values(), group)
        self._unrecovered: dict[str, bytes] = {}
        """By stream, from where on pending entries have yet to be taken over."""
        self._uncounted: set[tuple[str, bytes]] = set()
        """Taken over, and not tried here yet."""
        self._newest: dict[str, str] = {}
        """By stream, an entry id up to which there was nothing left to read."""

    def pop(self) -> GroupEntry | None:
        """Hand out the next entry, if the lease is ours."""
        return self._buffer.popleft() if self._buffer and self.lease.is_held else None

    def is_ours(self, entry: GroupEntry) -> bool:
        """Tell whether nobody can have taken the entry over."""
        return self.lease.is_held and self._held.get((entry.key, entry.entry_id)) is entry

    def forget(self, entry: GroupEntry) -> bool:
        """Note that the entry is no longer in hand; tell whether it was."""
        self._uncounted.discard((entry.key, entry.entry_id))
        return super().forget(entry)

    async def attempt(self, entry: GroupEntry, *, counted: bool) -> int:
        """Count a try on the server; return the tries so far, 0 if it is not to be handled."""
        if not self.is_ours(entry):
            return 0
        if not counted:
            return entry.delivery_count
        place = entry.key, entry.entry_id
        count = entry.delivery_count + entry.is_handed_out
        if count > self._options.max_deliveries:
            await self.bury(entry, exhausted(entry.delivery_count))
            return 0
        is_counted = not entry.is_handed_out and place not in self._uncounted  # by reading
        if not is_counted and not await self._set_idle(
            entry.key, [entry.entry_id], idle_ms=0, retry_count=count
        ):
            self.forget(entry)  # it was acknowledged
            return 0
        self._uncounted.discard(place)
        entry.is_handed_out, entry.delivery_count = True, count
        return count

    async def release_stale(self) -> None:
        """Keep what waits: nobody else may have it before us."""

    async def release(self) -> None:
        """Give back what was not acknowledged, then let another consumer take over."""
        await super().release()
        await self.lease.release()

    async def fetch(self, limit: int) -> None:
        """Read what comes next, once it is our turn; perhaps nothing, after a moment."""
        if not self.lease.is_held:
            await self._begin()
            return
        try:
            if time.monotonic() >= self._inspect_at:
                await self._inspect()
            if self._unrecovered:
                await self._recover()
            elif time.monotonic() >= self._look_at:
                await self._look()
            elif not await self._read(limit):
                await self._wait()
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            for topic in self._topics.values():
                await self._watch.create(topic)

    async def _begin(self) -> None:
        """Try to take the lease; begin with what is pending."""
        self.lease.lose()
        self._buffer.clear()
        self._held.clear()
        self._uncounted.clear()
        seconds_left = await self.lease.take()
        if seconds_left:
            await asyncio.sleep(min(seconds_left, _TURN_SECONDS))
            return
        await self._inspect()
        self._unrecovered = dict.fromkeys(self._topics, _FROM_THE_START)
        for key in self._topics:
            stream = await self._client.xinfo_stream(key)
            self._newest[key] = cast("bytes", stream["last-generated-id"]).decode()

    async def _recover(self) -> None:
        """Take over some of what is pending on one stream, oldest first."""
        key, cursor = next(iter(self._unrecovered.items()))
        self._unrecovered[key] = await self._take_over_pending(key, cursor, idle_ms=0)
        if not self._unrecovered[key]:
            del self._unrecovered[key]

    async def _look(self) -> None:
        """Take over what others left or was requeued; renew what is ours."""
        for key in self._topics:
            cursor = _FROM_THE_START
            while cursor:
                cursor = await self._take_over_pending(key, cursor, idle_ms=self._reclaim_ms // 2)
        self._look_at = time.monotonic() + self.pause_seconds

    async def _take_over_pending(self, key: str, cursor: bytes, *, idle_ms: int) -> bytes:
        """Claim pending entries; return where to go on, nothing at the end."""
        topic = self._topics[key]
        reply = await run_script(
            self._client,
            _TAKE_OVER,
            [self.lease.keys[list(self._topics).index(key)], key],
            self.lease.token,
            self.group,
            self._consumer,
            idle_ms,
            cursor,
            _BATCH,
        )
        if reply is None:
            self.lease.lose()
            return b""
        next_cursor, num_gone, rows = cast(
            "tuple[bytes, int, list[tuple[bytes, int, list[bytes]]]]", reply
        )
        self._watch.count_trimmed(topic, num_gone)
        for entry_id, count, flat in rows:
            if (key, entry_id) not in self._held:
                await self._accept_pending(key, entry_id, _fields(flat), count)
        return next_cursor

    async def _accept_pending(self, key: str, entry_id: bytes, fields: Fields, count: int) -> None:
        if count >= self._options.max_deliveries:
            data = fields.get(MESSAGE_FIELD.encode(), b"")
            await self._file(key, entry_id, data, exhausted(count), delivery_count=count)
        elif entry := await self._accept(key, entry_id, fields, delivery_count=count + 1):
            self._uncounted.add((key, entry_id))
            self._buffer.append(entry)

    async def _read(self, limit: int) -> bool:
        """Read new entries without waiting; tell whether there were any."""
        # Where the answer is lost, the entries in it are ours and come before those that follow.
        self._unrecovered = dict.fromkeys(self._topics, _FROM_THE_START)
        reply = await run_script(
            self._client,
            _READ,
            [*self.lease.keys, *self._topics],
            self.lease.token,
            self.group,
            self._consumer,
            limit,
        )
        self._unrecovered.clear()
        if reply is None:
            self.lease.lose()
            return True
        for raw_key, found in cast("list[tuple[bytes, list[tuple[bytes, list[bytes]]]]]", reply):
            key = raw_key.decode()
            for entry_id, flat in found:
                self._newest[key] = entry_id.decode()
                if entry := await self._accept(key, entry_id, _fields(flat), delivery_count=1):
                    self._buffer.append(entry)
        return bool(reply)

    async def _wait(self) -> None:
        """Wait until one of the streams grows; reading is left to the script that checks the lease."""
        block_seconds = min(_LONGEST_BLOCK_SECONDS, max(self._look_at - time.monotonic(), 0.001))
        await self._blocking.xread(
            streams=self._newest, count=1, block=max(1, round(block_seconds * 1000))
        )


def _fields(flat: list[bytes]) -> Fields:
    return dict(zip(flat[::2], flat[1::2], strict=True))
