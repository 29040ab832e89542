"""Delays longer than the reclaim time, which Redis cannot express: a due time beside the entry (Lua).

The entry stays pending, like every other. Whoever claims it as overdue too early (`redis_claim`) finds its
due time and puts it back for the rest of the delay. If the due times were lost, entries would come early.
"""

from esper.contracts import TopicNames
from esper.oona.options import RedisOptions
from esper.oona.redis_client import Commands
from esper.oona.redis_letters import stream_key
from esper.oona.redis_script import run_script

_KEPT_MS = 86_400_000
"""Due times outlive the latest of them by a day: entries that were trimmed leave theirs behind."""

_PARK = """
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2])
redis.call('ZADD', KEYS[1], due, ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) + tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[2]) + tonumber(ARGV[3]))
end
"""


def delays_key(options: RedisOptions, topic: TopicNames, group: str) -> str:
    """Return the key of a group's due times on a topic, in milliseconds of the server's clock."""
    return f"{stream_key(options, topic)}:delays:{group}"


async def park(
    client: Commands,
    options: RedisOptions,
    topic: TopicNames,
    group: str,
    entry_id: bytes,
    *,
    delay_ms: int,
) -> None:
    """Note that an entry is not to be handed out for so long; raises the driver's errors."""
    key = delays_key(options, topic, group)
    await run_script(client, _PARK, [key], entry_id, delay_ms, _KEPT_MS)
