"""The in-memory broker: consumer groups with pending entries, shared by threads and event loops.

`MemoryBus` clients of one name put messages in and take them out. Each group has a queue of
its own per topic, so a message is gone once every group acknowledged it, and is never kept where there
is no group.
"""

import asyncio
import heapq
import math
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, islice
from threading import Lock

from esper.contracts import DeadLetter, TopicHealth, TopicNames, get_logger, utc_now
from esper.oona.broker_health import topic_health
from esper.oona.delivery import MAX_BACKLOG, MAX_DEAD_LETTERS, exhausted, tell_dead_letter
from esper.oona.envelope import Envelope

_log = get_logger(__name__)


class Consumer:
    """One consumer of a group, in its own event loop; holds messages and waits for them."""

    def __init__(self, topics: Collection[TopicNames], group: str, name: str) -> None:
        self.name = name
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


@dataclass(eq=False, slots=True)
class Item:
    """One message for one group, until the group acknowledges it."""

    sequence: int
    """Position among all messages of the broker."""
    group: str
    envelope: Envelope
    holder: Consumer | None = None
    """Who has it in hand; None while it waits."""
    delivered_at: float = 0.0
    """Monotonic seconds of the latest delivery."""
    delivery_count: int = 0
    due_at: float = 0.0
    """Monotonic seconds before which it is not handed out again."""


