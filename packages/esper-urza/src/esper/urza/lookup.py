"""Records by the beginning of their ids, of whatever kind: what people type and programs do not."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from esper.contracts import Contract, NotFoundError, ValidationReport
from esper.urza import records, tables
from esper.urza.schema import (
    blueprints,
    field_reports,
    kernels,
    validation_reports,
    validator_keys,
)

_MOST = 10
"""Ids of one kind: more than anybody wants to choose from."""

_IDS: dict[str, sa.Column[Any]] = {
    "blueprint": blueprints.c.blueprint_id,
    "kernel": kernels.c.kernel_id,
    "report": validation_reports.c.report_id,
    "outcome": field_reports.c.report_id,
    "run": field_reports.c.run_id,
    "key": validator_keys.c.key_id,
}


def find_ids(connection: sa.Connection, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield kind and id of what begins with `prefix`; `_IDS` has the kinds."""
    for kind, column in _IDS.items():
        found = sa.select(column).where(column.startswith(prefix, autoescape=True))
        for record_id in connection.scalars(found.distinct().order_by(column).limit(_MOST)):
            yield kind, record_id


def find_record(connection: sa.Connection, kind: str, record_id: str) -> Contract:
    """Return one record by its whole id. Raises `NotFoundError`."""
    if kind == "blueprint":
        return tables.read_blueprint(connection, record_id)
    if kind == "kernel":
        return tables.read_kernel(connection, record_id)
    column = _IDS[kind]
    row = connection.execute(sa.select(column.table).where(column == record_id)).first()
    if row is None:
        raise NotFoundError(f"there is no {kind} {record_id!r} in the library")
    if kind == "report":
        return ValidationReport.model_validate(row.content)
    return records.to_field_report(row) if kind == "outcome" else records.to_validator_key(row)
