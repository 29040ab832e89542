"""The port of the message bus: what backends implement, and what consumers hold in their hands.

`ports` has the other ports. Methods raise `EsperError` children only.
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from esper.contracts.bus_health import BusHealth, BusTraffic, GroupLosses
from esper.contracts.messages import DeadLetter, OonaMessage, Payload, Record, TopicNames


class Delivery(Protocol):
    """One message in the hands of one consumer; redelivered until it is acknowledged."""

    @property
    def message(self) -> OonaMessage:
        """The envelope."""
        ...

    @property
    def delivery_count(self) -> int:
        """How often this message was handed out to the group, this time included."""
        ...

    @property
    def trace_id(self) -> str:
        """What the message belongs to; the envelope's, without unpacking that."""
        ...

    @property
    def traceparent(self) -> str | None:
        """The span that the message was published in (W3C Trace Context), if there was one."""
        ...

    @property
    def attempts_left(self) -> int:
        """How often the message may still be handed out; at 0, giving it back sets it aside."""
        ...

    @property
    def position(self) -> str:
        """Where the message is on its topic; what `read` and `replay` can begin at."""
        ...

    @property
    def hold_seconds(self) -> float:
        """After how long without `renew` others get the message."""
        ...

    @property
    def is_settled(self) -> bool:
        """Whether it was acknowledged, given back or set aside through this object."""
        ...

    def payload(self) -> Payload:
        """Return the typed payload.

        Raises:
            MessageError: if the payload does not fit its topic.

        """
        ...

    async def attempt(self, *, counted: bool = True) -> bool:
        """Count a try that begins now; tell whether the message may be handled.

        For messages of an exclusive subscription, before each try, the first included. They are not
        to be handled if others may have them meanwhile, or if they were tried too often and are set
        aside now.

        Args:
            counted: False if the try before broke off through no fault of the message; then only the
                hold is checked.

        """
        ...

    async def ack(self) -> None:
        """Report the message as handled: the group never sees it again.

        With a prefetch, acknowledgements travel together a moment later; who dies before that sees
        the message again.
        """
        ...

    async def nack(self, *, delay_seconds: float = 0.0, counted: bool = True) -> None:
        """Give the message back: the group gets it again, after the delay.

        Args:
            delay_seconds: at least so long.
            counted: False if the message is not to blame, as when a server was away; then the
                attempt is not counted towards the dead letters.

        """
        ...

    async def dead_letter(self, reason: str) -> None:
        """Set the message aside with the reason: the group sees it again only if it is requeued."""
        ...

    async def renew(self) -> None:
        """Start anew the time after which others get the message; quiet when a server is away."""
        ...

    def keep(self) -> AbstractAsyncContextManager[None]:
        """Within the context nobody else gets the message, however long the handling takes."""
        ...


