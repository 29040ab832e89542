"""What travels on Oona: the envelope, the seven topics, and exactly one payload model for each."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, ValidationError

from esper.contracts.base import Contract, Sha256, UtcDatetime, new_id, utc_now
from esper.contracts.errors import MessageError
from esper.contracts.kernels import Endorsement, KernelSignature, ValidationReport
from esper.contracts.operational import (
    FieldReport,
    HealthSignal,
    KasminaCommand,
    SystemStatePacket,
)


class TopicNames(StrEnum):
    """Every topic of the bus."""

    TELEMETRY_SEED_HEALTH = "telemetry.seed.health"
    CONTROL_KASMINA_COMMANDS = "control.kasmina.commands"
    COMPILATION_BLUEPRINT_SUBMITTED = "compilation.blueprint.submitted"
    COMPILATION_KERNEL_READY = "compilation.kernel.ready"
    VALIDATION_KERNEL_CHARACTERIZED = "validation.kernel.characterized"
    SYSTEM_EVENTS_EPOCH = "system.events.epoch"
    INNOVATION_FIELD_REPORTS = "innovation.field_reports"


class BlueprintSubmitted(Contract):
    """A blueprint is in the library and wanted for these signatures."""

    blueprint_id: Sha256
    signatures: tuple[KernelSignature, ...] = Field(min_length=1)


class KernelReady(Contract):
    """A kernel was built and registered; it waits for the crucible."""

    kernel_id: Sha256
    blueprint_id: Sha256
    signature: KernelSignature


class KernelCharacterized(Contract):
    """The crucible measured a kernel; the library already holds the report."""

    report: ValidationReport
    endorsement: Endorsement | None = None
    """This crucible's signature; the library keeps only the latest, which may be another's."""


type Payload = (
    HealthSignal
    | KasminaCommand
    | BlueprintSubmitted
    | KernelReady
    | KernelCharacterized
    | SystemStatePacket
    | FieldReport
)

PAYLOADS: Mapping[TopicNames, type[Payload]] = MappingProxyType(
    {
        TopicNames.TELEMETRY_SEED_HEALTH: HealthSignal,
        TopicNames.CONTROL_KASMINA_COMMANDS: KasminaCommand,
        TopicNames.COMPILATION_BLUEPRINT_SUBMITTED: BlueprintSubmitted,
        TopicNames.COMPILATION_KERNEL_READY: KernelReady,
        TopicNames.VALIDATION_KERNEL_CHARACTERIZED: KernelCharacterized,
        TopicNames.SYSTEM_EVENTS_EPOCH: SystemStatePacket,
        TopicNames.INNOVATION_FIELD_REPORTS: FieldReport,
    }
)
"""The one payload model of each topic."""

_TOPIC_OF: Mapping[type[Contract], TopicNames] = {model: t for t, model in PAYLOADS.items()}


class OonaMessage(Contract):
    """The envelope of every message on the bus."""

    event_id: str = Field(default_factory=new_id)
    sender_id: str = Field(min_length=1)
    """For example `tezzeret` or `tamiyo`."""
    timestamp: UtcDatetime = Field(default_factory=utc_now)
    trace_id: str = Field(min_length=1)
    """Follows a request across services; the run's id for everything that belongs to a run."""
    topic: TopicNames
    schema_version: Literal["1.0"] = "1.0"
    payload: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A message that a group set aside because nobody there could handle it."""

    letter_id: str
    """What `Bus.requeue` is given."""
    topic: TopicNames
    group: str
    reason: str
    delivery_count: int
    """How often it was handed out before."""
    data: bytes
    """What was on the bus: an envelope as JSON, or bytes that are none."""


def topic_of(payload: Payload) -> TopicNames:
    """Return the topic that `payload` belongs on.

    Raises:
        MessageError: if no topic carries this model.

    """
    try:
        return _TOPIC_OF[type(payload)]
    except KeyError:
        carried = ", ".join(model.__name__ for model in _TOPIC_OF)
        raise MessageError(
            f"no topic carries a {type(payload).__name__}; topics carry {carried}"
        ) from None


def seal(payload: Payload, *, sender_id: str, trace_id: str) -> OonaMessage:
    """Put `payload` into an envelope for its topic."""
    return OonaMessage(
        sender_id=sender_id,
        trace_id=trace_id,
        topic=topic_of(payload),
        payload=json.loads(payload.model_dump_json()),
    )


def unseal(message: OonaMessage) -> Payload:
    """Return the typed payload of an envelope.

    Raises:
        MessageError: if the payload does not fit the topic's model.

    """
    model = PAYLOADS[message.topic]
    try:
        return model.model_validate(message.payload)
    except ValidationError as error:
        raise MessageError(
            f"message {message.event_id} on {message.topic} is not a valid {model.__name__}: "
            f"{error}"
        ) from error
