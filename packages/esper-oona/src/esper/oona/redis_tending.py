"""One look at a stream: how far its groups are, what they lost, and what may be trimmed (a Lua script).

`redis_keeper` calls it every few seconds, from any number of clients: the script is one atomic step, so
that a group which is created meanwhile is seen or begins afterwards, and a loss is counted once.

Beside each stream lies a hash, `PREFIX:TOPIC:groups`, which outlives a group that is destroyed: where
it had acknowledged everything (and so where it begins anew), and what was lost under it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from esper.contracts import TopicNames
from esper.oona.options import RedisOptions
from esper.oona.redis_client import Commands
from esper.oona.redis_letters import groups_key, stream_key
from esper.oona.redis_script import run_script

_TRIMMED_AT_ONCE = 1000
"""Entries that one call reads and trims, about 2 ms of the server's time."""

ORDER_LUA = r"""
local function parts(id)
  local milliseconds, number = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(milliseconds), tonumber(number)
end
local function before(a, b)
  local am, an = parts(a)
  local bm, bn = parts(b)
  return am < bm or (am == bm and an < bn)
end
local function mapped(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end
"""
"""Entry ids as keys to compare, and RESP maps as tables; shared by the scripts about streams."""

_TEND = (
    ORDER_LUA
    + r"""
local key, state = KEYS[1], KEYS[2]
local max_length, max_age_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local may_drop, budget = ARGV[3] == '1', tonumber(ARGV[4])

local function acknowledged_up_to(position, oldest_pending)
  if not oldest_pending or before(position, oldest_pending) then return position end
  local milliseconds, number = parts(oldest_pending)
  if number > 0 then return string.format('%.0f-%.0f', milliseconds, number - 1) end
  return string.format('%.0f-18446744073709551615', math.max(milliseconds - 1, 0))
end

if redis.call('EXISTS', key) == 0 then return false end
local stream = mapped(redis.call('XINFO', 'STREAM', key))
local known = mapped(redis.call('HGETALL', state))
local length, added = stream['length'], stream['entries-added']
local last = stream['last-generated-id']
local first = stream['first-entry'] and stream['first-entry'][1]
local seen_first = known['first'] ~= '' and known['first']

local groups, floor, is_there = {}, last, {}
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local info = mapped(flat)
  local pending = redis.call('XPENDING', key, info['name'])
  local position = info['last-delivered-id']
  is_there[info['name']] = true
  groups[#groups + 1] = {name = info['name'], position = position, num_pending = pending[1],
    safe = acknowledged_up_to(position, pending[2]), read = info['entries-read'], lost = 0}
end
for field, text in pairs(known) do
  local name = string.match(field, '^group:(.*)$')
  if name and not is_there[name] then
    local safe = string.match(text, '^%S+')
    groups[#groups + 1] = {name = name, position = safe, num_pending = 0, safe = safe,
      is_missing = true, lost = 0}
  end
end
for _, group in ipairs(groups) do
  if before(group.safe, floor) then floor = group.safe end
  -- a server that does not count entries: what was first and unread is gone, and it was not us
  if seen_first and before(group.position, seen_first) and (not first or before(seen_first, first))
  then group.lost = 1 end
end

local now = redis.call('TIME')
local oldest_ms = now[1] * 1000 + math.floor(now[2] / 1000) - max_age_ms
local excess, removed, has_more = length - max_length, 0, false
local function may_go(rank, id)
  return (rank <= excess or parts(id) < oldest_ms) and (may_drop or not before(floor, id))
end
if floor == last then  -- nobody is behind
  if excess > 0 then removed = redis.call('XTRIM', key, 'MAXLEN', '=', max_length) end
  if oldest_ms > 0 then
    removed = removed + redis.call('XTRIM', key, 'MINID', '=', string.format('%.0f', oldest_ms))
  end
elseif first and may_go(1, first) then
  local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', budget)
  local n = #oldest
  while not may_go(n, oldest[n][1]) do n = n - 1 end
  for _, group in ipairs(groups) do
    if before(group.position, oldest[n][1]) then
      local num_read = 0
      while not before(group.position, oldest[num_read + 1][1]) do num_read = num_read + 1 end
      group.lost = group.lost + n - num_read
    end
  end
  removed = redis.call('XTRIM', key, 'MAXLEN', '=', length - n)
  has_more = n == budget
end
length = length - removed
if removed > 0 then
  local entry = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
  first = entry and entry[1]
end

-- Trimming comes first, and works on a server whose memory is full; the notes may wait.
redis.pcall('HSET', state, 'first', first or '')
local reply = {}
for _, group in ipairs(groups) do
  local num_unread = -1
  if group.position == last then num_unread = 0
  elseif not first or before(group.position, first) then num_unread = length end
  if added and group.read then  -- exact, whoever trimmed
    if num_unread < 0 then num_unread = added - group.read
    else group.lost = math.max(0, added - group.read - num_unread) end
  end
  if added and not group.is_missing and group.read ~= added - num_unread and num_unread >= 0 then
    redis.pcall('XGROUP', 'SETID', key, group.name, group.position, 'ENTRIESREAD',
      string.format('%.0f', added - num_unread))
  end
  if group.lost > 0 then redis.pcall('HINCRBY', state, 'lost:' .. group.name, group.lost) end
  if not group.is_missing then
    local owed = num_unread < 0 and -1 or num_unread + group.num_pending
    local text = group.safe .. ' ' .. last .. ' ' .. owed
    if known['group:' .. group.name] ~= text then
      redis.pcall('HSET', state, 'group:' .. group.name, text)
    end
  end
  reply[#reply + 1] = {group.name, group.position, group.safe, group.is_missing and 1 or 0,
    group.num_pending, num_unread, group.lost}
end
return {removed, has_more and 1 or 0, length, first or '', last, reply}
"""
)


