"""A lease on topics: the one consumer of a group that holds it reads alone, until it ends or dies (Lua).

`redis_exclusive` reads under it. Every read names the lease's token and the server refuses those of a
holder that has lost it, so that entries go to one consumer at a time however late its commands arrive.
"""

import asyncio
import time
from collections.abc import Collection
from contextlib import suppress

from esper.contracts import TopicNames, get_logger
from esper.contracts.base import new_id
from esper.oona.options import RedisOptions
from esper.oona.redis_client import DRIVER_ERRORS, Commands
from esper.oona.redis_letters import stream_key
from esper.oona.redis_script import run_script

LEASE_SECONDS = 5.0
"""A consumer that was killed is succeeded so much later; one that stands still for longer, too."""

_TAKE = """
for _, key in ipairs(KEYS) do
  local holder = redis.call('GET', key)
  if holder and holder ~= ARGV[1] then return redis.call('PTTL', key) end
end
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1], 'PX', ARGV[2]) end
return 0
"""
"""All topics or none; otherwise for how many milliseconds somebody else may still have one."""

_RENEW = """
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) ~= ARGV[1] then return 0 end
end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[2]) end
return 1
"""

_RELEASE = """
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
"""

_log = get_logger(__name__)


def lease_key(options: RedisOptions, topic: TopicNames, group: str) -> str:
    """Return the key of the lease that a group has on a topic."""
    return f"{stream_key(options, topic)}:lease:{group}"


class Lease:
    """The lease of one consumer; raises the driver's errors where nothing else is said."""

    def __init__(
        self, client: Commands, options: RedisOptions, topics: Collection[TopicNames], group: str
    ) -> None:
        self.token = new_id()
        self.keys = [lease_key(options, topic, group) for topic in topics]
        self._client = client
        self._group = group
        self._held_until = 0.0

    @property
    def is_held(self) -> bool:
        """Whether it is ours for certain; false a little earlier than on the server."""
        return time.monotonic() < self._held_until

    async def take(self) -> float:
        """Take the lease if it is free; return the seconds until another try, 0 if it is ours."""
        asked_at = time.monotonic()
        left_ms = await run_script(
            self._client, _TAKE, self.keys, self.token, round(LEASE_SECONDS * 1000)
        )
        assert isinstance(left_ms, int)
        if left_ms:
            return max(left_ms, 0) / 1000
        self._held_until = asked_at + LEASE_SECONDS
        return 0.0

    def lose(self) -> None:
        """Note that somebody else may have it."""
        if self._held_until:
            self._held_until = 0.0
            _log.warning("another consumer takes over", group=self._group)

    async def keep(self) -> None:
        """Renew it for ever while it is ours; quiet when the server is away, and then it runs out."""
        while True:
            await asyncio.sleep(LEASE_SECONDS / 4)
            if not self.is_held:
                continue
            asked_at = time.monotonic()
            with suppress(*DRIVER_ERRORS):
                if await run_script(
                    self._client, _RENEW, self.keys, self.token, round(LEASE_SECONDS * 1000)
                ):
                    self._held_until = asked_at + LEASE_SECONDS
                else:
                    self.lose()

    async def release(self) -> None:
        """Let another consumer have it at once."""
        self._held_until = 0.0
        await run_script(self._client, _RELEASE, self.keys, self.token)
