"""What one client has moved, in plain integers: cheap enough to be counted for every message.

Both buses count into a `Traffic`; `Bus.traffic` hands out a copy, which `metrics` exports.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from threading import Lock
from time import time

from esper.contracts import (
    LATENCY_BOUNDS_SECONDS,
    BusTraffic,
    GroupTraffic,
    TopicNames,
)
from esper.oona.outbox import Outcome
from esper.oona.outbox_queue import Entry

_BOUNDS_MS = [round(bound * 1000) for bound in LATENCY_BOUNDS_SECONDS]
_MICROSECOND = 1e-6


class GroupTally:
    """Counts for one group on one topic; belongs to the event loop of the client."""

    __slots__ = (
        "acknowledged",
        "dead_lettered",
        "latency_counts",
        "latency_seconds",
        "received",
        "redelivered",
    )

    def __init__(self) -> None:
        self.received = 0
        self.redelivered = 0
        self.acknowledged = 0
        self.dead_lettered = 0
        self.latency_counts = [0] * (len(_BOUNDS_MS) + 1)
        self.latency_seconds = 0.0

    def count_latency(self, seconds: float) -> None:
        """Count how long one message took."""
        self.latency_counts[bisect_left(LATENCY_BOUNDS_SECONDS, seconds - _MICROSECOND)] += 1
        self.latency_seconds += max(seconds, 0.0)

    def count_acknowledged(self, entry_ids: Sequence[bytes]) -> None:
        """Count stream entries that the server knows as handled, and how long they took.

        By the server's clock and ours: the ids begin with the milliseconds when the server got them.
        For their sum, those that are acknowledged together count as evenly spread.
        """
        # Ids of one length sort as bytes, so that only few of them need to be read as numbers.
        ids, now_ms = sorted(entry_ids), int(time() * 1000)
        longest_ms = max(0, now_ms - int(ids[0].partition(b"-")[0]))
        shortest_ms = max(0, now_ms - int(ids[-1].partition(b"-")[0]))
        self.acknowledged += len(ids)
        self.latency_seconds += len(ids) * (longest_ms + shortest_ms) / 2000
        end = len(ids)
        for bucket in range(bisect_left(_BOUNDS_MS, shortest_ms), len(_BOUNDS_MS)):
            begin = bisect_left(ids, b"%d" % (now_ms - _BOUNDS_MS[bucket]), 0, end)
            self.latency_counts[bucket] += end - begin
            end = begin
            if not end:
                return
        self.latency_counts[-1] += end


class Traffic:
    """Counts for one client."""

    def __init__(self) -> None:
        self.published: Counter[TopicNames] = Counter()
        self._groups: dict[tuple[TopicNames, str], GroupTally] = {}
        self._lock = Lock()

    def group(self, topic: TopicNames, group: str) -> GroupTally:
        """Return where to count for a group on a topic."""
        with self._lock:
            return self._groups.setdefault((topic, group), GroupTally())

    def count_published(self, batch: Sequence[Entry], outcome: Outcome) -> None:
        """Count what the server has taken of a batch."""
        self.published.update([entry.envelope.topic for entry in batch])
        if outcome.again or outcome.refused:
            missing = [*outcome.again, *(entry for entry, _ in outcome.refused)]
            self.published.subtract([entry.envelope.topic for entry in missing])

    def read(self) -> BusTraffic:
        """Return the counts as they are now; from any thread."""
        with self._lock:
            tallies = dict(self._groups)
        return BusTraffic(
            published=dict(self.published),
            groups=[
                GroupTraffic(
                    topic=topic,
                    group=group,
                    num_received=tally.received,
                    num_redelivered=tally.redelivered,
                    num_acknowledged=tally.acknowledged,
                    num_dead_lettered=tally.dead_lettered,
                    latency_counts=list(tally.latency_counts),
                    latency_seconds=tally.latency_seconds,
                )
                for (topic, group), tally in sorted(tallies.items())
            ],
        )
