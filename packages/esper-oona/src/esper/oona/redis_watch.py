"""How far a group has come on its streams: what was trimmed under it, and where it can begin anew.

`redis_group` looks through it every few seconds.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import cast

from redis.exceptions import ResponseError

from esper.contracts import TopicNames, get_logger
from esper.oona.delivery import MAX_BACKLOG
from esper.oona.redis_client import Commands

_LARGEST_NUMBER = 2**64 - 1
"""Of the second part of an entry id."""

_log = get_logger(__name__)


class StreamWatch:
    """Watches one group's streams; raises the driver's errors."""

    def __init__(self, client: Commands, group: str) -> None:
        self.trimmed: Counter[TopicNames] = Counter()
        """Entries known to have gone before the group had read or acknowledged them, by topic."""
        self._client = client
        self._group = group
        self._safe: dict[str, bytes] = {}
        self._told: dict[str, tuple[bytes, int]] = {}
        """By stream, where the group stood when entries were last counted as trimmed, and how many."""

    def knows(self, key: str) -> bool:
        """Tell whether the group was ever seen on the stream."""
        return key in self._safe

    def safe_position(self, key: str) -> str:
        """Return an entry id up to which the group has acknowledged everything."""
        return self._safe.get(key, b"0-0").decode()

    async def look(self, key: str, topic: TopicNames) -> None:
        """Note how far the group is, and count what the server dropped although it was unread.

        Says nothing where the stream or the group is gone: reading will.
        """
        with suppress(ResponseError):
            stream = await self._client.xinfo_stream(key)
            for group in await self._client.xinfo_groups(key):
                if group["name"] == self._group.encode():
                    self._count_trimmed(key, topic, num_trimmed(stream, group), group)
                    # Asked in this order, nothing up to the position is pending afterwards that
                    # was not pending now.
                    pending = await self._client.xpending(key, self._group)
                    position = cast("bytes", group["last-delivered-id"])
                    self._safe[key] = _below(position, cast("bytes | None", pending["min"]))

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
            group=self._group,
            key=key,
            at_least=new,
        )


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
    if first is not None and order(first[0]) <= order(position):
        return 0
    length = cast("int", stream["length"])
    added, read = stream.get("entries-added"), group.get("entries-read")
    if isinstance(added, int) and isinstance(read, int):
        return max(0, added - read - length)
    return int(length >= MAX_BACKLOG)


def order(entry_id: bytes) -> tuple[int, int]:
    """Return the stream entry id as a key to sort by."""
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)


def _below(position: bytes, oldest_pending: bytes | None) -> bytes:
    """Return the position, or what comes just before the oldest pending entry if that is earlier."""
    if oldest_pending is None or order(oldest_pending) > order(position):
        return position
    milliseconds, number = order(oldest_pending)
    if number:
        return f"{milliseconds}-{number - 1}".encode()
    return f"{max(milliseconds - 1, 0)}-{_LARGEST_NUMBER if milliseconds else 0}".encode()
