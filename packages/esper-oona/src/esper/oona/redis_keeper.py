"""Keeps the streams of one client within their topics' retention, and counts what groups lost.

`RedisBus` tells it what it published, consumers have it look at what they read; it tends those topics
(`redis_tending`) every few seconds and says loudly what was lost and which group holds up a topic.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress

from esper.contracts import GroupLosses, TopicNames, get_logger
from esper.oona.options import RedisOptions
from esper.oona.redis_client import DRIVER_ERRORS, Commands
from esper.oona.redis_letters import groups_key
from esper.oona.redis_membership import Recreated
from esper.oona.redis_tending import StreamLook, tend
from esper.oona.retention import DATA_LOSS, HELD_UP, Retention

_TEND_SECONDS = 5.0
_STOP_SECONDS = 1.0
_OVERSHOOT = 10
"""A publisher has a topic tended after a tenth of its length at the latest."""

_log = get_logger(__name__)


class RedisKeeper:
    """Tends topics for one client; its losses are those that this client found."""

    def __init__(self, options: RedisOptions) -> None:
        self.losses: Counter[TopicNames] = Counter()
        """Messages that some group lost, by topic; each is found by one client only."""
        self._options = options
        self._published: Counter[TopicNames] = Counter()
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None
        self._warned_at: dict[TopicNames, int] = {}

    def start(self, client: Commands) -> None:
        """Tend what this client publishes, until `stop`."""
        self._is_stopping, self._wake = False, asyncio.Event()
        self._task = asyncio.create_task(self._tend_published(client), name="oona-keeper")

    async def stop(self) -> None:
        """End the task, if possible between two commands."""
        task, self._task = self._task, None
        if task is not None:
            self._is_stopping = True
            self._wake.set()
            await asyncio.wait({task}, timeout=_STOP_SECONDS)
            task.cancel()
            await asyncio.wait({task})

    def note_published(self, topics: Iterable[TopicNames]) -> None:
        """Count messages that the server has taken."""
        self._published.update(topics)
        for topic, count in self._published.items():
            if count * _OVERSHOOT >= self._options.retention[topic].max_length:
                self._wake.set()

    async def tend(self, client: Commands, topic: TopicNames) -> StreamLook | None:
        """Trim what the topic's policy allows and count what was lost; raises the driver's errors."""
        while True:
            look = await tend(client, self._options, topic)
            if look is None:
                return None
            for group in look.groups:
                self.count_lost(topic, group.name, group.num_lost, reason="trimmed while unread")
            if not look.has_more:
                self._warn_if_held_up(topic, look)
                return look

    def count_lost(self, topic: TopicNames, group: str, count: int, *, reason: str) -> None:
        """Count messages that a group will never see, and say so."""
        if count:
            self.losses[topic] += count
            _log.error(DATA_LOSS, topic=topic.value, group=group, lost=count, reason=reason)

    def count_recreated(self, topic: TopicNames, group: str, recreated: Recreated) -> None:
        """Count what went with a group that vanished, and say loudly that it did."""
        self.losses[topic] += recreated.num_lost
        _log.error(
            DATA_LOSS,
            topic=topic.value,
            group=group,
            lost=recreated.num_lost,
            position=recreated.start,
            reason="consumer group vanished; created anew where it had acknowledged everything, so "
            "messages may come twice, and those that the server no longer has are lost",
        )

    async def _tend_published(self, client: Commands) -> None:
        while not self._is_stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TEND_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            topics, self._published = list(self._published), Counter()
            for topic in () if self._is_stopping else topics:
                with suppress(
                    *DRIVER_ERRORS
                ):  # publishing waits the outage out, and comes back here
                    await self.tend(client, topic)

    def _warn_if_held_up(self, topic: TopicNames, look: StreamLook) -> None:
        """Name the group that keeps a topic above its bounds: at first, and each time it doubled."""
        policy = self._options.retention[topic]
        groups = sorted(look.groups, key=lambda group: order(group.safe))
        age_seconds = age_of(look.first)
        if not groups or not _is_beyond(policy, look, age_seconds):
            self._warned_at.pop(topic, None)
        elif look.length >= 2 * self._warned_at.get(topic, 0):
            self._warned_at[topic] = look.length
            _log.warning(
                HELD_UP,
                topic=topic.value,
                group=groups[0].name,
                is_missing=groups[0].is_missing,
                kept=look.length,
                oldest_seconds=round(age_seconds),
            )


async def read_losses(client: Commands, options: RedisOptions) -> Sequence[GroupLosses]:
    """Return what every group lost so far, whoever found it; raises the driver's errors."""
    found: list[GroupLosses] = []
    for topic in TopicNames:
        notes = await client.hgetall(groups_key(options, topic))
        names = sorted(name for name in notes if name.startswith(b"group:"))
        for name in (field.removeprefix(b"group:") for field in names):
            losses = GroupLosses(
                topic=topic,
                group=name.decode(),
                num_lost=int(notes.get(b"lost:" + name, 0)),
                num_recreated=int(notes.get(b"recreated:" + name, 0)),
            )
            found.append(losses)
    return found


def order(entry_id: bytes) -> tuple[int, int]:
    """Return the stream entry id as a key to sort by."""
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)


def age_of(entry_id: bytes | None) -> float:
    """Return the seconds since the entry was published, by our clock; 0 without one."""
    return 0.0 if entry_id is None else max(0.0, time.time() - order(entry_id)[0] / 1000)


def _is_beyond(policy: Retention, look: StreamLook, age_seconds: float) -> bool:
    return look.length > policy.max_length or age_seconds > policy.max_age_seconds + _TEND_SECONDS
