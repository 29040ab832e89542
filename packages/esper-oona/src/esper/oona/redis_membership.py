"""Groups and consumers on one stream: created, found lost, removed; each an atomic step (Lua scripts).

`redis_streams` and `redis_group` call it. What is noted about a group beside its stream (see
`redis_tending`) is what a group that was destroyed begins anew from.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

from esper.contracts import TopicNames
from esper.oona.options import RedisOptions
from esper.oona.redis_client import Commands
from esper.oona.redis_letters import groups_key, stream_key
from esper.oona.redis_script import run_script
from esper.oona.redis_tending import ORDER_LUA, GroupLook, StreamLook

_CREATE = (
    ORDER_LUA
    + r"""
local key, state, group, remembered = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local stream = {['last-generated-id'] = '0-0'}
if redis.call('EXISTS', key) == 1 then
  stream = mapped(redis.call('XINFO', 'STREAM', key))
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    if mapped(flat)['name'] == group then return {'there'} end
  end
end
local function read(text) return string.match(text, '^(%S+) (%S+) (%S+)$') end
local known = redis.call('HGET', state, 'group:' .. group)
if remembered ~= '' and not known then known = remembered end
local last = stream['last-generated-id']
local safe, seen, owed = last, last, 0
if known then safe, seen, owed = read(known) end
local start = safe
if before(last, safe) then start = '0-0' end  -- the stream is another one, and its clock goes back
redis.call('XGROUP', 'CREATE', key, group, start, 'MKSTREAM')
local added = mapped(redis.call('XINFO', 'STREAM', key))['entries-added']
if added and (start == last or start == '0-0') then
  redis.call('XGROUP', 'SETID', key, group, start, 'ENTRIESREAD',
    start == last and string.format('%.0f', added) or 0)
end
redis.call('HSET', state, 'group:' .. group, start .. ' ' .. last .. ' -1')
if not known then return {'new'} end
local lost = 0
if owed ~= '0' and before(safe, seen)
  and #redis.call('XRANGE', key, '(' .. safe, seen, 'COUNT', 1) == 0 then
  lost = owed == '-1' and 1 or tonumber(owed)
  redis.call('HINCRBY', state, 'lost:' .. group, lost)
end
redis.call('HINCRBY', state, 'recreated:' .. group, 1)
return {'lost', start, lost}
"""
)
"""A group that is noted but not there was lost: it begins anew where it had acknowledged everything.
What it still owed is lost with it only if the stream has nothing of it any more."""

_REMOVE = r"""
redis.call('HDEL', KEYS[2], 'group:' .. ARGV[1], 'lost:' .. ARGV[1], 'recreated:' .. ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1]) end
return 'done'
"""

_SWEEP = (
    ORDER_LUA
    + r"""
local group, only, idle_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local removed = 0
for _, key in ipairs(KEYS) do
  local found = redis.pcall('XINFO', 'CONSUMERS', key, group)
  for _, flat in ipairs(found['err'] and {} or found) do  -- the group may be gone
    local info = mapped(flat)
    local is_asked_for = only == '' or info['name'] == only
    if is_asked_for and info['pending'] == 0 and info['idle'] >= idle_ms then
      redis.call('XGROUP', 'DELCONSUMER', key, group, info['name'])
      removed = removed + 1
    end
  end
end
return removed
"""
)
"""Looks and removes in one step: a name that holds entries must stay, or they would go with it."""


@dataclass(frozen=True, kw_only=True)
class Recreated:
    """A group that was lost and began anew."""

    start: str
    """The entry id after which it reads."""
    num_lost: int
    """Entries that it owed at the last look and that the server no longer has; 1 where the server does
    not count (Redis 6)."""


async def create_group(
    client: Commands,
    options: RedisOptions,
    topic: TopicNames,
    group: str,
    *,
    remembered: str = "",
) -> Recreated | None:
    """Create stream and group; leaves an existing group as it is, and says if it had been lost.

    A new group begins at what is published from now on. Raises the driver's errors.

    Args:
        client: what to ask.
        options: of the bus.
        topic: whose stream.
        group: its name.
        remembered: what `note` gave when the group was last seen; "" if it never was.

    """
    keys = [stream_key(options, topic), groups_key(options, topic)]
    reply = await run_script(client, _CREATE, keys, group, remembered)
    words = cast("list[bytes | int]", reply)
    if words[0] != b"lost":
        return None
    _, start, num_lost = cast("tuple[bytes, bytes, int]", tuple(words))
    return Recreated(start=start.decode(), num_lost=num_lost)


async def remove_group(
    client: Commands, options: RedisOptions, topic: TopicNames, group: str
) -> None:
    """Destroy the group and what is noted about it; leaves a missing stream as it is."""
    keys = [stream_key(options, topic), groups_key(options, topic)]
    await run_script(client, _REMOVE, keys, group)


async def sweep_consumers(
    client: Commands,
    keys: Collection[str],
    group: str,
    *,
    name: str = "",
    idle_seconds: float = 0.0,
) -> int:
    """Remove the names of consumers that hold nothing and were silent for so long; count them.

    A consumer that was only slow gets its name back with its next read.

    Args:
        client: what to ask.
        keys: the streams.
        group: whose consumers.
        name: only this one; "" for all.
        idle_seconds: since they were last heard of.

    """
    removed = await run_script(client, _SWEEP, keys, group, name, round(idle_seconds * 1000))
    return cast("int", removed)


def note(stream: StreamLook, group: GroupLook) -> str:
    """Return what `create_group` needs to know of a group that is lost later."""
    owed = -1 if group.num_unread is None else group.num_unread + group.num_pending
    return f"{group.safe.decode()} {stream.last.decode()} {owed}"