@dataclass(kw_only=True, eq=False, slots=True)
class _Queue:
    """What one group has not acknowledged on one topic, oldest first."""

    unacknowledged: dict[int, Item] = field(default_factory=dict[int, Item])
    ready: list[int] = field(default_factory=list[int])
    """Heap of sequence numbers that wait; one that left `unacknowledged` is skipped."""
    pending: dict[int, Item] = field(default_factory=dict[int, Item])
    """In hand, in order of delivery or renewal."""
    delayed: dict[int, Item] = field(default_factory=dict[int, Item])
    """Given back, not yet due."""
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
        self.delayed.pop(sequence, None)

    def give_back(self, item: Item) -> None:
        self.pending.pop(item.sequence, None)
        item.holder = None
        heapq.heappush(self.ready, item.sequence)

    def take_due(self, now: float) -> float:
        """Let what is due wait again; return the seconds until the next is (infinity: none)."""
        for item in [item for item in self.delayed.values() if item.due_at <= now]:
            del self.delayed[item.sequence]
            self.give_back(item)
        return min((item.due_at for item in self.delayed.values()), default=math.inf) - now

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
        self._letters: dict[str, tuple[DeadLetter, Item]] = {}

    def publish(self, envelopes: Iterable[Envelope]) -> None:
        """Give the messages to every group of their topics."""
        woken: set[Consumer] = set()
        with self._lock:
            for envelope in envelopes:
                sequence = next(self._sequence)
                for group, queue in self._queues[envelope.topic].items():
                    if queue.add(Item(sequence, group, envelope)):
                        self._count_dropped(envelope.topic, group)
                    if queue.waiters:
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

    def take(
        self, consumer: Consumer, *, reclaim_after_seconds: float, max_deliveries: int
    ) -> Item | float:
        """Hand the oldest message that waits for the consumer's group to the consumer.

        One that was handed out `max_deliveries` times in vain goes to the dead letters instead.

        Returns:
            the message, or for how many seconds the consumer should wait: it is woken when one
            comes, and must look again by itself when one in another's hands may be overdue.

        """
        now = time.monotonic()
        with self._lock:
            queues = [self._queue(topic, consumer.group) for topic in consumer.topics]
            wait_seconds = reclaim_after_seconds
            for queue in queues:
                if queue.pending:
                    wait_seconds = min(wait_seconds, _reclaim(queue, now, reclaim_after_seconds))
                if queue.delayed:
                    wait_seconds = min(wait_seconds, queue.take_due(now))
            while heads := [(head, queue) for queue in queues if (head := queue.head())]:
                sequence, queue = min(heads, key=lambda pair: pair[0])
                heapq.heappop(queue.ready)
                item = queue.unacknowledged[sequence]
                if item.delivery_count >= max_deliveries:
                    self._file(item, exhausted(item.delivery_count))
                    continue
                queue.pending[sequence] = item
                item.holder, item.delivered_at = consumer, now
                item.delivery_count += 1
                return item
            for queue in queues:
                queue.waiters.add(consumer)
            return wait_seconds

    def acknowledge(self, item: Item) -> None:
        """Drop the message for its group, whoever holds it; idempotent."""
        with self._lock:
            if queue := self._queues[item.envelope.topic].get(item.group):
                queue.remove(item.sequence)

    def give_back(
        self, item: Item, holder: Consumer, *, delay_seconds: float, counted: bool
    ) -> None:
        """Let the group have the message again after the delay, if `holder` still has it."""
        woken: set[Consumer] = set()
        with self._lock:
            queue = self._queues[item.envelope.topic].get(item.group)
            if queue is None or item.sequence not in queue.pending or item.holder is not holder:
                return
            item.delivery_count -= not counted
            if delay_seconds:
                del queue.pending[item.sequence]
                item.holder, item.due_at = None, time.monotonic() + delay_seconds
                queue.delayed[item.sequence] = item
            else:
                queue.give_back(item)
            woken |= queue.waiters
            queue.waiters.clear()
        for consumer in woken:
            consumer.wake()

    def renew(self, item: Item, holder: Consumer) -> None:
        """Count the time of the message in hand from now, if `holder` still has it."""
        with self._lock:
            queue = self._queues[item.envelope.topic].get(item.group)
            if queue and item.holder is holder and queue.pending.pop(item.sequence, None):
                item.delivered_at = time.monotonic()
                queue.pending[item.sequence] = item

    def bury(self, item: Item, reason: str) -> None:
        """Move the message to the dead letters, if it is not acknowledged."""
        with self._lock:
            queue = self._queues[item.envelope.topic].get(item.group)
            if queue and item.sequence in queue.unacknowledged:
                self._file(item, reason)

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Return what was set aside, oldest first."""
        with self._lock:
            return [letter for letter, _ in islice(self._letters.values(), limit)]

    def requeue(self, letter_id: str) -> bool:
        """Let the letter's group have the message again; tell whether there was such a letter."""
        with self._lock:
            _, item = self._letters.pop(letter_id, (None, None))
            if item is None:
                return False
            item.delivery_count = 0
            queue = self._queue(item.envelope.topic, item.group)
            queue.unacknowledged[item.sequence] = item
            queue.give_back(item)
            woken = queue.waiters.copy()
            queue.waiters.clear()
        for consumer in woken:
            consumer.wake()
        return True

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

    def health(self) -> tuple[TopicHealth, ...]:
        """Return how every topic that has groups stands."""
        with self._lock:
            letters = Counter((letter.topic, letter.group) for letter, _ in self._letters.values())
            topics = [
                topic_health(topic, queues, letters, now=utc_now())
                for topic, queues in self._queues.items()
            ]
        return tuple(topic for topic in topics if topic is not None)

    def num_letters(self) -> int:
        """Count the dead letters."""
        with self._lock:
            return len(self._letters)

    def groups(self) -> set[str]:
        """Return the groups that messages are kept for."""
        with self._lock:
            return {group for groups in self._queues.values() for group in groups}

    def _count_dropped(self, topic: TopicNames, group: str) -> None:
        if not self._dropped[topic]:
            _log.error("a group reads too slowly; its oldest messages are dropped", group=group)
        self._dropped[topic] += 1

    def _file(self, item: Item, reason: str) -> None:
        """Take the message from its group's queue and keep it as a letter."""
        self._queues[item.envelope.topic][item.group].remove(item.sequence)
        letter = DeadLetter(
            letter_id=f"{item.sequence}.{item.group}",
            topic=item.envelope.topic,
            group=item.group,
            reason=reason,
            delivery_count=item.delivery_count,
            data=item.envelope.data,
        )
        if len(self._letters) >= MAX_DEAD_LETTERS:
            del self._letters[next(iter(self._letters))]
        self._letters[letter.letter_id] = letter, item
        tell_dead_letter(letter)

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
