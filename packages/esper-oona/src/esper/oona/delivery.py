"""The envelope as bytes, and the delivery that both buses hand to a consumer.

Buses encode what is published and decode what is read; the consumer gets a `BusDelivery`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import ValidationError

from esper.contracts import MessageError, OonaMessage, Payload, TopicNames, unseal

MAX_BACKLOG = 100_000
"""Messages kept per topic; beyond it the oldest go, so that a group nobody reads cannot fill memory."""


def encode(message: OonaMessage) -> bytes:
    """Return the envelope as JSON in UTF-8."""
    return message.model_dump_json().encode()


def decode(data: bytes, *, topic: TopicNames) -> OonaMessage:
    """Return the envelope that `encode` wrote.

    Raises:
        MessageError: if the bytes are no envelope, or the envelope belongs on another topic.

    """
    try:
        message = OonaMessage.model_validate_json(data)
    except ValidationError as error:
        raise MessageError(f"an entry on {topic.value} is no envelope: {error}") from error
    if message.topic is not topic:
        raise MessageError(
            f"message {message.event_id} on {topic.value} says that it belongs on {message.topic.value}"
        )
    return message


@dataclass(frozen=True, kw_only=True)
class BusDelivery:
    """One message in the hands of one consumer; implements the port `Delivery`."""

    message: OonaMessage
    delivery_count: int
    """How often the message was handed out to the group, this time included."""
    acknowledge: Callable[[], Awaitable[None]]
    """How the bus is told; `ack` is what consumers call."""

    def payload(self) -> Payload:
        """Return the typed payload. Raises `MessageError` if it does not fit its topic."""
        return unseal(self.message)

    async def ack(self) -> None:
        """Report the message as handled; again is harmless."""
        await self.acknowledge()