class Bus(Protocol):
    """A message bus: at-least-once delivery to each consumer group.

    One client belongs to the event loop that opened it; only `publish_nowait`, `health` and `lost` may
    be used from other threads.
    """

    async def open(self) -> None:
        """Connect.

        Raises:
            BackendUnavailableError: if the server cannot be reached or refuses the credentials.

        """
        ...

    async def close(self) -> None:
        """Send what is queued, for a few seconds at most, count the rest as lost, disconnect."""
        ...

    async def publish(
        self, payload: Payload, *, sender_id: str, trace_id: str | None = None
    ) -> str:
        """Send `payload` on its topic and return its event id once the bus has it.

        Args:
            payload: of a model that some topic carries.
            sender_id: who sends it.
            trace_id: what it belongs to; None for the trace of the message in hand (`handling`), or
                a new one. The same holds for the other ways to publish.

        Raises:
            MessageError: if no topic carries such a payload, or a name is empty.
            BackendUnavailableError: if an outage lasts.

        """
        ...

    async def publish_many(
        self, payloads: Sequence[Payload], *, sender_id: str, trace_id: str | None = None
    ) -> Sequence[str]:
        """Send all of them, in order, and return their event ids once the bus has every one.

        Raises:
            MessageError: if no topic carries one of them; then none is sent.

        """
        ...

    def publish_nowait(
        self, payload: Payload, *, sender_id: str, trace_id: str | None = None
    ) -> None:
        """Queue `payload` and return at once, from any thread.

        Never blocks, and never raises for a dead server: a message that cannot be kept is counted
        in `lost`.
        """
        ...

    async def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything queued was sent; tell whether that happened in time."""
        ...

    async def create_group(self, topics: Collection[TopicNames], *, group: str) -> None:
        """Let `group` receive every message published to `topics` from now on; idempotent."""
        ...

    async def remove_group(self, topics: Collection[TopicNames], *, group: str) -> None:
        """Forget `group` on `topics`, with whatever it has not acknowledged; idempotent."""
        ...

    def subscribe(
        self,
        topics: Collection[TopicNames],
        *,
        group: str,
        consumer: str,
        prefetch: int = 1,
        exclusive: bool = False,
        stop: asyncio.Event | None = None,
    ) -> AsyncGenerator[Delivery]:
        """Yield messages for `group`, creating it if need be, until the generator is closed.

        A `prefetch` above 1 is for quick handlers: so many messages are fetched at once and
        acknowledged together. With 1, consumers share slow work evenly.

        Close it (`contextlib.aclosing`), or what it holds waits for the garbage collector.

        A message that another consumer of the group held for too long without acknowledging it is
        delivered again. A connection that drops is re-established; the iterator goes on. A message
        that was handed out too often without being acknowledged goes to the dead letters.

        Args:
            topics: what to read.
            group: for whom.
            consumer: by whom.
            prefetch: see above.
            exclusive: one such subscription at a time is active for the group on a topic; the others
                wait, and one takes over within seconds when it ends or dies. It yields everything
                that is not acknowledged in the order of its topic, however much is in hand; each
                message is to be asked for its `attempt` before it is handled.
            stop: once it is set, what was fetched already is yielded, and the iterator ends when all
                of it is settled or overdue.

        """
        ...

    def read(
        self,
        topics: Collection[TopicNames],
        *,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[Record]:
        """Yield what the topics hold, in the order of publishing, without a group.

        For looking: nothing is acknowledged, and nobody gets less for it. Across topics, the order
        holds to the millisecond.

        Args:
            topics: what to read.
            since: an aware time or a position to begin at, itself included; None for the oldest kept.
            until: a time or a position to end at, itself included; None for the newest there is.
            follow: wait for more instead of ending with the newest.

        Raises:
            ConfigError: if a time is naive or a position is none.

        """
        ...

    async def replay(
        self, topics: Collection[TopicNames], *, group: str, since: datetime | str | None = None
    ) -> None:
        """Hand the group again everything that the topics still hold from `since` on.

        Messages that it has not reached yet come once, and no other group is concerned.

        Args:
            topics: what to hand out again.
            group: to whom.
            since: as for `read`.

        Raises:
            ConfigError: if a time is naive or a position is none.
            NotFoundError: if a topic has no such group; then nothing is handed out again.

        """
        ...

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        """Return what was set aside, by any group, oldest first."""
        ...

    async def requeue(self, letter_id: str) -> None:
        """Hand a dead letter to its group once more, as it was, with its attempts forgotten.

        Raises:
            NotFoundError: if there is no such letter, or its group was removed.

        """
        ...

    async def health(self) -> BusHealth:
        """Return how the bus stands: its server, its topics, and how far each group is.

        From any thread and event loop, also while the client is closed or its server is away: then
        the answer says so. It never raises for that.
        """
        ...

    async def group_losses(self) -> Sequence[GroupLosses]:
        """Return what each group of the bus has lost so far, whichever client noticed."""
        ...

    @property
    def traffic(self) -> BusTraffic:
        """What this client has published, received, acknowledged and set aside; from any thread."""
        ...

    @property
    def lost(self) -> Mapping[TopicNames, int]:
        """Messages that never reached the bus, or that this client found to be lost to a group.

        By topic. A group loses what its topic's retention drops unread, and what vanishes with it.
        """
        ...
