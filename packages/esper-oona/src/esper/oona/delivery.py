"""The delivery that both buses hand to a consumer, and what they agree on about dead letters.

The consumer gets a `BusDelivery`, which tells its bus (a `Holder`) what became of the message.
"""

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
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
MAX_BACKLOG = 100_000
"""Messages kept per topic; beyond it the oldest go, so that a group nobody reads cannot fill memory."""

_log = get_logger(__name__)


def check_subscription(topics: Collection[TopicNames], consumer: str, prefetch: int) -> None:
    """Raise `ConfigError` if a subscription asks for the impossible."""
    if not topics:
        raise ConfigError(f"consumer {consumer!r} subscribes to no topics; expected at least one")
    if prefetch < 1:
        raise ConfigError(f"consumer {consumer!r} has prefetch {prefetch}; expected 1 or more")


def unknown_letter(letter_id: str) -> NotFoundError:
    """Return the error for a letter that is not there."""
    return NotFoundError(
        f"there is no dead letter {letter_id!r}; it may have been requeued already (`dead_letters` "
        "lists those there are)"
    )


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
    def renew_every_seconds(self) -> float:
        """How often a hold is renewed so that it does not run out."""
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

    __slots__ = ("_entry", "_envelope", "_holder", "delivery_count")

    def __init__(
        self, envelope: Envelope, delivery_count: int, *, entry: E, holder: Holder[E]
    ) -> None:
        self._envelope = envelope
        self.delivery_count = delivery_count
        """How often the message was handed out to the group, this time included."""
        self._entry = entry
        self._holder = holder

    @property
    def message(self) -> OonaMessage:
        """The envelope."""
        return self._envelope.message

    def payload(self) -> Payload:
        """Return the typed payload. Raises `MessageError` if it does not fit its topic."""
        return self._envelope.payload()

    async def ack(self) -> None:
        """Report the message as handled; again is harmless."""
        await self._holder.acknowledge(self._entry)

    async def nack(self, *, delay_seconds: float = 0.0, counted: bool = True) -> None:
        """Give the message back, to be delivered again after the delay.

        Raises:
            ConfigError: if the delay is negative or no number.

        """
        if not delay_seconds >= 0:
            raise ConfigError(f"delay_seconds is {delay_seconds}; expected 0 or more")
        await self._holder.give_back(self._entry, delay_seconds=delay_seconds, counted=counted)

    async def dead_letter(self, reason: str) -> None:
        """Set the message aside with the reason."""
        await self._holder.bury(self._entry, reason)

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
            await asyncio.sleep(self._holder.renew_every_seconds)
            await self._holder.renew(self._entry)
