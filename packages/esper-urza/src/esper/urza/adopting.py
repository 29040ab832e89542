"""Puts on the record what was on file before there was one: rows that have no event.

A library of revision 0002 or older kept no events. `adopt` files what it finds, as it finds it, under
events of their own kind, so that later changes are noticed and everybody sees what was taken on trust.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from esper.contracts import LIBRARY_CHAIN, run_chain
from esper.urza import audit, records
from esper.urza.library import SqlLibrary
from esper.urza.recorded import Recorded
from esper.urza.schema import blueprints, field_reports, kernels, validation_reports

_AT_ONCE = 10_000
"""Kernels or reports in one event."""


def adopt(library: SqlLibrary) -> int:
    """Record every blueprint, kernel, report and outcome that has no event; return how many.

    All of it is one transaction, and so are the events. Keys of validators are not adopted: a library
    that has them has a record.

    Raises:
        ChainError: if a chain does not verify.

    """
    with library.transaction() as connection:
        recorded = Recorded()
        for chain in audit.names(connection):
            for event in audit.verified(connection, chain):
                recorded.take(event)
        outcomes = _outcomes(connection, recorded)
        found = _records(connection, recorded)
        for run_id, reports in outcomes.items():
            event = ("outcomes_adopted", {"outcomes": reports})
            audit.append(connection, run_chain(run_id), [event])
        if found:
            audit.append(connection, LIBRARY_CHAIN, [("records_adopted", each) for each in found])
    adopted = sum(len(part) for each in found for part in each.values())
    return adopted + sum(map(len, outcomes.values()))


def _outcomes(connection: sa.Connection, recorded: Recorded) -> dict[str, dict[str, str]]:
    """Return the fingerprints of outcomes that have no event, by run."""
    found: dict[str, dict[str, str]] = {}
    for row in connection.execute(sa.select(field_reports).order_by(field_reports.c.report_id)):
        if row.report_id not in recorded.outcomes:
            fingerprint = records.report_fingerprint(row.content)
            found.setdefault(row.run_id, {})[row.report_id] = fingerprint
    return dict(sorted(found.items()))


def _records(connection: sa.Connection, recorded: Recorded) -> list[dict[str, Any]]:
    """Return what to record of the rest, in portions that fit an event."""
    designs = {
        row.blueprint_id: row.status == "ARCHIVED"
        for row in connection.execute(sa.select(blueprints).order_by(blueprints.c.blueprint_id))
        if row.blueprint_id not in recorded.archived_blueprints
    }
    filed = {
        row.kernel_id: _as_found(row)
        for row in connection.execute(sa.select(kernels).order_by(kernels.c.kernel_id))
        if row.kernel_id not in recorded.kernels
    }
    key = (validation_reports.c.kernel_id, validation_reports.c.report_id)
    reports = [
        [row.kernel_id, row.report_id, records.report_fingerprint(row.content)]
        for row in connection.execute(sa.select(validation_reports).order_by(*key))
        if (row.kernel_id, row.report_id) not in recorded.reports
    ]
    portions: list[dict[str, Any]] = []
    if designs:
        portions.append({"blueprints": designs, "kernels": {}, "reports": []})
    for some in _portions(list(filed.items())):
        portions.append({"blueprints": {}, "kernels": dict(some), "reports": []})
    for some in _portions(reports):
        portions.append({"blueprints": {}, "kernels": {}, "reports": list(some)})
    return portions


def _portions[Item](items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]


def _as_found(row: records.Row) -> dict[str, Any]:
    endorsement = None
    if row.endorsement_key_id is not None:
        endorsement = {"key_id": row.endorsement_key_id, "signature": row.endorsement_signature}
    return {
        "fingerprint": records.row_fingerprint(row),
        "status": row.status,
        "report_id": row.report_id,
        "endorsement": endorsement,
    }
