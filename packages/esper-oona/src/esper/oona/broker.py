"""The in-memory broker: consumer groups with pending entries, shared by threads and event loops.

`MemoryBus` clients of one name put messages in and take them out. Each group has a queue of
its own per topic, so a message is gone once every group acknowledged it, and is never kept where there
is no group.
"""

import heapq
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import count, islice
from threading import Lock

from esper.contracts import (
    DeadLetter,
    GroupLosses,
    TopicHealth,
    TopicNames,
    get_logger,
    utc_now,
)
from esper.oona.broker_health import topic_health
from esper.oona.delivery import (
    MAX_DEAD_LETTERS,
    exhausted,
    letter_without_group,
    tell_dead_letter,
    unknown_letter,
)
from esper.oona.envelope import Envelope
from esper.oona.group_queue import Consumer, GroupQueue, Item, Waiter
from esper.oona.retention import DATA_LOSS, DEFAULT_RETENTION, HELD_UP, Retention
from esper.oona.topic_log import Logged, Span, TopicLog

_EXPIRE_SECONDS = 5.0
"""Between two looks for what is too old."""

_READ_LIMIT = 100

_TURN_SECONDS = 1.0
"""An exclusive consumer that waits for its turn looks this often whether the leader's loop is gone."""

_log = get_logger(__name__)


