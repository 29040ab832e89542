"""Between the contracts and the tables: what becomes a column, and back.

`library` executes and `queries` asks; this module only converts. Records are validated again when they
are read, so a row that somebody edited by hand is reported instead of used.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from esper.contracts import (
    ArtifactIntegrityError,
    Blueprint,
    BlueprintIR,
    CompiledKernelArtifact,
    Contract,
    Endorsement,
    FieldReport,
    KernelStatus,
    ValidationReport,
    ValidatorKey,
    canonical_json,
    sha256_hex,
)

type Row = sa.Row[*tuple[Any, ...]]
"""One row, whatever its columns."""


def _as_json(record: Contract) -> Any:
    # Through text: only there do non-finite floats become the strings that JSON can hold.
    return json.loads(record.model_dump_json())


def blueprint_row(blueprint: Blueprint) -> dict[str, Any]:
    """Return the columns of one blueprint."""
    return {
        "blueprint_id": blueprint.blueprint_id,
        "name": blueprint.ir.name,
        "kind": blueprint.ir.kind.value,
        "status": blueprint.status.value,
        "ir": _as_json(blueprint.ir),
        "created_at": blueprint.created_at,
        "search": described(blueprint.ir),
    }


def described(ir: BlueprintIR) -> str:
    """Return what a free-text search looks through."""
    return f"{ir.name} {ir.description}".lower()


def kernel_row(kernel: CompiledKernelArtifact, ir: BlueprintIR) -> dict[str, Any]:
    """Return the columns of a kernel that nobody has judged yet."""
    return {
        **_lasting(kernel),
        "status": KernelStatus.COMPILED.value,
        **tag_columns(all_tags(kernel.tags), ir),
    }


def _lasting(kernel: CompiledKernelArtifact) -> dict[str, Any]:
    """Return the columns of a kernel that never change."""
    return {
        "kernel_id": kernel.kernel_id,
        "blueprint_id": kernel.blueprint_id,
        "blueprint_name": kernel.blueprint_name,
        "kind": kernel.signature.kind.value,
        "features": kernel.signature.features,
        "inputs": kernel.signature.inputs,
        "dtype": kernel.signature.dtype,
        "device": kernel.signature.device,
        "size_bytes": kernel.size_bytes,
        "num_parameters": kernel.num_parameters,
        "tags": list(kernel.tags),
        "created_at": kernel.created_at,
    }


KERNEL_COLUMNS = (
    "kernel_id",
    "blueprint_id",
    "blueprint_name",
    "kind",
    "features",
    "inputs",
    "dtype",
    "device",
    "size_bytes",
    "num_parameters",
    "status",
    "tags",
    "created_at",
    "all_tags",
    "search",
)
"""The columns that `kernel_row` fills."""


def in_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a kernel that nobody has judged as JSON can hold them."""
    return {**row, "created_at": row["created_at"].isoformat()}


def as_registered(kernel: CompiledKernelArtifact) -> CompiledKernelArtifact:
    """Return a kernel as it is on file after its registration: nobody has judged it."""
    as_filed: dict[str, Any] = {
        "status": KernelStatus.COMPILED,
        "tags": all_tags(kernel.tags),
        "report": None,
        "endorsement": None,
    }
    if all(getattr(kernel, name) == value for name, value in as_filed.items()):
        return kernel  # as nearly all are
    return kernel.model_copy(update=as_filed)


def tag_columns(tags: Sequence[str], ir: BlueprintIR) -> dict[str, Any]:
    """Return the columns of a kernel that its tags decide."""
    return {"all_tags": list(tags), "search": " ".join((described(ir), *tags)).lower()}


LASTING = (
    "kernel_id",
    "blueprint_id",
    "blueprint_name",
    "kind",
    "features",
    "inputs",
    "dtype",
    "device",
    "size_bytes",
    "num_parameters",
    "tags",
    "created_at",
)
"""The columns of a kernel that never change."""

OF_A_KERNEL = (*LASTING, "status", "endorsement_key_id", "endorsement_signature")
"""The columns that, with the latest report, are a kernel's record; read by their position."""

_OF_A_SIGNATURE = ("kind", "features", "inputs", "dtype", "device")


def fingerprint(row: Mapping[str, Any]) -> str:
    """Return the sha256 of what never changes in a kernel's row, as the record of events keeps it."""
    lasting = {column: row[column] for column in LASTING}
    if lasting["inputs"] is None:
        del lasting["inputs"]  # as it was before there were widenings
    lasting["created_at"] = row["created_at"].astimezone(UTC).isoformat()
    return sha256_hex(canonical_json(lasting))


def fingerprint_of(record: CompiledKernelArtifact | ValidationReport | FieldReport) -> str:
    """Return the fingerprint of a kernel with its own tags only, of a report or of an outcome."""
    if isinstance(record, CompiledKernelArtifact):
        return fingerprint(_lasting(record))
    return report_fingerprint(_as_json(record))


def row_fingerprint(row: Row) -> str:
    """Return the fingerprint of a kernel that is on file."""
    return fingerprint({column: getattr(row, column) for column in LASTING})


def report_fingerprint(content: Any) -> str:
    """Return the sha256 of a report as the database keeps it, for the record of events."""
    return sha256_hex(canonical_json(content))


