"""The bus's vocabulary: seven topics, one payload model each, and the envelope."""

from typing import cast

import pytest
from pydantic import ValidationError

from esper.contracts import (
    PAYLOADS,
    HealthSignal,
    KernelReady,
    KernelSignature,
    MessageError,
    OonaMessage,
    Payload,
    SiteKind,
    TopicNames,
    seal,
    topic_of,
    unseal,
)

SIGNATURE = KernelSignature(kind=SiteKind.FEATURES, features=8)
READY = KernelReady(kernel_id="0" * 64, blueprint_id="1" * 64, signature=SIGNATURE)


def test_the_topics_are_the_seven_of_the_founding_document() -> None:
    assert {topic.name: topic.value for topic in TopicNames} == {
        "TELEMETRY_SEED_HEALTH": "telemetry.seed.health",
        "CONTROL_KASMINA_COMMANDS": "control.kasmina.commands",
        "COMPILATION_BLUEPRINT_SUBMITTED": "compilation.blueprint.submitted",
        "COMPILATION_KERNEL_READY": "compilation.kernel.ready",
        "VALIDATION_KERNEL_CHARACTERIZED": "validation.kernel.characterized",
        "SYSTEM_EVENTS_EPOCH": "system.events.epoch",
        "INNOVATION_FIELD_REPORTS": "innovation.field_reports",
    }


def test_every_topic_has_exactly_one_payload_model() -> None:
    assert set(PAYLOADS) == set(TopicNames)
    assert len(set(PAYLOADS.values())) == len(PAYLOADS)


def test_a_sealed_payload_comes_out_as_it_went_in() -> None:
    message = seal(READY, sender_id="tezzeret", trace_id="run-1")
    assert message.topic is TopicNames.COMPILATION_KERNEL_READY
    assert (message.sender_id, message.trace_id) == ("tezzeret", "run-1")
    assert unseal(OonaMessage.model_validate_json(message.model_dump_json())) == READY


def test_a_payload_that_does_not_fit_its_topic_is_refused_by_name() -> None:
    sealed = seal(READY, sender_id="tezzeret", trace_id="run-1")
    wrong = sealed.model_copy(update={"topic": TopicNames.TELEMETRY_SEED_HEALTH})
    expected = f"message {wrong.event_id} on telemetry.seed.health is not a valid HealthSignal"
    with pytest.raises(MessageError, match=expected):
        unseal(wrong)


def test_a_model_that_no_topic_carries_is_refused_by_name() -> None:
    with pytest.raises(MessageError, match=r"no topic carries a KernelSignature.*KernelReady"):
        topic_of(cast("Payload", SIGNATURE))


@pytest.mark.parametrize("model", PAYLOADS.values(), ids=lambda model: model.__name__)
def test_topic_of_is_the_inverse_of_payloads(model: type[HealthSignal]) -> None:
    payload = model.model_construct()
    assert PAYLOADS[topic_of(payload)] is model


def test_an_envelope_without_sender_or_trace_is_refused() -> None:
    with pytest.raises(ValidationError, match="sender_id"):
        seal(READY, sender_id="", trace_id="run-1")
    with pytest.raises(ValidationError, match="trace_id"):
        seal(READY, sender_id="tezzeret", trace_id="")
