"""The statements that read and change rows, each within a transaction of the library.

`library` decides what happens and in which order; here is how. Searching is in `queries`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from esper.contracts import (
    LIBRARY_CHAIN,
    Blueprint,
    BlueprintStatus,
    CompiledKernelArtifact,
    Endorsement,
    KernelStatus,
    NotFoundError,
    ValidationReport,
    ValidatorKey,
    utc_now,
)
from esper.urza import audit, records
from esper.urza.engine import place
from esper.urza.queries import select_kernels
from esper.urza.schema import blueprints, kernel_tags, kernels, validator_keys

_AT_ONCE = 500
"""Ids in one statement."""


def insert_once(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert `row` unless its primary key is taken; tell whether it was inserted."""
    return bool(_insert_new(connection, table, [row]))


def _insert_new(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]
) -> list[sa.Row[Any]]:
    """Insert the rows whose primary keys are not taken; return the keys of those."""
    is_postgresql = connection.dialect.name == "postgresql"
    insert = postgresql.insert(table) if is_postgresql else sqlite.insert(table)
    statement = insert.on_conflict_do_nothing().returning(*table.primary_key.columns)
    return [*connection.execute(statement, list(rows)).all()]


def read_blueprint(connection: sa.Connection, blueprint_id: str) -> Blueprint:
    """Return one blueprint. Raises `NotFoundError`."""
    found = sa.select(blueprints).where(blueprints.c.blueprint_id == blueprint_id)
    row = connection.execute(found).one_or_none()
    if row is None:
        raise NotFoundError(
            f"blueprint {blueprint_id!r} is not in the library "
            f"({place(connection.engine.url)}); submit it first"
        )
    return records.to_blueprint(row)


def read_kernel(connection: sa.Connection, kernel_id: str) -> CompiledKernelArtifact:
    """Return one kernel with its latest report. Raises `NotFoundError`."""
    return read_kernels(connection, [kernel_id])[0]


def read_kernels(
    connection: sa.Connection, kernel_ids: Sequence[str]
) -> list[CompiledKernelArtifact]:
    """Return kernels with their latest reports, in the order asked for. Raises `NotFoundError`."""
    found: dict[str, CompiledKernelArtifact] = {}
    for start in range(0, len(kernel_ids), _AT_ONCE):
        some = kernels.c.kernel_id.in_(kernel_ids[start : start + _AT_ONCE])
        for row in connection.execute(select_kernels().where(some)):
            found[row.kernel_id] = records.to_kernel(row)
    for kernel_id in kernel_ids:
        if kernel_id not in found:
            raise _no_kernel(connection, kernel_id)
    return [found[kernel_id] for kernel_id in kernel_ids]


def register(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Insert kernels that are new, and tell of those what the record of events says.

    Their blueprints are COMPILED from then on, and nobody's any more.
    """
    if not rows:
        return {}
    by_id = {row["kernel_id"]: row for row in rows}
    new = [row.kernel_id for row in _insert_new(connection, kernels, list(by_id.values()))]
    if not new:
        return {}
    if connection.dialect.name == "sqlite":
        tags = [{"kernel_id": each, "tag": tag} for each in new for tag in by_id[each]["all_tags"]]
        if tags:
            connection.execute(sa.insert(kernel_tags), tags)
    for blueprint_id in sorted({by_id[each]["blueprint_id"] for each in new}):
        connection.execute(
            sa.update(blueprints)
            .where(
                blueprints.c.blueprint_id == blueprint_id,
                blueprints.c.status == BlueprintStatus.SUBMITTED.value,
            )
            .values(status=BlueprintStatus.COMPILED.value, lease_holder=None, lease_until=None)
        )
    return {"kernels": {each: records.fingerprint(by_id[each]) for each in new}}


def lock_kernel(connection: sa.Connection, kernel_id: str) -> records.Row:
    """Return the kernel's row and keep other verdicts waiting until the transaction ends."""
    found = sa.select(kernels).where(kernels.c.kernel_id == kernel_id)
    row = connection.execute(found.with_for_update()).one_or_none()
    if row is None:
        raise _no_kernel(connection, kernel_id)
    return row


def is_endorsed_anew(
    before: records.Row, report: ValidationReport, endorsement: Endorsement | None
) -> bool:
    """Tell whether a kernel's latest report comes again, with another endorsement."""
    signature = None if endorsement is None else endorsement.signature
    return before.report_id == report.report_id and before.endorsement_signature != signature


def judge(
    connection: sa.Connection,
    before: records.Row,
    report: ValidationReport,
    endorsement: Endorsement | None,
) -> None:
    """Set a kernel's verdict, what was measured of it and what it is searched by."""
    tags = records.all_tags(before.tags, report)
    ir = read_blueprint(connection, before.blueprint_id).ir
    connection.execute(
        sa.update(kernels)
        .where(kernels.c.kernel_id == report.kernel_id)
        .values(records.verdict(report, endorsement) | records.tag_columns(tags, ir))
    )
    if connection.dialect.name == "sqlite":
        mine = kernel_tags.c.kernel_id == report.kernel_id
        connection.execute(sa.delete(kernel_tags).where(mine))
        if tags:
            rows = [{"kernel_id": report.kernel_id, "tag": tag} for tag in tags]
            connection.execute(sa.insert(kernel_tags), rows)


def archive(connection: sa.Connection, table: sa.Table, subject_id: str) -> None:
    """Set a blueprint or kernel ARCHIVED, and record it, unless it is."""
    (key,) = table.primary_key.columns
    changed = connection.execute(
        sa.update(table)
        .where(key == subject_id, table.c.status != "ARCHIVED")
        .values(status="ARCHIVED", lease_holder=None, lease_until=None)
    )
    if changed.rowcount:
        kind = f"{table.name.removesuffix('s')}_archived"
        audit.append(connection, LIBRARY_CHAIN, [(kind, {key.name: subject_id})])


def find_key(connection: sa.Connection, key_id: str) -> ValidatorKey | None:
    """Return a validator's key, if there is such a one."""
    found = sa.select(validator_keys).where(validator_keys.c.key_id == key_id)
    row = connection.execute(found).one_or_none()
    return None if row is None else records.to_validator_key(row)


def revoke_key(connection: sa.Connection, key_id: str) -> bool:
    """Revoke a key; tell whether it was in force."""
    in_force = sa.and_(validator_keys.c.key_id == key_id, validator_keys.c.revoked_at.is_(None))
    revoked = sa.update(validator_keys).where(in_force).values(revoked_at=utc_now())
    return bool(connection.execute(revoked).rowcount)


def withdraw_endorsements(connection: sa.Connection, key_id: str) -> list[str]:
    """Set what a key endorsed COMPILED, so that it is judged again; return the ids."""
    withdrawn = connection.scalars(
        sa.update(kernels)
        .where(
            kernels.c.endorsement_key_id == key_id,
            kernels.c.status == KernelStatus.VALIDATED.value,
        )
        .values(
            status=KernelStatus.COMPILED.value,
            endorsement_key_id=None,
            endorsement_signature=None,
            num_claims=0,
        )
        .returning(kernels.c.kernel_id)
    )
    return sorted(withdrawn)


def _no_kernel(connection: sa.Connection, kernel_id: str) -> NotFoundError:
    return NotFoundError(
        f"kernel {kernel_id!r} is not in the library ({place(connection.engine.url)}); "
        "register it first"
    )
