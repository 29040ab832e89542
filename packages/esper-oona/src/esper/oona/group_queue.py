"""What one group of the in-memory broker has not acknowledged on one topic, and who waits for it.

`broker` keeps one `GroupQueue` for each group and topic, under its lock.
"""

import asyncio
import heapq
import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace

from esper.contracts import TopicNames
from esper.oona.envelope import Envelope
from esper.oona.traffic import Traffic


class Waiter:
    """Waits in its event loop until a thread wakes it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    @property
    def is_alive(self) -> bool:
        """Whether its event loop may still run."""
        return not self._loop.is_closed()

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


class Consumer(Waiter):
    """One consumer of a group; holds messages."""

    def __init__(
        self,
        topics: Collection[TopicNames],
        group: str,
        name: str,
        traffic: Traffic,
        *,
        exclusive: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.topics = frozenset(topics)
        self.group = group
        self.tallies = {topic: traffic.group(topic, group) for topic in topics}
        self.is_exclusive = exclusive
        """It takes messages only while it leads the queues of its topics, and counts tries itself."""


@dataclass(eq=False, slots=True)
class Item:
    """One message for one group, until the group acknowledges it."""

    sequence: int
    """Position among all messages of the broker."""
    group: str
    envelope: Envelope
    published_at: float
    """Monotonic seconds."""
    holder: Consumer | None = None
    """Who has it in hand; None while it waits."""
    delivered_at: float = 0.0
    """Monotonic seconds of the latest delivery; 0 before the first."""
    delivery_count: int = 0
    due_at: float = 0.0
    """Monotonic seconds before which it is not handed out again."""


@dataclass(kw_only=True, eq=False, slots=True)
class GroupQueue:
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
    leader: Consumer | None = None
    """The exclusive consumer that alone takes messages; what it holds is never overdue."""

    warn_at: int = 0
    """Messages from which on it is said that the group does not read."""

    def add(self, item: Item) -> None:
        """Keep a new message."""
        self.unacknowledged[item.sequence] = item
        heapq.heappush(self.ready, item.sequence)

    def drop_oldest(self) -> None:
        """Forget the oldest message, whoever has it."""
        self.remove(next(iter(self.unacknowledged)))
        self.head()

    def drop_older(self, than: float) -> int:
        """Forget what was published before; return how many those were."""
        old = [n for n, item in self.unacknowledged.items() if item.published_at < than]
        for sequence in old:
            self.remove(sequence)
        self.head()
        return len(old)

    def remove(self, sequence: int) -> None:
        """Forget the message: it is settled."""
        self.unacknowledged.pop(sequence, None)
        self.pending.pop(sequence, None)
        self.delayed.pop(sequence, None)

    def give_back(self, item: Item) -> None:
        """Let the message wait for a consumer again."""
        self.pending.pop(item.sequence, None)
        item.holder = None
        heapq.heappush(self.ready, item.sequence)

    def reclaim(self, now: float, reclaim_after_seconds: float) -> float:
        """Put back what is overdue; return the seconds until the next one will be (infinity: none)."""
        while self.pending and self.leader is None:
            oldest = next(iter(self.pending.values()))
            remaining_seconds = oldest.delivered_at + reclaim_after_seconds - now
            if remaining_seconds > 0:
                return remaining_seconds
            # Another object, so that a late word about this delivery does not concern the next one.
            again = replace(oldest)
            oldest.holder = None
            self.unacknowledged[oldest.sequence] = again
            self.give_back(again)
        return math.inf

    def release(self, consumer: Consumer) -> bool:
        """Put back what the consumer holds; tell whether others may have something to take now."""
        self.waiters.discard(consumer)
        held = [item for item in self.pending.values() if item.holder is consumer]
        for item in held:
            self.give_back(item)
        was_leader = self.leader is consumer
        if was_leader:
            self.leader = None
        return was_leader or bool(held)

    def take_due(self, now: float) -> float:
        """Let what is due wait again; return the seconds until the next is (infinity: none)."""
        for item in [item for item in self.delayed.values() if item.due_at <= now]:
            del self.delayed[item.sequence]
            self.give_back(item)
        return min((item.due_at for item in self.delayed.values()), default=math.inf) - now

    def head(self) -> int | None:
        """Return the oldest that waits, and forget those before it that are gone or in hand.

        What was settled while it waited, and came back from the dead letters, stands there twice.
        """
        while self.ready and not self._waits(self.ready[0]):
            heapq.heappop(self.ready)
        return self.ready[0] if self.ready else None

    def _waits(self, sequence: int) -> bool:
        return (
            sequence in self.unacknowledged
            and sequence not in self.pending
            and sequence not in self.delayed
        )
