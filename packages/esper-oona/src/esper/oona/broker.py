"""The in-memory broker: consumer groups with pending entries, shared by threads and event loops.

`MemoryBus` clients of one name put encoded messages in and take them out. Each group has a queue of
its own per topic, so a message is gone once every group acknowledged it, and is never kept where there
is no group.
"""

import asyncio
import heapq
import math
import time
from collections import Counter
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from threading import Lock

from esper.contracts import TopicNames, get_logger
from esper.oona.delivery import MAX_BACKLOG

_log = get_logger(__name__)


class Consumer:
    """One consumer of a group, in its own event loop; holds messages and waits for them."""

    def __init__(self, topics: Collection[TopicNames], group: str) -> None:
        self.topics = frozenset(topics)
        self.group = group
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def wake(self) -> None:
        """End the wait, from any thread; harmless when the consumer's loop is closed already."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_seconds: float) -> None:
        """Wait until woken or until the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
        self._event.clear()


@dataclass(kw_only=True, eq=False)
class Item:
    """One message for one group, until the group acknowledges it."""

    sequence: int
    """Position among all messages of the broker."""
    topic: TopicNames
    group: str
    data: bytes
    holder: Consumer | None = None
    """Who has it in hand; None while it waits."""
    delivered_at: float = 0.0
    """Monotonic seconds of the latest delivery."""
    delivery_count: int = 0


@dataclass(kw_only=True, eq=False)
class _Queue:
    """What one group has not acknowledged on one topic, oldest first."""

    unacknowledged: dict[int, Item] = field(default_factory=dict[int, Item])
    ready: list[int] = field(default_factory=list[int])
    """Heap of sequence numbers that wait; one that left `unacknowledged` is skipped."""
    pending: dict[int, Item] = field(default_factory=dict[int, Item])
    """In hand, in order of delivery."""
    waiters: set[Consumer] = field(default_factory=set[Consumer])
    """Whom to wake when a message comes."""

    def add(self, item: Item) -> bool:
        """Keep the message; tell whether the oldest had to go for it."""
        is_full = len(self.unacknowledged) >= MAX_BACKLOG
        if is_full:
            self.remove(next(iter(self.unacknowledged)))
            self.head()
        self.unacknowledged[item.sequence] = item
        heapq.heappush(self.ready, item.sequence)
        return is_full

    def remove(self, sequence: int) -> None:
        self.unacknowledged.pop(sequence, None)
        self.pending.pop(sequence, None)

    def give_back(self, item: Item) -> None:
        del self.pending[item.sequence]
        item.holder = None
        heapq.heappush(self.ready, item.sequence)

    def head(self) -> int | None:
        """Return the oldest that waits, and forget those before it that are gone."""
        while self.ready and self.ready[0] not in self.unacknowledged:
            heapq.heappop(self.ready)
        return self.ready[0] if self.ready else None


