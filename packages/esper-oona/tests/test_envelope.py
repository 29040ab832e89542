"""The envelope on its way: codec, typed payloads, schema versions, what does not decode."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.contracts import (
    SCHEMA_VERSIONS,
    HealthSignal,
    MessageError,
    OonaMessage,
    Payload,
    TopicNames,
    seal,
    unseal,
)
from esper.oona.envelope import decode, enclose

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)
zones = st.sampled_from([UTC, timezone(timedelta(hours=-9, minutes=-30))])
messages = st.builds(
    OonaMessage,
    sender_id=st.text(min_size=1),
    trace_id=st.text(min_size=1),
    timestamp=st.builds(datetime.fromtimestamp, st.integers(0, 7_000_000_000), zones),
    topic=st.sampled_from(TopicNames),
    payload=st.dictionaries(st.text(), json_values),
)


def encode(message: OonaMessage) -> bytes:
    return message.model_dump_json().encode()


@settings(deadline=None)
@given(message=messages)
def test_encoding_and_decoding_is_the_identity(message: OonaMessage) -> None:
    envelope = decode(encode(message), topic=message.topic)
    assert envelope.message == message
    assert envelope.data == encode(message)
    with pytest.raises(MessageError, match=f"message {message.event_id} on .* is not a valid"):
        envelope.payload()  # whatever hypothesis draws lacks the model's required fields


@pytest.mark.parametrize("topic", TopicNames)
def test_what_is_enclosed_is_what_sealing_gives(
    samples: dict[TopicNames, Payload], topic: TopicNames
) -> None:
    sent = enclose(samples[topic], sender_id='te"st ü', trace_id="run-1")
    read = decode(sent.data, topic=topic)
    sealed = seal(samples[topic], sender_id='te"st ü', trace_id="run-1")
    same = {"event_id": sent.event_id, "timestamp": sent.timestamp}
    assert sent.message == read.message == sealed.model_copy(update=same)
    assert read.payload() == sent.payload() == samples[topic]
    assert (read.event_id, read.timestamp, read.trace_id) == (
        sent.event_id,
        sent.timestamp,
        "run-1",
    )
    with pytest.raises(MessageError, match="needs a sender and a trace"):
        enclose(samples[topic], sender_id="", trace_id="run-1")
    with pytest.raises(MessageError, match="needs a sender and a trace"):
        enclose(samples[topic], sender_id="tests", trace_id="")


def _with_version(payload: Payload, version: str, **more: object) -> bytes:
    fields = json.loads(enclose(payload, sender_id="tests", trace_id="run-1").data)
    fields |= {"schema_version": version, **more}
    fields["payload"] |= more
    return json.dumps(fields).encode()


@pytest.mark.parametrize("topic", TopicNames)
def test_older_and_newer_minor_versions_decode(
    samples: dict[TopicNames, Payload], topic: TopicNames
) -> None:
    payload = samples[topic]
    old = json.loads(_with_version(payload, "1.0"))
    del old["traceparent"]  # which 1.0 did not have
    assert decode(json.dumps(old).encode(), topic=topic).payload() == payload
    newer = _with_version(payload, "1.99", colour="blue")
    read = decode(newer, topic=topic)
    assert read.payload() == payload
    assert read.message.payload["colour"] == "blue"
    assert read.data == newer


@pytest.mark.parametrize("version", ["2.0", "0.9"])
def test_another_major_version_is_refused_with_what_to_do(
    samples: dict[TopicNames, Payload], version: str
) -> None:
    topic = TopicNames.SYSTEM_EVENTS_EPOCH
    with pytest.raises(MessageError, match=rf"schema version {version} .* 1\.x .* upgrade"):
        decode(_with_version(samples[topic], version), topic=topic)


def test_a_field_that_our_own_version_does_not_have_is_refused(
    samples: dict[TopicNames, Payload],
) -> None:
    topic = TopicNames.SYSTEM_EVENTS_EPOCH
    wrong = _with_version(samples[topic], SCHEMA_VERSIONS[topic], colour="blue")
    with pytest.raises(MessageError, match="colour"):
        decode(wrong, topic=topic)


@settings(deadline=None)
@given(variance=st.floats(), ratio=st.floats(min_value=0, max_value=1), epoch=st.integers(0, 10**9))
def test_any_float_survives_the_journey(variance: float, ratio: float, epoch: int) -> None:
    signal = HealthSignal(
        layer_id=0,
        seed_id=0,
        chunk_id=0,
        epoch=epoch,
        activation_variance=variance,
        dead_neuron_ratio=ratio,
        avg_correlation=-ratio,
    )
    message = seal(signal, sender_id="kasmina", trace_id="run")
    envelope = decode(encode(message), topic=message.topic)
    assert (
        repr(envelope.payload()) == repr(signal) == repr(unseal(envelope.message))
    )  # NaN is not equal to itself


def _as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@settings(deadline=None)
@given(data=st.binary(max_size=40) | json_values.map(_as_json))
def test_anything_else_is_a_message_error(data: bytes) -> None:
    with pytest.raises(
        MessageError, match=r"entry on telemetry.seed.health cannot be read: no envelope"
    ):
        decode(data, topic=TopicNames.TELEMETRY_SEED_HEALTH)


@settings(deadline=None)
@given(message=messages)
def test_message_on_another_topic_is_refused(message: OonaMessage) -> None:
    other = next(topic for topic in TopicNames if topic is not message.topic)
    with pytest.raises(MessageError, match="says that it belongs on"):
        decode(encode(message), topic=other)
