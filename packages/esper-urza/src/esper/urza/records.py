"""Between the contracts and the tables: what becomes a column, and back.

`library` executes; this module only converts. Records are validated again when they are read, so a
row that somebody edited by hand is reported instead of used.
"""

import json
from collections.abc import Callable, Sequence
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
    KernelQuery,
    KernelSignature,
    KernelStatus,
    ValidationReport,
)
from esper.urza.schema import field_reports, kernel_tags, kernels, validation_reports

type Row = sa.Row[*tuple[Any, ...]]
"""One row, whatever its columns."""

_LARGEST = 2**63 - 1
"""What fits a BIGINT."""


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
    }


def kernel_row(kernel: CompiledKernelArtifact) -> dict[str, Any]:
    """Return the columns of a kernel that nobody has judged yet."""
    return {
        "kernel_id": kernel.kernel_id,
        "blueprint_id": kernel.blueprint_id,
        "blueprint_name": kernel.blueprint_name,
        "kind": kernel.signature.kind.value,
        "features": kernel.signature.features,
        "dtype": kernel.signature.dtype,
        "device": kernel.signature.device,
        "size_bytes": kernel.size_bytes,
        "num_parameters": kernel.num_parameters,
        "status": KernelStatus.COMPILED.value,
        "tags": list(kernel.tags),
        "created_at": kernel.created_at,
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
    report = None if row.content is None else ValidationReport.model_validate(row.content)
    endorsement = None
    if row.endorsement_key_id is not None:
        endorsement = Endorsement(
            key_id=row.endorsement_key_id, signature=row.endorsement_signature
        )
    return CompiledKernelArtifact(
        kernel_id=row.kernel_id,
        blueprint_id=row.blueprint_id,
        blueprint_name=row.blueprint_name,
        signature=KernelSignature(
            kind=row.kind, features=row.features, dtype=row.dtype, device=row.device
        ),
        size_bytes=row.size_bytes,
        num_parameters=row.num_parameters,
        status=row.status,
        tags=all_tags(row.tags, report),
        report=report,
        endorsement=endorsement,
        created_at=row.created_at,
    )


def to_field_report(row: Row) -> FieldReport:
    """Return the outcome in a row of `field_reports`."""
    return _validated(
        f"field report {row.report_id}", lambda: FieldReport.model_validate(row.content)
    )


def _validated[Record: Contract](described: str, build: Callable[[], Record]) -> Record:
    try:
        return build()
    except ValidationError as error:
        raise ArtifactIntegrityError(
            f"the library's row of {described} was changed and is no valid record any more: "
            f"{error}; restore or delete the row"
        ) from error


def all_tags(own: Sequence[str], report: ValidationReport | None) -> tuple[str, ...]:
    """Return a kernel's tags: those it was registered with, then those of its latest report."""
    return tuple(dict.fromkeys((*own, *(() if report is None else report.tags))))


def select_kernels() -> sa.Select[Any]:
    """Return the statement for kernels with their latest reports."""
    latest = sa.and_(
        validation_reports.c.kernel_id == kernels.c.kernel_id,
        validation_reports.c.report_id == kernels.c.report_id,
    )
    return sa.select(kernels, validation_reports.c.content).outerjoin(validation_reports, latest)


def select_matching(query: KernelQuery) -> sa.Select[Any]:
    """Return the statement for the kernels that `query` asks for, in its order."""
    column = kernels.c
    found = select_kernels()
    if query.signature is not None:
        found = found.where(
            column.kind == query.signature.kind.value,
            column.features == query.signature.features,
            column.dtype == query.signature.dtype,
            column.device == query.signature.device,
        )
    if query.status is not None:
        found = found.where(column.status == query.status.value)
    if query.blueprint_id is not None:
        found = found.where(column.blueprint_id == query.blueprint_id)
    for tag in sorted(query.required_tags):
        found = found.where(_has_tag([tag]))
    if query.excluded_tags:
        found = found.where(~_has_tag(sorted(query.excluded_tags)))
    if query.max_latency_us is not None:
        found = found.where(column.latency_us <= query.max_latency_us)
    if query.max_memory_bytes is not None:
        found = found.where(column.memory_bytes <= min(query.max_memory_bytes, _LARGEST))
    if query.max_parameters is not None:
        found = found.where(column.num_parameters <= min(query.max_parameters, _LARGEST))
    order = column[query.order_by].asc().nulls_last()  # a kernel nobody measured comes last
    return found.order_by(order, column.kernel_id).limit(query.limit)


def _has_tag(tags: Sequence[str]) -> sa.Exists:
    return (
        sa.select(kernel_tags.c.tag)
        .where(kernel_tags.c.kernel_id == kernels.c.kernel_id, kernel_tags.c.tag.in_(tags))
        .exists()
    )


def select_field_reports(run_id: str) -> sa.Select[Any]:
    """Return the statement for the outcomes of one run, oldest first."""
    return (
        sa.select(field_reports)
        .where(field_reports.c.run_id == run_id)
        .order_by(field_reports.c.at, field_reports.c.report_id)
    )