def verdict_event(report: ValidationReport, endorsement: Endorsement | None) -> dict[str, Any]:
    """Return what the record of events says of a verdict."""
    return {
        "kernel_id": report.kernel_id,
        "report_id": report.report_id,
        "validator_id": report.validator_id,
        "passed": report.passed,
        "report": fingerprint_of(report),
        "endorsement": None if endorsement is None else endorsement.model_dump(),
    }


def outcome_event(report: FieldReport) -> dict[str, Any]:
    """Return what the record of events says of an outcome."""
    return {
        "report_id": report.report_id,
        "kernel_id": report.kernel_id,
        "outcome": report.outcome.value,
        "report": fingerprint_of(report),
    }


def validation_row(report: ValidationReport) -> dict[str, Any]:
    """Return the columns of one report."""
    return {
        "kernel_id": report.kernel_id,
        "report_id": report.report_id,
        "passed": report.passed,
        "measured_at": report.measured_at,
        "content": _as_json(report),
    }


def verdict(report: ValidationReport, endorsement: Endorsement | None) -> dict[str, Any]:
    """Return the columns of a kernel that a report changes."""
    return {
        "status": (KernelStatus.VALIDATED if report.passed else KernelStatus.REJECTED).value,
        "report_id": report.report_id,
        "latency_us": report.latency_us,
        "memory_bytes": report.memory_bytes,
        "flops": report.flops,
        "lease_holder": None,
        "lease_until": None,
        "endorsement_key_id": None if endorsement is None else endorsement.key_id,
        "endorsement_signature": None if endorsement is None else endorsement.signature,
    }


def field_report_row(report: FieldReport) -> dict[str, Any]:
    """Return the columns of one outcome."""
    return {
        "report_id": report.report_id,
        "run_id": report.run_id,
        "kernel_id": report.kernel_id,
        "outcome": report.outcome.value,
        "at": report.at,
        "content": _as_json(report),
    }


def to_blueprint(row: Row) -> Blueprint:
    """Return the blueprint in a row of `blueprints`."""
    return _validated(
        f"blueprint {row.blueprint_id}",
        lambda: Blueprint(
            blueprint_id=row.blueprint_id,
            ir=BlueprintIR.model_validate(row.ir),
            status=row.status,
            created_at=row.created_at,
        ),
    )


def to_kernel(row: Row) -> CompiledKernelArtifact:
    """Return the kernel in a row of `select_kernels`."""
    return _validated(f"kernel {row.kernel_id}", lambda: _kernel(row))


def _kernel(row: Row) -> CompiledKernelArtifact:
    status, key_id, signature, report = row[len(LASTING) : len(LASTING) + 4]
    kernel = CompiledKernelArtifact.model_validate(
        _registered(row)
        | {"status": status, "report": report, "endorsement": _endorsement(key_id, signature)}
    )
    if kernel.report is None or not kernel.report.tags:
        return kernel
    return kernel.model_copy(update={"tags": all_tags(kernel.tags, kernel.report.tags)})


def to_registered(row: Row) -> CompiledKernelArtifact:
    """Return the kernel in a row of `OF_A_KERNEL` as it was registered: nobody had judged it."""
    return _validated(
        f"kernel {row.kernel_id}", lambda: CompiledKernelArtifact.model_validate(_registered(row))
    )


def to_endorsement(row: Row) -> Endorsement | None:
    """Return the endorsement in a row of `OF_A_KERNEL`."""
    given = row.endorsement_key_id, row.endorsement_signature
    return _validated(f"kernel {row.kernel_id}", lambda: _endorsement(*given))


def _registered(row: Row) -> dict[str, Any]:
    """Return the fields of a kernel that never change."""
    # By position, which SQLAlchemy finds ten times as fast as names; and validated by the caller as
    # one, which takes half the time of one record after the other.
    fields: dict[str, Any] = dict(zip(LASTING, row, strict=False))
    fields["signature"] = {name: fields.pop(name) for name in _OF_A_SIGNATURE}
    fields["tags"] = all_tags(fields["tags"])
    return fields


def _endorsement(key_id: str | None, signature: str) -> Endorsement | None:
    return None if key_id is None else Endorsement(key_id=key_id, signature=signature)


def to_field_report(row: Row) -> FieldReport:
    """Return the outcome in a row of `field_reports`."""
    return _validated(
        f"field report {row.report_id}", lambda: FieldReport.model_validate(row.content)
    )


def to_validator_key(row: Row) -> ValidatorKey:
    """Return the key in a row of `validator_keys`."""
    return _validated(
        f"validator key {row.key_id}",
        lambda: ValidatorKey(
            key_id=row.key_id,
            public_key=row.public_key,
            name=row.name,
            enrolled_at=row.enrolled_at,
            revoked_at=row.revoked_at,
        ),
    )


def _validated[Record: Contract | None](described: str, build: Callable[[], Record]) -> Record:
    try:
        return build()
    except ValidationError as error:
        raise ArtifactIntegrityError(
            f"the library's row of {described} was changed and is no valid record any more: "
            f"{error}; restore or delete the row"
        ) from error


def all_tags(own: Sequence[str], measured: Sequence[str] = ()) -> tuple[str, ...]:
    """Return a kernel's tags: those it was registered with, then those of its latest report."""
    return tuple(dict.fromkeys((*own, *measured)))
