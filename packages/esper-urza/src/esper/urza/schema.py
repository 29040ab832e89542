"""The library's tables, the same on SQLite and PostgreSQL.

`library` reads and writes them, the scripts in `migrations/versions` create them, with the triggers
that guard them; a test fails when the two drift apart. What is searched or guarded is a column, the rest
of a record is JSON.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, override

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from esper.contracts import BlueprintStatus, KernelStatus, SeedState, SiteKind

FIELD_OUTCOMES = (
    SeedState.FOSSILIZED,
    SeedState.CULLED,
    SeedState.CANCELLED,
    SeedState.ROLLED_BACK,
)
"""The seed states that a field report may end in."""


class UtcDateTime(sa.TypeDecorator[datetime]):
    """An aware time in UTC: `timestamptz` on PostgreSQL, sortable text on SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    @override
    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    @override
    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _one_of(column: str, values: tuple[StrEnum, ...], *, table: str) -> sa.CheckConstraint:
    listed = ", ".join(f"'{value.value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=f"ck_{table}_{column}_known")


_NAMING = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "ix": "ix_%(table_name)s_%(column_0_name)s",
}

metadata = sa.MetaData(naming_convention=_NAMING)
"""The tables of every library."""

sqlite_metadata = sa.MetaData(naming_convention=_NAMING)
"""What a library on SQLite has besides."""


def metadata_of(dialect: sa.Dialect) -> list[sa.MetaData]:
    """Return everything that a database of this kind holds."""
    return [metadata, sqlite_metadata] if dialect.name == "sqlite" else [metadata]


def is_part(item: Any, _name: str | None, _kind: str, _reflected: bool, _compared: Any) -> bool:
    """Tell Alembic what to compare: not the index that PostgreSQL alone has."""
    return getattr(item, "name", None) != "ix_kernels_all_tags"


def _lease() -> list[sa.Column[Any]]:
    """Return the columns of who works on a row, until when, and which time it is that somebody does."""
    return [
        sa.Column("lease_holder", sa.Text),
        sa.Column("lease_until", UtcDateTime),
        sa.Column("num_claims", sa.Integer, nullable=False, server_default="0"),
    ]


