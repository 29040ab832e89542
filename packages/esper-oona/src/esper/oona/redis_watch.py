"""How far one group has come on its streams, and how it begins anew where it was lost.

`redis_group` looks through it every few seconds, which also tends the streams (`redis_keeper`).
"""

from collections import Counter
from contextlib import suppress

from redis.exceptions import ResponseError

from esper.contracts import TopicNames
from esper.oona.options import RedisOptions
from esper.oona.redis_client import Commands
from esper.oona.redis_keeper import RedisKeeper
from esper.oona.redis_membership import create_group, note


class StreamWatch:
    """Watches one group's streams; raises the driver's errors."""

    def __init__(
        self, client: Commands, options: RedisOptions, keeper: RedisKeeper, group: str
    ) -> None:
        self._client = client
        self._options = options
        self._keeper = keeper
        self._group = group
        self._notes: dict[TopicNames, str] = {}
        """What the latest look found, in the words of `note`."""
        self._num_done: Counter[TopicNames] = Counter()

    async def look(self, topic: TopicNames) -> None:
        """Note how far the group is, create it if it never was there, have the topic tended.

        Says nothing where the stream or the group is gone: reading will.
        """
        if topic not in self._notes:
            await self.create(topic)
        num_done = self._num_done[topic]
        with suppress(ResponseError):
            if stream := await self._keeper.tend(self._client, topic):
                for found in stream.groups:
                    if found.name == self._group and not found.is_missing:
                        self._notes[topic] = note(stream, found)
                        self._num_done[topic] -= num_done

    async def create(self, topic: TopicNames) -> None:
        """Create the group where it is missing; one that was lost begins anew, and is counted."""
        remembered = self._notes.setdefault(topic, "")
        if remembered:
            safe, seen, owed = remembered.split(" ")
            if owed != "-1":
                owed = str(max(0, int(owed) - self._num_done[topic]))
            remembered = f"{safe} {seen} {owed}"
        recreated = await create_group(
            self._client, self._options, topic, self._group, remembered=remembered
        )
        if recreated is not None:
            self._keeper.count_recreated(topic, self._group, recreated)

    def note_done(self, topic: TopicNames) -> None:
        """Count an entry that this consumer has acknowledged since the latest look."""
        self._num_done[topic] += 1

    def count_trimmed(self, topic: TopicNames, count: int) -> None:
        """Count entries that were trimmed before anybody had acknowledged them."""
        self._keeper.count_lost(topic, self._group, count, reason="trimmed while unacknowledged")
