"""The statements that read and change rows, each within a transaction of the library.

`library` decides what happens and in which order; here is how. Searching is in `queries`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
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

_ids: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_BLUEPRINTS = sa.select(blueprints).where(blueprints.c.blueprint_id.in_(_ids))
_KERNEL = select_kernels().where(kernels.c.kernel_id == sa.bindparam("id"))
_KERNELS = select_kernels().where(kernels.c.kernel_id.in_(_ids))
_REGISTER = sa.insert(kernels)
_TAG = sa.insert(kernel_tags)
_TAKEN = sa.select(kernels.c.kernel_id).where(kernels.c.kernel_id.in_(_ids))
_SET_COMPILED = (
    sa.update(blueprints)
    .where(
        blueprints.c.blueprint_id.in_(_ids),
        blueprints.c.status == BlueprintStatus.SUBMITTED.value,
    )
    .values(status=BlueprintStatus.COMPILED.value, lease_holder=None, lease_until=None)
)


def _kernels_from_json() -> sa.Insert:
    """Return PostgreSQL's statement that inserts kernels from one JSON list of them."""
    columns = [kernels.c[name] for name in records.KERNEL_COLUMNS]
    types = [column.type.dialect_impl(postgresql.dialect()) for column in columns]
    listed = sa.func.json_to_recordset(sa.bindparam("rows", type_=sa.JSON))
    rows = listed.table_valued(
        *(sa.column(column.name, kind) for column, kind in zip(columns, types, strict=True))
    ).render_derived(name="given", with_types=True)
    insert = postgresql.insert(kernels).from_select(records.KERNEL_COLUMNS, sa.select(rows))
    return insert.on_conflict_do_nothing().returning(kernels.c.kernel_id)


_KERNELS_FROM_JSON = _kernels_from_json()


def insert_once(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert `row` unless its primary key is taken; tell whether it was inserted."""
    return connection.execute(_insertion(table, connection.dialect.name), row).rowcount > 0


@cache
def _insertion(table: sa.Table, dialect_name: str) -> sa.Insert:
    insert = postgresql.insert if dialect_name == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing().execution_options(preserve_rowcount=True)


def read_blueprint(connection: sa.Connection, blueprint_id: str) -> Blueprint:
    """Return one blueprint. Raises `NotFoundError`."""
    return read_blueprints(connection, [blueprint_id])[0]


def read_blueprints(connection: sa.Connection, blueprint_ids: Sequence[str]) -> list[Blueprint]:
    """Return blueprints, in the order asked for. Raises `NotFoundError`."""
    found: dict[str, Blueprint] = {}
    for some in _portions(blueprint_ids):
        for row in connection.execute(_BLUEPRINTS, {"ids": some}):
            found[row.blueprint_id] = records.to_blueprint(row)
    for blueprint_id in blueprint_ids:
        if blueprint_id not in found:
            raise NotFoundError(
                f"blueprint {blueprint_id!r} is not in the library "
                f"({place(connection.engine.url)}); submit it first"
            )
    return [found[blueprint_id] for blueprint_id in blueprint_ids]


def _portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]


def read_kernel(connection: sa.Connection, kernel_id: str) -> CompiledKernelArtifact:
    """Return one kernel with its latest report. Raises `NotFoundError`."""
    row = connection.execute(_KERNEL, {"id": kernel_id}).one_or_none()
    if row is None:
        raise _no_kernel(connection, kernel_id)
    return records.to_kernel(row)


def read_kernels(
    connection: sa.Connection, kernel_ids: Sequence[str]
) -> list[CompiledKernelArtifact]:
    """Return kernels with their latest reports, in the order asked for. Raises `NotFoundError`."""
    found: dict[str, CompiledKernelArtifact] = {}
    for some in _portions(kernel_ids):
        for row in connection.execute(_KERNELS, {"ids": some}):
            found[row.kernel_id] = records.to_kernel(row)
    for kernel_id in kernel_ids:
        if kernel_id not in found:
            raise _no_kernel(connection, kernel_id)
    return [found[kernel_id] for kernel_id in kernel_ids]


def register(
    connection: sa.Connection, rows: Mapping[str, Mapping[str, Any]], designs: Collection[str]
) -> list[str]:
    """Insert those kernels, by their ids, that are not on file yet; return the ids of these.

    Their blueprints are COMPILED from then on, and nobody's any more; `designs` are those that may
    not be yet.
    """
    new = _insert_kernels(connection, rows)
    for some in _portions(sorted({rows[each]["blueprint_id"] for each in new} & set(designs))):
        connection.execute(_SET_COMPILED, {"ids": some})
    return new


def _insert_kernels(connection: sa.Connection, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if connection.dialect.name == "postgresql":
        # All in one parameter: a statement with thousands of them takes longer to read than to run.
        given = {"rows": [records.in_json(row) for row in rows.values()]}
        return list(connection.scalars(_KERNELS_FROM_JSON, given))
    if len(rows) == 1:  # asks and inserts at once
        new = [each for each in rows if insert_once(connection, kernels, rows[each])]
    else:
        new = _insert_new_kernels(connection, rows)
    tags = [{"kernel_id": each, "tag": tag} for each in new for tag in rows[each]["all_tags"]]
    if tags:
        connection.execute(_TAG, tags)
    return new


def _insert_new_kernels(
    connection: sa.Connection, rows: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    # This transaction has the SQLite file's lock, so nobody else inserts any meanwhile.
    taken: set[str] = set()
    for some in _portions(list(rows)):
        taken.update(connection.scalars(_TAKEN, {"ids": some}))
    new = [kernel_id for kernel_id in rows if kernel_id not in taken]
    if new:
        connection.execute(_REGISTER, [rows[each] for each in new])
    return new


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
    tags = records.all_tags(before.tags, report.tags)
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