blueprints = sa.Table(
    "blueprints",
    metadata,
    sa.Column("blueprint_id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("ir", sa.JSON, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("search", sa.Text, nullable=False, server_default=""),  # in lower case
    *_lease(),
    _one_of("kind", tuple(SiteKind), table="blueprints"),
    _one_of("status", tuple(BlueprintStatus), table="blueprints"),
)
sa.Index(
    "ix_blueprints_waiting",
    blueprints.c.created_at,
    blueprints.c.blueprint_id,
    sqlite_where=blueprints.c.status == "SUBMITTED",
    postgresql_where=blueprints.c.status == "SUBMITTED",
)

kernels = sa.Table(
    "kernels",
    metadata,
    sa.Column("kernel_id", sa.String(64), primary_key=True),
    sa.Column(
        "blueprint_id", sa.String(64), sa.ForeignKey("blueprints.blueprint_id"), nullable=False
    ),
    sa.Column("blueprint_name", sa.Text, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("features", sa.BigInteger, nullable=False),
    sa.Column("dtype", sa.String(16), nullable=False),
    sa.Column("device", sa.String(16), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("num_parameters", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),  # as registered, in their order
    sa.Column("created_at", UtcDateTime, nullable=False),
    # The latest report, and copies of what queries filter and order by.
    sa.Column("report_id", sa.Text),
    sa.Column("latency_us", sa.Double),
    sa.Column("memory_bytes", sa.BigInteger),
    sa.Column("endorsement_key_id", sa.String(64)),
    sa.Column("endorsement_signature", sa.String(128)),
    sa.Column("flops", sa.BigInteger),
    # Its own tags and those of its latest report: on PostgreSQL this is what is searched.
    sa.Column("all_tags", sa.JSON().with_variant(postgresql.ARRAY(sa.Text), "postgresql")),
    sa.Column("search", sa.Text, nullable=False, server_default=""),  # in lower case
    *_lease(),
    sa.Column("inputs", sa.BigInteger),  # what a widening reads; others read their features
    sa.ForeignKeyConstraint(
        ["kernel_id", "report_id"],
        ["validation_reports.kernel_id", "validation_reports.report_id"],
        name="fk_kernels_report_id",
        use_alter=True,  # the two tables refer to each other
    ),
    _one_of("kind", tuple(SiteKind), table="kernels"),
    _one_of("status", tuple(KernelStatus), table="kernels"),
    sa.CheckConstraint(
        "status <> 'VALIDATED' OR (report_id IS NOT NULL"
        " AND endorsement_key_id IS NOT NULL AND endorsement_signature IS NOT NULL)",
        name="ck_kernels_validated_is_endorsed",
    ),
    sa.Index("ix_kernels_signature", "kind", "features", "dtype", "device", "status"),
    sa.Index("ix_kernels_blueprint_id", "blueprint_id"),
    sa.Index(
        "ix_kernels_all_tags",
        "all_tags",
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    ).ddl_if("postgresql"),
)
sa.Index(
    "ix_kernels_waiting",
    kernels.c.created_at,
    kernels.c.kernel_id,
    sqlite_where=kernels.c.status == "COMPILED",
    postgresql_where=kernels.c.status == "COMPILED",
)

kernel_tags = sa.Table(
    "kernel_tags",
    sqlite_metadata,
    sa.Column(
        "kernel_id",
        sa.String(64),
        sa.ForeignKey(kernels.c.kernel_id, name="fk_kernel_tags_kernel_id"),
        primary_key=True,
    ),
    sa.Column("tag", sa.Text, primary_key=True),
    sa.Index("ix_kernel_tags_tag", "tag", "kernel_id"),
)
"""The tags in `kernels.all_tags`, for searching; SQLite has no index on lists."""

validation_reports = sa.Table(
    "validation_reports",
    metadata,
    sa.Column("kernel_id", sa.String(64), sa.ForeignKey("kernels.kernel_id"), primary_key=True),
    sa.Column("report_id", sa.Text, primary_key=True),
    sa.Column("passed", sa.Boolean, nullable=False),
    sa.Column("measured_at", UtcDateTime, nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
)

field_reports = sa.Table(
    "field_reports",
    metadata,
    sa.Column("report_id", sa.Text, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    # No foreign key: an outcome is kept even when the run took its kernel from another library.
    sa.Column("kernel_id", sa.String(64), nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
    _one_of("outcome", FIELD_OUTCOMES, table="field_reports"),
    sa.Index("ix_field_reports_run_id", "run_id", "at"),
    sa.Index("ix_field_reports_kernel_id", "kernel_id"),
)

validator_keys = sa.Table(
    "validator_keys",
    metadata,
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("public_key", sa.String(64), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("enrolled_at", UtcDateTime, nullable=False),
    sa.Column("revoked_at", UtcDateTime),
)

api_tokens = sa.Table(
    "api_tokens",
    metadata,
    sa.Column("token_id", sa.String(16), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("roles", sa.Text, nullable=False),  # sorted, with blanks in between
    sa.Column("secret_hash", sa.String(64), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("revoked_at", UtcDateTime),
    sa.Index("ix_api_tokens_secret_hash", "secret_hash", unique=True),
)
"""Who may use the HTTP API, and for what; of the secrets only their hashes."""

api_requests = sa.Table(
    "api_requests",
    metadata,
    sa.Column("token_id", sa.String(16), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("begun_at", UtcDateTime, nullable=False),
    sa.Column("status", sa.Integer),  # none while it is being answered
    sa.Column("headers", sa.Text),
    sa.Column("body", sa.LargeBinary),
    sa.Index("ix_api_requests_begun_at", "begun_at"),
)
"""Answers to requests that carried an idempotency key, for a while."""

events = sa.Table(
    "events",
    metadata,
    sa.Column("chain", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("line", sa.Text, nullable=False),  # all of it, as `contracts.chain` writes it
)
"""Hash-chained and append-only: what happened, in the form that anybody can verify."""
