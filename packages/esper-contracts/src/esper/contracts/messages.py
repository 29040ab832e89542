"""What travels on Oona: the envelope, the seven topics, and exactly one payload model for each."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, cast

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
from esper.contracts.words import type_of


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

SCHEMA_VERSIONS: Mapping[TopicNames, str] = MappingProxyType(dict.fromkeys(TopicNames, "1.1"))
"""What this version writes on each topic: major.minor of envelope and payload together.

A minor version only adds optional fields, so any minor of the same major can be read; another major
cannot. 1.1 added `traceparent`.
"""

_VERSION = re.compile(r"^[0-9]{1,4}\.[0-9]{1,4}$")
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
    schema_version: str = Field(
        default_factory=lambda data: SCHEMA_VERSIONS[data["topic"]], pattern=_VERSION.pattern
    )
    """As in `SCHEMA_VERSIONS`."""
    traceparent: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"
    )
    """The span that the message was published in (W3C Trace Context), if there was one."""
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


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is at one place of a topic, whoever has handled it."""

    topic: TopicNames
    position: str
    """Where it is on its topic; what `Bus.read` and `Bus.replay` can begin at."""
    data: bytes
    """What is on the bus: an envelope as JSON, or bytes that are none."""


def topic_of(payload: Payload) -> TopicNames:
    """Return the topic that `payload` belongs on.

    Raises:
        MessageError: if no topic carries this model.

    """
    try:
        return _TOPIC_OF[type(payload)]
    except KeyError:
        carried = ", ".join(model.__name__ for model in _TOPIC_OF)
        raise MessageError(f"no topic carries {type_of(payload)}; topics carry {carried}") from None


def seal(
    payload: Payload, *, sender_id: str, trace_id: str, traceparent: str | None = None
) -> OonaMessage:
    """Put `payload` into an envelope for its topic."""
    return OonaMessage(
        traceparent=traceparent,
        sender_id=sender_id,
        trace_id=trace_id,
        topic=topic_of(payload),
        payload=json.loads(payload.model_dump_json()),
    )


def unseal(message: OonaMessage) -> Payload:
    """Return the typed payload of an envelope; fields that only a newer minor version has are left out.

    Raises:
        MessageError: if the payload does not fit the topic's model.

    """
    model = PAYLOADS[message.topic]
    try:
        unknown = "ignore" if _is_newer(message) else None  # None: as the model says
        return model.model_validate(message.payload, extra=unknown)
    except ValidationError as error:
        raise MessageError(
            f"message {message.event_id} on {message.topic} is not a valid {model.__name__}: "
            f"{error}"
        ) from error


def parse_message(data: bytes | str) -> OonaMessage:
    """Return the envelope that is written in `data` as JSON, of any minor version.

    Raises:
        MessageError: if it is none, or one of another major version.

    """
    try:
        message = OonaMessage.model_validate_json(data)
    except ValidationError as error:
        try:  # a newer minor version has fields that this one does not know
            message = OonaMessage.model_validate_json(data, extra="ignore")
        except ValidationError:
            message = None
        if message is None or not _is_newer(message):
            _check_major(_version_in(data))
            raise MessageError(f"no envelope: {error}") from error
    _check_major(message.schema_version)
    return message


def _is_newer(message: OonaMessage) -> bool:
    """Tell whether the message is of a newer minor version than ours, or of a newer major one."""
    return _numbers(message.schema_version) > _numbers(SCHEMA_VERSIONS[message.topic])


def _check_major(version: str | None) -> None:
    """Raise `MessageError` if `version` is one of another major version."""
    known = next(iter(SCHEMA_VERSIONS.values())).partition(".")[0]
    if version is not None and version.partition(".")[0] != known:
        raise MessageError(
            f"schema version {version} is of another major version than the {known}.x that can be "
            "read here; upgrade whichever side is older, then requeue the message"
        )


def _version_in(data: bytes | str) -> str | None:
    """Return what bytes that are no envelope of ours say of their version, if anything."""
    try:
        fields: Any = json.loads(data)
    except ValueError:  # JSON that is none, or bytes that are no UTF-8
        return None
    if not isinstance(fields, dict):
        return None
    version = cast("dict[str, Any]", fields).get("schema_version")
    return version if isinstance(version, str) and _VERSION.fullmatch(version) else None


def _numbers(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return int(major), int(minor)