class Broker:
    """Groups and their queues; every method is thread-safe and returns at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._sequence = count(1)
        self._dropped: Counter[TopicNames] = Counter()
        self._queues: dict[TopicNames, dict[str, _Queue]] = {topic: {} for topic in TopicNames}

    def publish(self, topic: TopicNames, data: bytes) -> None:
        """Give the message to every group of the topic."""
        woken: set[Consumer] = set()
        with self._lock:
            sequence = next(self._sequence)
            for group, queue in self._queues[topic].items():
                item = Item(sequence=sequence, topic=topic, group=group, data=data)
                if queue.add(item):
                    if not self._dropped[topic]:
                        _log.error(
                            "a group reads too slowly; its oldest messages are dropped", group=group
                        )
                    self._dropped[topic] += 1
                woken |= queue.waiters
                queue.waiters.clear()
        for consumer in woken:
            consumer.wake()

    @property
    def dropped(self) -> Counter[TopicNames]:
        """Messages that went before a group had read them, by topic, once for each such group."""
        with self._lock:
            return self._dropped.copy()

    def create_group(self, topics: Collection[TopicNames], group: str) -> None:
        """Keep messages for `group` from now on; idempotent."""
        with self._lock:
            for topic in topics:
                self._queues[topic].setdefault(group, _Queue())

    def remove_group(self, topics: Collection[TopicNames], group: str) -> None:
        """Forget `group` and what it has not acknowledged; idempotent."""
        woken: set[Consumer] = set()
        with self._lock:
            for topic in topics:
                if queue := self._queues[topic].pop(group, None):
                    woken |= queue.waiters
        for consumer in woken:
            consumer.wake()

    def take(self, consumer: Consumer, *, reclaim_after_seconds: float) -> Item | float:
        """Hand the oldest message that waits for the consumer's group to the consumer.

        Returns:
            the message, or for how many seconds the consumer should wait: it is woken when one
            comes, and must look again by itself when one in another's hands may be overdue.

        """
        now = time.monotonic()
        with self._lock:
            queues = [self._queue(topic, consumer.group) for topic in consumer.topics]
            wait_seconds = reclaim_after_seconds
            for queue in queues:
                wait_seconds = min(wait_seconds, _reclaim(queue, now, reclaim_after_seconds))
            heads = [(head, queue) for queue in queues if (head := queue.head()) is not None]
            if not heads:
                for queue in queues:
                    queue.waiters.add(consumer)
                return wait_seconds
            sequence, queue = min(heads, key=lambda pair: pair[0])
            heapq.heappop(queue.ready)
            item = queue.pending[sequence] = queue.unacknowledged[sequence]
            item.holder, item.delivered_at = consumer, now
            item.delivery_count += 1
            return item

    def acknowledge(self, item: Item) -> None:
        """Drop the message for its group, whoever holds it; idempotent."""
        with self._lock:
            if queue := self._queues[item.topic].get(item.group):
                queue.remove(item.sequence)

    def release(self, consumer: Consumer) -> None:
        """Let others have at once what the consumer has not acknowledged; wake no more."""
        woken: set[Consumer] = set()
        with self._lock:
            for topic in consumer.topics:
                if queue := self._queues[topic].get(consumer.group):
                    queue.waiters.discard(consumer)
                    held = [item for item in queue.pending.values() if item.holder is consumer]
                    for item in held:
                        queue.give_back(item)
                    if held:
                        woken |= queue.waiters
                        queue.waiters.clear()
        for other in woken:
            other.wake()

    def num_kept(self) -> int:
        """Count the messages kept, once for each group that has yet to acknowledge them."""
        with self._lock:
            return sum(
                len(queue.unacknowledged)
                for groups in self._queues.values()
                for queue in groups.values()
            )

    def groups(self) -> set[str]:
        """Return the groups that messages are kept for."""
        with self._lock:
            return {group for groups in self._queues.values() for group in groups}

    def _queue(self, topic: TopicNames, group: str) -> _Queue:
        queue = self._queues[topic].get(group)
        if queue is None:
            _log.error("consumer group vanished; created anew", topic=topic.value, group=group)
            queue = self._queues[topic][group] = _Queue()
        return queue


def _reclaim(queue: _Queue, now: float, reclaim_after_seconds: float) -> float:
    """Put back what is overdue; return the seconds until the next one will be (infinity: none)."""
    while queue.pending:
        oldest = next(iter(queue.pending.values()))
        remaining_seconds = oldest.delivered_at + reclaim_after_seconds - now
        if remaining_seconds > 0:
            return remaining_seconds
        queue.give_back(oldest)
    return math.inf


_brokers: dict[str, tuple[Broker, int]] = {}
_brokers_lock = Lock()


@contextmanager
def shared_broker(name: str) -> Generator[Broker]:
    """Share the broker of that name; it lasts as long as anyone in the process is in this context."""
    with _brokers_lock:
        broker, num_users = _brokers.get(name, (Broker(), 0))
        _brokers[name] = (broker, num_users + 1)
    try:
        yield broker
    finally:
        with _brokers_lock:
            num_users = _brokers[name][1] - 1
            if num_users:
                _brokers[name] = (broker, num_users)
            else:
                del _brokers[name]
