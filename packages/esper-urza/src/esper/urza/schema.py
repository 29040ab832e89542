"""The library's tables, the same on SQLite and PostgreSQL.

`library` reads and writes them, the scripts in `migrations/versions` create them; a test fails when
the two drift apart. What is searched or guarded is a column, the rest of a record is JSON.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import override

import sqlalchemy as sa

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


metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

blueprints = sa.Table(
    "blueprints",
    metadata,
    sa.Column("blueprint_id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("ir", sa.JSON, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    _one_of("kind", tuple(SiteKind), table="blueprints"),
    _one_of("status", tuple(BlueprintStatus), table="blueprints"),
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
)

kernel_tags = sa.Table(
    "kernel_tags",
    metadata,
    sa.Column("kernel_id", sa.String(64), sa.ForeignKey("kernels.kernel_id"), primary_key=True),
    sa.Column("tag", sa.Text, primary_key=True),
    sa.Index("ix_kernel_tags_tag", "tag", "kernel_id"),
)
"""A kernel's own tags and those of its latest report, for searching."""

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
