"""Leases: who works on which blueprint or kernel, and when others may take it over.

A claim is one statement. On PostgreSQL those who claim at once skip each other's rows; on SQLite one
writer waits for another.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from esper.contracts import MAX_CLAIMS, BlueprintStatus, ConfigError, KernelStatus, utc_now
from esper.urza.schema import blueprints, kernels


def check_claim(holder: str, lease_seconds: float) -> None:
    """Raise `ConfigError` if nobody could hold such a lease."""
    if not holder:
        raise ConfigError("a claim needs to know who holds it; got an empty name")
    if not 0 < lease_seconds <= 86_400 * 365:
        raise ConfigError(
            f"lease_seconds is {lease_seconds}; expected more than 0 and at most a year"
        )


def claim(table: sa.Table, holder: str, lease_seconds: float, dialect: sa.Dialect) -> sa.Executable:
    """Return the statement that claims the oldest waiting row of `blueprints` or `kernels`.

    It returns that row's key, or nothing.
    """
    (key,) = table.primary_key.columns
    oldest = (
        sa.select(key)
        .where(
            table.c.status == sa.literal_column(f"'{_WAITING[table.name]}'"),  # a partial index
            sa.or_(table.c.lease_until.is_(None), table.c.lease_until <= _in(0, dialect)),
            table.c.num_claims < MAX_CLAIMS,
        )
        .order_by(table.c.created_at, key)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    return (
        sa.update(table)
        .where(key == oldest)
        .values(
            lease_holder=holder,
            lease_until=_in(lease_seconds, dialect),
            num_claims=table.c.num_claims + 1,
        )
        .returning(key)
    )


def renew(
    subject_id: str, holder: str, lease_seconds: float, dialect: sa.Dialect
) -> list[sa.Update]:
    """Return the statements that prolong a claim; those change a row only if it is still held."""
    return [
        sa.update(table)
        .where(
            key == subject_id, table.c.lease_holder == holder, table.c.lease_until > _in(0, dialect)
        )
        .values(lease_until=_in(lease_seconds, dialect))
        for table, key in _subjects()
    ]


def release(subject_id: str, holder: str) -> list[sa.Update]:
    """Return the statements that end a claim as if it had not been made."""
    return [
        sa.update(table)
        .where(key == subject_id, table.c.lease_holder == holder)
        .values(lease_holder=None, lease_until=None, num_claims=table.c.num_claims - 1)
        for table, key in _subjects()
    ]


_WAITING = {
    blueprints.name: BlueprintStatus.SUBMITTED.value,
    kernels.name: KernelStatus.COMPILED.value,
}


def _subjects() -> Sequence[tuple[sa.Table, sa.ColumnElement[str]]]:
    return [(blueprints, blueprints.c.blueprint_id), (kernels, kernels.c.kernel_id)]


def _in(seconds: float, dialect: sa.Dialect) -> sa.ColumnElement[Any]:
    """Return the time in so many seconds, by the database's clock: those of workers may go wrong."""
    length = timedelta(seconds=seconds)
    if dialect.name == "postgresql":
        now = sa.func.clock_timestamp(type_=sa.DateTime(timezone=True))
        return now + sa.literal(length, sa.Interval)
    return sa.literal(utc_now() + length, blueprints.c.lease_until.type)
