"""How the in-memory broker stands, in the words of the contract; `Broker.health` calls it."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from esper.contracts import ConsumerHealth, GroupHealth, TopicHealth, TopicNames
from esper.oona.envelope import Envelope


class _Consumer(Protocol):
    @property
    def name(self) -> str: ...


class _Item(Protocol):
    @property
    def holder(self) -> _Consumer | None: ...

    @property
    def envelope(self) -> Envelope: ...

    @property
    def delivery_count(self) -> int: ...

    @property
    def delivered_at(self) -> float: ...


class _Queue(Protocol):
    """What one group has not acknowledged on one topic."""

    @property
    def unacknowledged(self) -> Mapping[int, _Item]: ...


def topic_health(
    topic: TopicNames,
    queues: Mapping[str, _Queue],
    letters: Mapping[tuple[TopicNames, str], int],
    *,
    now: datetime,
) -> TopicHealth | None:
    """Return how one topic stands; None if there is nothing to tell.

    Args:
        topic: which.
        queues: what each of its groups has not acknowledged.
        letters: number of dead letters by topic and group.
        now: in UTC.

    """
    if not queues:
        return None
    kept = {
        sequence: item.envelope.timestamp
        for queue in queues.values()
        for sequence, item in queue.unacknowledged.items()
    }
    return TopicHealth(
        topic=topic,
        length=len(kept),
        oldest_seconds=_age(min(kept.values()), now) if kept else None,
        newest_seconds=_age(max(kept.values()), now) if kept else None,
        groups=tuple(
            _group_health(topic, group, queue, letters.get((topic, group), 0), now=now)
            for group, queue in sorted(queues.items())
        ),
    )


def _group_health(
    topic: TopicNames, group: str, queue: _Queue, num_letters: int, *, now: datetime
) -> GroupHealth:
    # What was given back is in nobody's hands, and has been handed out all the same.
    in_flight = [item for item in queue.unacknowledged.values() if item.delivered_at]
    held = Counter(item.holder.name for item in in_flight if item.holder is not None)
    return GroupHealth(
        topic=topic,
        group=group,
        lag=len(queue.unacknowledged) - len(in_flight),
        num_in_flight=len(in_flight),
        num_redelivered=sum(item.delivery_count > 1 for item in in_flight),
        oldest_in_flight_seconds=max(
            (_age(item.envelope.timestamp, now) for item in in_flight), default=None
        ),
        num_dead_letters=num_letters,
        consumers=tuple(
            ConsumerHealth(name=name, num_in_flight=count) for name, count in sorted(held.items())
        ),
    )


def _age(timestamp: datetime, now: datetime) -> float:
    return max(0.0, (now - timestamp).total_seconds())
