"""Takes over what was in dead consumers' hands, many entries at once, and counts only what is tried (Lua).

`redis_group` calls it. Which of its entries killed a consumer cannot be seen, so each that may have been
handed out is a suspect: it is tried one at a time, and counted on the server before it is handed out.
If it kills this process too, its neighbours have not been tried once more.
"""

from dataclasses import dataclass
from typing import cast

from esper.contracts import TopicNames
from esper.oona.options import RedisOptions
from esper.oona.redis_client import Commands, Fields
from esper.oona.redis_delay import delays_key
from esper.oona.redis_letters import groups_key, stream_key
from esper.oona.redis_script import run_script

FROM_THE_START = b"-"
"""The cursor of the first claim."""

_CLAIM = r"""
local key, state, group, consumer = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local idle_ms, cursor, limit, max_deliveries = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local found = redis.call('XPENDING', key, group, 'IDLE', idle_ms, cursor, '+', limit)
if #found == 0 and cursor ~= '-' then
  found = redis.call('XPENDING', key, group, 'IDLE', idle_ms, '-', '+', limit)
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claimed, num_gone, num_parked, is_tried = {}, 0, 0, false
for _, row in ipairs(found) do
  local id, count = row[1], row[4]
  local entry = redis.call('XRANGE', key, id, id)[1]
  local wait_ms = (redis.call('ZSCORE', KEYS[3], id) or 0) - now
  if entry and wait_ms > 0 then
    local idle = math.max(0, tonumber(idle_ms) - wait_ms)
    redis.call('XCLAIM', key, group, consumer, 0, id, 'IDLE', idle, 'RETRYCOUNT', count, 'JUSTID')
    num_parked = num_parked + 1
  elseif entry then
    redis.call('ZREM', KEYS[3], id)
    local is_next = count > 0 and count < max_deliveries and not is_tried
    if is_next then is_tried = true end
    local new_count = (is_next or count == 0) and count + 1 or count
    redis.call('XCLAIM', key, group, consumer, 0, id, 'RETRYCOUNT', new_count, 'JUSTID')
    claimed[#claimed + 1] = {id, count, is_next and 1 or 0, entry[2]}
  else
    redis.call('XACK', key, group, id)
    num_gone = num_gone + 1
  end
end
if num_gone > 0 then redis.pcall('HINCRBY', state, 'lost:' .. group, num_gone) end
return {#found == limit and '(' .. found[limit][1] or '-', num_gone, claimed, num_parked}
"""


@dataclass(frozen=True, kw_only=True)
class ClaimedEntry:
    """One overdue entry that is ours now."""

    entry_id: bytes
    delivery_count: int
    """How often it was handed out before, or may have been; 0: never, it was only fetched ahead."""
    is_tried: bool
    """It is counted as handed out already; hand it out first."""
    fields: Fields


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What one call took over."""

    cursor: bytes
    """Where the next one goes on, so that what keeps failing does not hide the rest."""
    num_gone: int
    """Overdue entries that the stream no longer has."""
    num_parked: int
    """Entries that were put back, because they were given back for longer than this."""
    entries: list[ClaimedEntry]


async def claim_overdue(
    client: Commands,
    options: RedisOptions,
    topic: TopicNames,
    *,
    group: str,
    consumer: str,
    cursor: bytes,
    limit: int,
) -> Claim:
    """Take over entries that nobody acknowledged in time; raises the driver's errors."""
    reply = await run_script(
        client,
        _CLAIM,
        [
            stream_key(options, topic),
            groups_key(options, topic),
            delays_key(options, topic, group),
        ],
        group,
        consumer,
        max(1, round(options.reclaim_after_seconds * 1000)),
        cursor,
        limit,
        options.max_deliveries,
    )
    next_cursor, num_gone, rows, num_parked = cast(
        "tuple[bytes, int, list[tuple[bytes, int, int, list[bytes]]], int]", reply
    )
    entries = [
        ClaimedEntry(
            entry_id=entry_id,
            delivery_count=count,
            is_tried=bool(is_tried),
            fields=dict(zip(flat[::2], flat[1::2], strict=True)),
        )
        for entry_id, count, is_tried, flat in rows
    ]
    return Claim(cursor=next_cursor, num_gone=num_gone, num_parked=num_parked, entries=entries)
