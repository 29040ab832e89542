"""One message on its way: typed inside the process, JSON outside of it.

Publishing makes an `Envelope` and reading makes one of bytes. It is packed and unpacked only where it
must be: late and outside of the publisher's thread on the way out, never within one process.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from threading import Lock
from typing import Any, Literal, cast

from pydantic import AwareDatetime, Field, ValidationError, create_model

from esper.contracts import (
    PAYLOADS,
    SCHEMA_VERSIONS,
    MessageError,
    MessageTooLargeError,
    OonaMessage,
    Payload,
    TopicNames,
    Trace,
    new_id,
    new_ids,
    parse_message,
    topic_of,
    trace_for,
    unseal,
    utc_now,
)

MAX_MESSAGE_BYTES = 1_048_576
"""Of a message as JSON. Ours have a few hundred; a stray megabyte would hold up every other message."""
_LONG_NAMES = 10_000
"""Characters of sender and trace together from which on a message is measured whatever it carries."""

_naming = Lock()


class Envelope:
    """An envelope with its payload; what is expensive is done once, when it is asked for.

    Several threads may share one.
    """

    __slots__ = (
        "_data",
        "_event_id",
        "_payload",
        "sender_id",
        "timestamp",
        "topic",
        "trace_id",
        "traceparent",
    )

    def __init__(
        self,
        payload: Payload | MessageError,
        topic: TopicNames,
        sender_id: str,
        timestamp: datetime,
        trace: Trace,
        *,
        event_id: str | None = None,
        data: bytes | None = None,
    ) -> None:
        self._payload = payload
        self.topic = topic
        self.sender_id = sender_id
        self.timestamp = timestamp
        """When it was published; aware, not always in UTC."""
        self.trace_id, self.traceparent = trace
        self._event_id = event_id
        self._data = data

    @property
    def event_id(self) -> str:
        """Names the message, however often it is sent and delivered."""
        if self._event_id is None:
            with _naming:  # or two threads could give it two names
                self._event_id = self._event_id or new_id()
        return self._event_id

    @property
    def data(self) -> bytes:
        """The envelope as JSON in UTF-8: as it was read, or as it is sent."""
        if self._data is None:
            self._data = self._encode()
        return self._data

    @property
    def message(self) -> OonaMessage:
        """The envelope as the contract has it."""
        return parse_message(self.data)

    def payload(self) -> Payload:
        """Return the typed payload. Raises `MessageError` if it does not fit its topic."""
        if isinstance(self._payload, MessageError):
            raise self._payload
        return self._payload

    def _encode(self) -> bytes:
        parent = "null" if self.traceparent is None else f'"{self.traceparent}"'
        return (
            f'{{"event_id":"{self.event_id}","sender_id":{_quoted(self.sender_id)},'
            f'"timestamp":"{self.timestamp.isoformat()}","trace_id":{_quoted(self.trace_id)},'
            f'"topic":"{self.topic.value}","schema_version":"{SCHEMA_VERSIONS[self.topic]}",'
            f'"traceparent":{parent},"payload":{self.payload().model_dump_json()}}}'
        ).encode()


def enclose(payload: Payload, *, sender_id: str, trace_id: str | None) -> Envelope:
    """Put `payload`, which is valid already, into an envelope.

    Args:
        payload: of a model that some topic carries.
        sender_id: who publishes it.
        trace_id: what it belongs to; None for the trace of the message in hand.

    Raises:
        MessageError: if no topic carries the payload, or sender or trace is empty.
        MessageTooLargeError: if it is larger than a bus takes.

    """
    return _enclose(payload, sender_id, trace_for(trace_id), utc_now())


def enclose_many(
    payloads: Sequence[Payload], *, sender_id: str, trace_id: str | None
) -> list[Envelope]:
    """As `enclose`, for several that belong to one trace and moment; raises before any is on its way."""
    trace, now, names = trace_for(trace_id), utc_now(), new_ids(len(payloads))
    return [
        _enclose(payload, sender_id, trace, now, event_id=name)
        for payload, name in zip(payloads, names, strict=True)
    ]


def _enclose(
    payload: Payload,
    sender_id: str,
    trace: Trace,
    timestamp: datetime,
    *,
    event_id: str | None = None,
) -> Envelope:
    topic = topic_of(payload)
    if not sender_id or not trace.trace_id:
        raise MessageError(
            f"a message needs a sender and a trace; got {sender_id!r} and {trace.trace_id!r}"
        )
    envelope = Envelope(payload, topic, sender_id, timestamp, trace, event_id=event_id)
    if topic not in _SMALL or len(sender_id) + len(trace.trace_id) > _LONG_NAMES:
        _check_size(envelope)
    return envelope


def _check_size(envelope: Envelope) -> None:
    """Raise `MessageTooLargeError` before anything large is on its way."""
    num_bytes = len(envelope.data)
    if num_bytes > MAX_MESSAGE_BYTES:
        raise MessageTooLargeError(
            f"a message on {envelope.topic.value} from {envelope.sender_id[:100]!r} has {num_bytes:,} "
            f"bytes as JSON; the bus takes up to {MAX_MESSAGE_BYTES:,}. Send less in it: put the bulk "
            "into the artifact store and its hash into the message, or publish several"
        )


def decode(data: bytes, *, topic: TopicNames) -> Envelope:
    """Return the envelope that `data` is, of any minor schema version.

    A payload that does not fit its topic raises only when it is asked for.

    Raises:
        MessageError: if the bytes are no envelope, or the envelope belongs on another topic.

    """
    try:
        known = _KNOWN[topic].model_validate_json(data)
    except ValidationError:
        return _decode_carefully(data, topic=topic)
    return _envelope(data, known, cast("Payload", known.payload))


def _decode_carefully(data: bytes, *, topic: TopicNames) -> Envelope:
    """As `decode`, in two steps: for newer versions, wrong payloads, and the reason what is wrong."""
    try:
        message = parse_message(data)
    except MessageError as error:
        raise MessageError(f"an entry on {topic.value} cannot be read: {error}") from error
    if message.topic is not topic:
        raise MessageError(
            f"message {message.event_id} on {topic.value} says that it belongs on {message.topic.value}"
        )
    try:
        payload = unseal(message)
    except MessageError as error:
        payload = error
    return _envelope(data, message, payload)


def _envelope(data: bytes, message: OonaMessage, payload: Payload | MessageError) -> Envelope:
    return Envelope(
        payload,
        message.topic,
        message.sender_id,
        message.timestamp,
        Trace(message.trace_id, message.traceparent),
        event_id=message.event_id,
        data=data,
    )


def _with_typed_payload(topic: TopicNames) -> type[OonaMessage]:
    """Return the contract of a message on this topic, of this major version, payload included.

    Reading bytes with it is one pass instead of two.
    """
    major, _, _ = SCHEMA_VERSIONS[topic].partition(".")
    fields: dict[str, Any] = {
        "timestamp": (AwareDatetime, ...),  # without a call into Python for each message
        "topic": (Literal[topic], ...),
        "schema_version": (str, Field(pattern=rf"^{major}\.\d{{1,4}}$")),
        "payload": (PAYLOADS[topic], ...),
    }
    return create_model(f"{PAYLOADS[topic].__name__}Message", __base__=OonaMessage, **fields)


_KNOWN: Mapping[TopicNames, type[OonaMessage]] = {
    topic: _with_typed_payload(topic) for topic in TopicNames
}

_SMALL = frozenset({TopicNames.TELEMETRY_SEED_HEALTH})
"""Topics whose payloads are a few numbers and need no measuring; the training thread publishes them."""

_quoted = lru_cache(maxsize=1024)(json.dumps)
"""Senders and traces come again and again."""
