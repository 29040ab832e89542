"""What a bus tells about itself: how it stands (`BusHealth`), and what one client has moved (`BusTraffic`).

`Bus.health` and `Bus.traffic` return these; Oona's command line shows them, its metrics export them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from esper.contracts.base import Contract
from esper.contracts.messages import TopicNames

LATENCY_BOUNDS_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0),
)
"""Upper bounds of the buckets that latencies are counted in; a last one has none."""


class ConsumerHealth(Contract):
    """One consumer of a group, or what is left of it."""

    name: str
    idle_seconds: float | None = Field(default=None, ge=0)
    """Since it last took or renewed a message; None where nobody keeps time."""
    num_in_flight: int = Field(ge=0)
    """Messages that it has in hand."""


class GroupHealth(Contract):
    """One consumer group on one topic."""

    topic: TopicNames
    group: str
    lag: int = Field(ge=0)
    """Messages that no consumer of the group was handed yet."""
    is_lag_exact: bool = True
    """False where the server does not count (Redis 6.2, or entries deleted by hand) and the group is
    more than 10,000 behind: then the lag is at least so much."""
    num_in_flight: int = Field(ge=0)
    """Messages handed out and not acknowledged."""
    num_redelivered: int = Field(ge=0)
    """Those in flight that were handed out more than once; of the oldest 1,000."""
    oldest_in_flight_seconds: float | None = Field(default=None, ge=0)
    """Age of the oldest message in flight since it was published; None without one."""
    num_dead_letters: int = Field(default=0, ge=0)
    num_lost: int = Field(default=0, ge=0)
    """Messages that went before the group had acknowledged them (`Bus.group_losses`)."""
    consumers: tuple[ConsumerHealth, ...] = ()


class TopicHealth(Contract):
    """What one topic holds, and who reads it."""

    topic: TopicNames
    length: int = Field(ge=0)
    """Messages kept."""
    size_bytes: int | None = Field(default=None, ge=0)
    """About how much memory they take; None where that is not known cheaply."""
    oldest_seconds: float | None = Field(default=None, ge=0)
    newest_seconds: float | None = Field(default=None, ge=0)
    """Ages of the oldest and the newest message kept; None without one."""
    groups: tuple[GroupHealth, ...] = ()

    def with_losses(self, losses: Iterable["GroupLosses"]) -> "TopicHealth":
        """Return the same with what its groups have lost."""
        lost = {each.group: each.num_lost for each in losses if each.topic is self.topic}
        groups = [
            each.model_copy(update={"num_lost": lost.get(each.group, 0)}) for each in self.groups
        ]
        return self.model_copy(update={"groups": tuple(groups)})


class BusHealth(Contract):
    """A bus at one moment, by its server's clock. Without a server there is only the problem."""

    address: str
    """Where it is, without credentials."""
    is_reachable: bool
    problem: str | None = None
    """Why it is not reachable, and what to do."""
    server: str | None = None
    """`redis`, `valkey` or `memory`."""
    version: str | None = None
    round_trip_seconds: float | None = Field(default=None, ge=0)
    topics: tuple[TopicHealth, ...] = ()
    """Every topic that has messages or groups."""
    num_dead_letters: int = Field(default=0, ge=0)
    """Of all groups, those that are gone included."""
    num_queued: int = Field(default=0, ge=0)
    """Messages of this client that are still on their way to the bus."""
    lost: Mapping[TopicNames, int] = Field(default_factory=dict[TopicNames, int])
    """As in `Bus.lost`: what this client knows to be lost."""


@dataclass(frozen=True, kw_only=True)
class GroupTraffic:
    """What the consumers of one client have done for one group on one topic."""

    topic: TopicNames
    group: str
    num_received: int
    """Messages that the bus handed to them, repeated ones included."""
    num_redelivered: int
    """Those that had been handed out before, to anybody."""
    num_acknowledged: int
    num_dead_lettered: int
    latency_counts: Sequence[int]
    """Acknowledged messages by the time since the bus had them: one count for each of
    `LATENCY_BOUNDS_SECONDS`, and one for those above. A backend may measure only some."""
    latency_seconds: float
    """Sum of these times."""


@dataclass(frozen=True, kw_only=True)
class BusTraffic:
    """What one client has moved since it was made."""

    published: Mapping[TopicNames, int]
    """Messages that the bus has taken."""
    groups: Sequence[GroupTraffic]


@dataclass(frozen=True, kw_only=True)
class GroupLosses:
    """What one group has lost on one topic since it was created."""

    topic: TopicNames
    group: str
    num_lost: int
    """Messages that went before it had acknowledged them, as far as the bus can know."""
    num_recreated: int
    """How often it vanished from the server and began anew."""