class Broker:
    """Groups and their queues; every method is thread-safe and returns at once."""

    def __init__(self, retention: Mapping[TopicNames, Retention] = DEFAULT_RETENTION) -> None:
        self._lock = Lock()
        self._retention = retention
        self._expire_every = min(
            _EXPIRE_SECONDS, *(policy.max_age_seconds / 4 for policy in retention.values())
        )
        self._expire_at = 0.0
        self._sequence = count(1)
        self._dropped: Counter[TopicNames] = Counter()
        self._losses: Counter[tuple[TopicNames, str]] = Counter()
        self._recreated: Counter[tuple[TopicNames, str]] = Counter()
        self._queues: dict[TopicNames, dict[str, GroupQueue]] = {topic: {} for topic in TopicNames}
        self._logs = {topic: TopicLog() for topic in TopicNames}
        self._letters: dict[str, tuple[DeadLetter, Item]] = {}

    def publish(self, envelopes: Iterable[Envelope]) -> None:
        """Give the messages to every group of their topics."""
        woken: set[Waiter] = set()
        now = time.monotonic()
        with self._lock:
            self._expire(now)
            for envelope in envelopes:
                sequence = next(self._sequence)
                log = self._logs[envelope.topic]
                log.add(sequence, envelope)
                if log.waiters:
                    woken |= log.waiters
                    log.waiters.clear()
                policy = self._retention[envelope.topic]
                for group, queue in self._queues[envelope.topic].items():
                    if len(queue.unacknowledged) >= policy.max_length:
                        self._overflow(envelope.topic, group, queue, policy)
                    queue.add(Item(sequence, group, envelope, now))
                    if queue.waiters:
                        woken |= queue.waiters
                        queue.waiters.clear()
        for consumer in woken:
            consumer.wake()

    @property
    def dropped(self) -> Counter[TopicNames]:
        """Messages that went before a group had acknowledged them, by topic, once for each group."""
        with self._lock:
            return self._dropped.copy()

    def group_losses(self) -> list[GroupLosses]:
        """Return what each group lost so far."""
        with self._lock:
            return [
                GroupLosses(
                    topic=topic,
                    group=group,
                    num_lost=self._losses[topic, group],
                    num_recreated=self._recreated[topic, group],
                )
                for topic, groups in self._queues.items()
                for group in sorted(groups)
            ]

    def create_group(self, topics: Collection[TopicNames], group: str) -> None:
        """Keep messages for `group` from now on; idempotent."""
        with self._lock:
            for topic in topics:
                self._queues[topic].setdefault(group, GroupQueue())

    def remove_group(self, topics: Collection[TopicNames], group: str) -> None:
        """Forget `group` and what it has not acknowledged; idempotent."""
        woken: set[Consumer] = set()
        with self._lock:
            for topic in topics:
                if queue := self._queues[topic].pop(group, None):
                    woken |= queue.waiters
                for counter in (self._losses, self._recreated):
                    counter.pop((topic, group), None)
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
            self._expire(now)
            queues = [self._queue(topic, consumer.group) for topic in consumer.topics]
            if consumer.is_exclusive and not _lead(consumer, queues):
                return _TURN_SECONDS
            wait_seconds = reclaim_after_seconds
            for queue in queues:
                if queue.pending:
                    wait_seconds = min(wait_seconds, queue.reclaim(now, reclaim_after_seconds))
                if queue.delayed:
                    wait_seconds = min(wait_seconds, queue.take_due(now))
            while heads := [(head, queue) for queue in queues if (head := queue.head())]:
                sequence, queue = min(heads, key=lambda pair: pair[0])
                heapq.heappop(queue.ready)
                item = queue.unacknowledged[sequence]
                if item.delivery_count >= max_deliveries:
                    self._file(item, exhausted(item.delivery_count))
                    consumer.tallies[item.envelope.topic].dead_lettered += 1
                    continue
                queue.pending[sequence] = item
                item.holder, item.delivered_at = consumer, now
                item.delivery_count += not consumer.is_exclusive
                return item
            for queue in queues:
                queue.waiters.add(consumer)
            return wait_seconds

    def attempt(self, item: Item, holder: Consumer, *, counted: bool, max_deliveries: int) -> int:
        """Count a try of an exclusive consumer; return the tries so far, 0 for not to be handled."""
        with self._lock:
            queue = self._queues[item.envelope.topic].get(item.group)
            if queue is None or item.sequence not in queue.pending or item.holder is not holder:
                return 0
            if counted and item.delivery_count >= max_deliveries:
                self._file(item, exhausted(item.delivery_count))
                return 0
            item.delivery_count += counted
            return item.delivery_count

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

    def bury(self, item: Item, reason: str) -> bool:
        """Move the message to the dead letters; tell if it was not acknowledged before."""
        with self._lock:
            queue = self._queues[item.envelope.topic].get(item.group)
            if queue is None or item.sequence not in queue.unacknowledged:
                return False
            self._file(item, reason)
            return True

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Return what was set aside, oldest first."""
        with self._lock:
            return [letter for letter, _ in islice(self._letters.values(), limit)]

    def requeue(self, letter_id: str) -> None:
        """Let the letter's group have the message again. Raises `NotFoundError`."""
        with self._lock:
            if letter_id not in self._letters:
                raise unknown_letter(letter_id)
            letter, item = self._letters[letter_id]
            queue = self._queues[letter.topic].get(letter.group)
            if queue is None:
                raise letter_without_group(letter)
            del self._letters[letter_id]
            item.delivery_count = 0
            queue.unacknowledged[item.sequence] = item
            queue.give_back(item)
            woken = queue.waiters.copy()
            queue.waiters.clear()
        for consumer in woken:
            consumer.wake()

    def read(
        self, topics: Collection[TopicNames], span: Span, waiter: Waiter | None
    ) -> list[Logged]:
        """Return the oldest messages of the span that are still kept, some at a time.

        If there are none, `waiter` is woken when there may be some.
        """
        with self._lock:
            logs = [self._logs[topic] for topic in topics]
            found = heapq.merge(*(log.within(span) for log in logs), key=lambda each: each.sequence)
            records = list(islice(found, _READ_LIMIT))
            if not records and waiter is not None:
                for log in logs:
                    log.waiters.add(waiter)
            return records

    @property
    def last_sequence(self) -> int:
        """The sequence number of the newest message; 0 before the first."""
        with self._lock:
            return max(log.last_sequence for log in self._logs.values())

    def replay(self, topics: Collection[TopicNames], group: str, span: Span) -> TopicNames | None:
        """Let the group have messages again; return a topic that has no such group instead."""
        woken: set[Consumer] = set()
        now = time.monotonic()
        with self._lock:
            for topic in topics:
                if group not in self._queues[topic]:
                    return topic
            for topic in topics:
                queue = self._queues[topic][group]
                for logged in self._logs[topic].within(span):
                    if logged.sequence not in queue.unacknowledged:
                        queue.add(Item(logged.sequence, group, logged.envelope, now))
                woken |= queue.waiters
                queue.waiters.clear()
        for consumer in woken:
            consumer.wake()
        return None

    def holds(self, consumer: Consumer, reclaim_after_seconds: float) -> bool:
        """Tell whether the consumer has something in hand that is not overdue."""
        oldest = time.monotonic() - reclaim_after_seconds
        with self._lock:
            queues = [self._queues[topic].get(consumer.group) for topic in consumer.topics]
            return any(
                item.holder is consumer and (consumer.is_exclusive or item.delivered_at > oldest)
                for queue in queues
                if queue is not None
                for item in queue.pending.values()
            )

    def release(self, consumer: Consumer) -> None:
        """Let others have at once what the consumer has not acknowledged; wake no more."""
        woken: set[Consumer] = set()
        with self._lock:
            for topic in consumer.topics:
                queue = self._queues[topic].get(consumer.group)
                if queue is not None and queue.release(consumer):
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

    def _expire(self, now: float) -> None:
        """Drop what is too old, where that may be dropped; looks every few seconds at most."""
        if now < self._expire_at:
            return
        self._expire_at = now + self._expire_every
        for topic, policy in self._retention.items():
            for group, queue in self._queues[topic].items() if policy.may_drop else ():
                self._count_dropped(topic, group, queue.drop_older(now - policy.max_age_seconds))

    def _overflow(
        self, topic: TopicNames, group: str, queue: GroupQueue, policy: Retention
    ) -> None:
        """Make room in a full queue, or say that it grows beyond its length."""
        num_kept = len(queue.unacknowledged)
        if policy.may_drop:
            queue.drop_oldest()
            self._count_dropped(topic, group, 1)
        elif num_kept >= queue.warn_at:
            queue.warn_at = 2 * num_kept
            _log.warning(HELD_UP, topic=topic.value, group=group, kept=num_kept)

    def _count_dropped(self, topic: TopicNames, group: str, number: int) -> None:
        """Count what was dropped unread, and say so once for each group."""
        if not number:
            return
        if not self._losses[topic, group]:
            _log.error(
                DATA_LOSS,
                topic=topic.value,
                group=group,
                lost=number,
                reason="trimmed while unread",
            )
        self._dropped[topic] += number
        self._losses[topic, group] += number

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

    def _queue(self, topic: TopicNames, group: str) -> GroupQueue:
        queue = self._queues[topic].get(group)
        if queue is None:
            self._recreated[topic, group] += 1
            _log.error(
                DATA_LOSS,
                topic=topic.value,
                group=group,
                lost=0,
                reason="consumer group vanished; created anew, for what is published from now on",
            )
            queue = self._queues[topic][group] = GroupQueue()
        return queue


def _lead(consumer: Consumer, queues: Collection[GroupQueue]) -> bool:
    """Let the consumer lead all of the queues, or wait for its turn; tell whether it does."""
    others = [(q, q.leader) for q in queues if q.leader is not None and q.leader is not consumer]
    if any(leader.is_alive for _, leader in others):
        for queue in queues:
            queue.waiters.add(consumer)
        return False
    for queue, dead in others:
        queue.release(dead)
    for queue in queues:
        queue.leader = consumer
    return True


_brokers: dict[str, tuple[Broker, int]] = {}
_brokers_lock = Lock()


@contextmanager
def shared_broker(
    name: str, retention: Mapping[TopicNames, Retention] = DEFAULT_RETENTION
) -> Generator[Broker]:
    """Share the broker of that name; it lasts as long as anyone in the process is in this context.

    Whoever comes first says what it keeps.
    """
    with _brokers_lock:
        broker, num_users = _brokers.get(name, (Broker(retention), 0))
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