@dataclass(frozen=True, kw_only=True)
class GroupLook:
    """How far one group is on one stream."""

    name: str
    position: bytes
    """The last entry that was read for it."""
    safe: bytes
    """It has acknowledged everything up to here."""
    is_missing: bool
    """It was destroyed, but not removed: what it had not acknowledged is kept."""
    num_pending: int
    """Entries in somebody's hands."""
    num_unread: int | None
    """None where the server cannot tell: Redis 6 in the middle of a stream."""
    num_lost: int
    """Entries found to have gone unread since the last look by anybody."""


@dataclass(frozen=True, kw_only=True)
class StreamLook:
    """What one call found and did."""

    num_trimmed: int
    has_more: bool
    """More could be trimmed; look again."""
    length: int
    first: bytes | None
    last: bytes
    groups: Sequence[GroupLook]


async def tend(client: Commands, options: RedisOptions, topic: TopicNames) -> StreamLook | None:
    """Trim what the topic's policy allows, a thousand entries at most; None without a stream.

    Raises the driver's errors.
    """
    policy = options.retention[topic]
    reply = await run_script(
        client,
        _TEND,
        [stream_key(options, topic), groups_key(options, topic)],
        policy.max_length,
        round(policy.max_age_seconds * 1000),
        int(policy.may_drop),
        _TRIMMED_AT_ONCE,
    )
    if reply is None:
        return None
    removed, more, length, first, last, groups = cast(
        "tuple[int, int, int, bytes, bytes, list[tuple[bytes, bytes, bytes, int, int, int, int]]]",
        reply,
    )
    return StreamLook(
        num_trimmed=removed,
        has_more=bool(more),
        length=length,
        first=first or None,
        last=last,
        groups=[
            GroupLook(
                name=name.decode(),
                position=position,
                safe=safe,
                is_missing=bool(missing),
                num_pending=num_pending,
                num_unread=None if num_unread < 0 else num_unread,
                num_lost=num_lost,
            )
            for name, position, safe, missing, num_pending, num_unread, num_lost in groups
        ],
    )
