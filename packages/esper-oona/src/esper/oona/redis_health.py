"""How a Redis bus stands: what its streams hold and how far each group is (Lua scripts that only read).

`RedisBus.health` calls it. It has a connection of its own, so it may be asked from any thread, and
while the bus waits for its server.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol, cast

from esper.contracts import BusHealth, ConsumerHealth, GroupHealth, TopicHealth, TopicNames
from esper.oona.options import RedisOptions
from esper.oona.redis_client import Commands, connect
from esper.oona.redis_errors import DRIVER_ERRORS, unavailable
from esper.oona.redis_keeper import read_losses
from esper.oona.redis_letters import letters_key, stream_key

_PATIENCE_SECONDS = 5.0
"""A server that does not answer for so long counts as unreachable."""
_COUNTED = 10_000
"""Entries that are counted one by one where the server has no count; about 5 ms of its time."""
_LOOKED_AT = 1000
"""Entries in flight that are looked at, and dead letters that are read at once."""

_LOOK = r"""
local key, counted, looked_at = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local function mapped(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end
if redis.call('EXISTS', key) == 0 then return '' end
local now = redis.call('TIME')
local stream = mapped(redis.call('XINFO', 'STREAM', key))
local size = redis.pcall('MEMORY', 'USAGE', key)
local groups = {}
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local group = mapped(flat)
  local lag, exact = group['lag'], true
  if not lag then
    local unread = redis.call('XRANGE', key, '(' .. group['last-delivered-id'], '+',
      'COUNT', counted + 1)
    lag, exact = math.min(#unread, counted), #unread <= counted
  end
  local again, oldest = 0, ''
  for _, pending in ipairs(redis.call('XPENDING', key, group['name'], '-', '+', looked_at)) do
    if oldest == '' then oldest = pending[1] end
    if pending[4] > 1 then again = again + 1 end
  end
  local consumers = {}
  for _, found in ipairs(redis.call('XINFO', 'CONSUMERS', key, group['name'])) do
    local consumer = mapped(found)
    consumers[#consumers + 1] = {consumer['name'], consumer['idle'], consumer['pending']}
  end
  groups[#groups + 1] = {name = group['name'], lag = lag, exact = exact, again = again,
    pending = group['pending'], oldest = oldest, consumers = consumers}
end
return cjson.encode({now_ms = now[1] * 1000 + math.floor(now[2] / 1000),
  length = stream['length'], size = type(size) == 'number' and size or -1,
  first = stream['first-entry'] and stream['first-entry'][1] or '',
  last = stream['last-entry'] and stream['last-entry'][1] or '', groups = groups})
"""
"""One consistent picture of a stream and its groups."""

_COUNT_LETTERS = r"""
local counts, after = {}, ARGV[1]
local letters = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', ARGV[2])
for _, letter in ipairs(letters) do
  local fields = {}
  for i = 1, #letter[2], 2 do fields[letter[2][i]] = letter[2][i + 1] end
  local topic = fields['topic'] or string.match(fields['key'] or '', '([^:]*)$')
  local name = topic .. ' ' .. (fields['group'] or '')
  counts[name] = (counts[name] or 0) + 1
end
local last = #letters > 0 and letters[#letters][1] or ''
return cjson.encode({counts = counts, last = last, length = #letters})
"""
"""Counts some of the dead letters by topic and group, without sending their bytes."""


class _Asked(Protocol):
    """The commands that only this module needs."""

    async def info(self, section: str) -> Mapping[str, Any]: ...


async def look(
    options: RedisOptions, *, num_queued: int, lost: Mapping[TopicNames, int]
) -> BusHealth:
    """Return how the bus stands; never raises for a server that is away, refuses or hangs."""
    client = connect(options, max_connections=1)
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            found = await _look(client, options)
    except (*DRIVER_ERRORS, TimeoutError) as error:
        reason = error if str(error) else TimeoutError(f"no answer in {_PATIENCE_SECONDS:.0f} s")
        found = BusHealth(
            address=options.address, is_reachable=False, problem=str(unavailable(options, reason))
        )
    finally:
        await client.aclose()
    return found.model_copy(update={"num_queued": num_queued, "lost": dict(lost)})


async def _look(client: Commands, options: RedisOptions) -> BusHealth:
    await client.ping()  # connects
    asked_at = time.monotonic()
    await client.ping()
    round_trip_seconds = time.monotonic() - asked_at
    server, version = await _server(client)
    letters = await _count_letters(client, options)
    topics = [await _topic(client, options, topic, letters) for topic in TopicNames]
    losses = await read_losses(client, options)
    return BusHealth(
        address=options.address,
        is_reachable=True,
        server=server,
        version=version,
        round_trip_seconds=round_trip_seconds,
        topics=tuple(topic.with_losses(losses) for topic in topics if topic is not None),
        num_dead_letters=letters.total(),
    )


async def _server(client: Commands) -> tuple[str, str]:
    """Return what server it is, and of which version."""
    info = await cast("_Asked", client).info("server")
    if "valkey_version" in info:  # its redis_version is the one that it is compatible with
        return "valkey", str(info["valkey_version"])
    return "redis", str(info.get("redis_version", "unknown"))


async def _count_letters(client: Commands, options: RedisOptions) -> Counter[tuple[str, str]]:
    """Count the dead letters by topic and group."""
    counts: Counter[tuple[str, str]] = Counter()
    after = "-"
    while True:
        reply = await client.eval(_COUNT_LETTERS, 1, letters_key(options), after, _LOOKED_AT)
        found = _decoded(reply)
        for name, count in found["counts"].items():
            topic, _, group = str(name).partition(" ")
            counts[topic, group] += int(count)
        if found["length"] < _LOOKED_AT:
            return counts
        after = f"({found['last']}"


async def _topic(
    client: Commands,
    options: RedisOptions,
    topic: TopicNames,
    letters: Mapping[tuple[str, str], int],
) -> TopicHealth | None:
    reply = await client.eval(_LOOK, 1, stream_key(options, topic), _COUNTED, _LOOKED_AT)
    if not reply:
        return None
    found = _decoded(reply)
    now_ms = int(found["now_ms"])
    groups = [
        GroupHealth(
            topic=topic,
            group=group["name"],
            lag=group["lag"],
            is_lag_exact=group["exact"],
            num_in_flight=group["pending"],
            num_redelivered=group["again"],
            oldest_in_flight_seconds=_age(group["oldest"], now_ms),
            num_dead_letters=letters.get((topic.value, group["name"]), 0),
            consumers=tuple(
                ConsumerHealth(name=name, idle_seconds=idle_ms / 1000, num_in_flight=pending)
                for name, idle_ms, pending in group["consumers"]
            ),
        )
        for group in found["groups"]
    ]
    return TopicHealth(
        topic=topic,
        length=found["length"],
        size_bytes=None if found["size"] < 0 else found["size"],
        oldest_seconds=_age(found["first"], now_ms),
        newest_seconds=_age(found["last"], now_ms),
        groups=tuple(sorted(groups, key=lambda group: group.group)),
    )


def _decoded(reply: object) -> dict[str, Any]:
    assert isinstance(reply, bytes)
    return json.loads(reply.decode(errors="replace"))


def _age(entry_id: str, now_ms: int) -> float | None:
    """Return the seconds since the entry came; None for no entry."""
    if not entry_id:
        return None
    return max(0.0, (now_ms - int(entry_id.partition("-")[0])) / 1000)
