"""The envelope on its way: codec, typed payloads, what does not decode."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.contracts import HealthSignal, MessageError, OonaMessage, TopicNames, seal, unseal
from esper.oona.delivery import decode, encode

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


@settings(deadline=None)
@given(message=messages)
def test_encoding_and_decoding_is_the_identity(message: OonaMessage) -> None:
    assert decode(encode(message), topic=message.topic) == message


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
    received = unseal(decode(encode(message), topic=message.topic))
    assert repr(received) == repr(signal)  # NaN is not equal to itself


def _as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@settings(deadline=None)
@given(data=st.binary(max_size=40) | json_values.map(_as_json))
def test_anything_else_is_a_message_error(data: bytes) -> None:
    with pytest.raises(MessageError, match=r"entry on telemetry.seed.health is no envelope"):
        decode(data, topic=TopicNames.TELEMETRY_SEED_HEALTH)


@settings(deadline=None)
@given(message=messages)
def test_message_on_another_topic_is_refused(message: OonaMessage) -> None:
    other = next(topic for topic in TopicNames if topic is not message.topic)
    with pytest.raises(MessageError, match="says that it belongs on"):
        decode(encode(message), topic=other)
