"""The delivery that both buses hand to a consumer, and what they agree on about dead letters.

The consumer gets a `BusDelivery`, which tells its bus (a `Holder`) what became of the message.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Protocol

from esper.contracts import (
    ConfigError,
    DeadLetter,
    NotFoundError,
    OonaMessage,
    Payload,
    TopicNames,
    get_logger,
)
from esper.oona.envelope import Envelope

MAX_DEAD_LETTERS = 10_000
"""Letters kept; beyond it the oldest go."""

SETTLE_LOOK_SECONDS = 0.02
"""A subscription that was told to stop looks this often whether what it yielded is settled."""

_log = get_logger(__name__)


def check_subscription(topics: Collection[TopicNames], consumer: str, prefetch: int) -> None:
    """Raise `ConfigError` if a subscription asks for the impossible."""
    if not topics:
        raise ConfigError(f"consumer {consumer!r} subscribes to no topics; expected at least one")
    if prefetch < 1:
        raise ConfigError(f"consumer {consumer!r} has prefetch {prefetch}; expected 1 or more")


def check_reading(until: datetime | str | None, *, follow: bool) -> None:
    """Raise `ConfigError` if a reader is to end and not to end."""
    if follow and until is not None:
        raise ConfigError(f"reading follows and ends at {until}; expected one or the other")


def unknown_letter(letter_id: str) -> NotFoundError:
    """Return the error for a letter that is not there."""
    return NotFoundError(
        f"there is no dead letter {letter_id!r}; it may have been requeued already (`dead_letters` "
        "lists those there are)"
    )


def letter_without_group(letter: DeadLetter) -> NotFoundError:
    """Return the error for a letter whose group was removed."""
    return NotFoundError(
        f"dead letter {letter.letter_id!r} belongs to the group {letter.group!r}, which is gone from "
        f"{letter.topic.value}; create the group first"
    )


def unknown_group(topic: TopicNames, group: str) -> NotFoundError:
    """Return the error for a group that a topic does not have."""
    return NotFoundError(
        f"{topic.value} has no group {group!r}; create it first (`create_group`), or correct the name"
    )


def check_bound(bound: datetime | str | None, *, pattern: str) -> str | None:
    """Return the position that `read` begins or ends at; None if the bound is a time, or none.

    Raises:
        ConfigError: if it is neither an aware time nor a position of this bus.

    """
    if isinstance(bound, datetime):
        if bound.tzinfo is None:
            raise ConfigError(f"the time {bound} has no time zone; expected an aware one")
        return None
    if bound is not None and not re.fullmatch(pattern, bound, re.ASCII):
        raise ConfigError(
            f"{bound!r} is no position on this bus; expected what a delivery or a record has as "
            "its position, or a time"
        )
    return bound


def exhausted(delivery_count: int) -> str:
    """Return the reason for the dead letter of a message that nobody acknowledged."""
    return f"handed out {delivery_count} times and never acknowledged"


def tell_dead_letter(letter: DeadLetter) -> None:
    """Log that a message was set aside."""
    _log.error(
        "message went to the dead letters",
        letter=letter.letter_id,
        topic=letter.topic.value,
        group=letter.group,
        reason=letter.reason,
    )


class Holder[E](Protocol):
    """The side of a bus that deliveries report to; `E` is how it knows the message."""

    @property
    def hold_seconds(self) -> float:
        """After how long others get a message that is not renewed."""
        ...

    @property
    def max_deliveries(self) -> int:
        """How often a message is handed out at most."""
        ...

    def position(self, entry: E) -> str:
        """Return where the message is on its topic."""
        ...

    async def attempt(self, entry: E, *, counted: bool) -> int:
        """Count a try of an exclusive consumer; return the tries so far, 0 for not to be handled."""
        ...

    async def acknowledge(self, entry: E) -> None:
        """Note that the message was handled; again is harmless."""
        ...

    async def give_back(self, entry: E, *, delay_seconds: float, counted: bool) -> None:
        """Let the group have it again, unless it has been taken over meanwhile."""
        ...

    async def bury(self, entry: E, reason: str) -> None:
        """Move it to the dead letters."""
        ...

    async def renew(self, entry: E) -> None:
        """Start the time anew after which others get it; quiet when a server is away."""
        ...


class BusDelivery[E]:
    """One message in the hands of one consumer; implements the port `Delivery`."""

    __slots__ = ("_entry", "_envelope", "_holder", "delivery_count", "is_settled")

    def __init__(
        self, envelope: Envelope, delivery_count: int, *, entry: E, holder: Holder[E]
    ) -> None:
        self._envelope = envelope
        self.delivery_count = delivery_count
        """How often the message was handed out to the group, this time included."""
        self.is_settled = False
        """Whether it was acknowledged, given back or set aside through this object."""
        self._entry = entry
        self._holder = holder

    @property
    def attempts_left(self) -> int:
        """How often the message may still be handed out; at 0, giving it back sets it aside."""
        return self._holder.max_deliveries - self.delivery_count

    @property
    def position(self) -> str:
        """Where the message is on its topic."""
        return self._holder.position(self._entry)

    @property
    def hold_seconds(self) -> float:
        """After how long without `renew` others get the message."""
        return self._holder.hold_seconds

    @property
    def message(self) -> OonaMessage:
        """The envelope."""
        return self._envelope.message

    @property
    def trace_id(self) -> str:
        """What the message belongs to."""
        return self._envelope.trace_id

    @property
    def traceparent(self) -> str | None:
        """The span that the message was published in, if there was one."""
        return self._envelope.traceparent

    def payload(self) -> Payload:
        """Return the typed payload. Raises `MessageError` if it does not fit its topic."""
        return self._envelope.payload()

    async def attempt(self, *, counted: bool = True) -> bool:
        """Count a try that begins now; tell whether the message may be handled (see the port)."""
        num_tries = await self._holder.attempt(self._entry, counted=counted)
        self.delivery_count = num_tries or self.delivery_count
        return num_tries > 0

    async def ack(self) -> None:
        """Report the message as handled; again is harmless."""
        self.is_settled = True
        await self._holder.acknowledge(self._entry)

    async def nack(self, *, delay_seconds: float = 0.0, counted: bool = True) -> None:
        """Give the message back, to be delivered again after the delay.

        Raises:
            ConfigError: if the delay is negative or no number.

        """
        if not delay_seconds >= 0:
            raise ConfigError(f"delay_seconds is {delay_seconds}; expected 0 or more")
        self.is_settled = True
        await self._holder.give_back(self._entry, delay_seconds=delay_seconds, counted=counted)

    async def dead_letter(self, reason: str) -> None:
        """Set the message aside with the reason."""
        self.is_settled = True
        await self._holder.bury(self._entry, reason)

    async def renew(self) -> None:
        """Start anew the time after which others get the message."""
        await self._holder.renew(self._entry)

    @asynccontextmanager
    async def keep(self) -> AsyncGenerator[None]:
        """Renew the hold on the message until the context ends."""
        renewing = asyncio.create_task(self._renew(), name="oona-keep")
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait(
                {renewing}
            )  # awaiting the task itself would hide our own cancellation

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.hold_seconds / 3)
            await self.renew()
