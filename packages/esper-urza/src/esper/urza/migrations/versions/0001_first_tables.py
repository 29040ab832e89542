"""Blueprints, kernels with tags, validation reports, field reports.

The first revision. Literal on purpose: a revision never changes when `esper.urza.schema` moves on.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_KINDS = "kind IN ('features', 'channels_2d')"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "blueprints",
        sa.Column("blueprint_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("ir", sa.JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("blueprint_id", name="pk_blueprints"),
        sa.CheckConstraint(_KINDS, name="ck_blueprints_kind_known"),
        sa.CheckConstraint(
            "status IN ('SUBMITTED', 'COMPILED', 'ARCHIVED')", name="ck_blueprints_status_known"
        ),
    )
    _create_kernels()
    op.create_table(
        "kernel_tags",
        sa.Column("kernel_id", sa.String(64), nullable=False),
        sa.Column("tag", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("kernel_id", "tag", name="pk_kernel_tags"),
        sa.ForeignKeyConstraint(
            ["kernel_id"], ["kernels.kernel_id"], name="fk_kernel_tags_kernel_id"
        ),
    )
    op.create_index("ix_kernel_tags_tag", "kernel_tags", ["tag", "kernel_id"])
    op.create_table(
        "validation_reports",
        sa.Column("kernel_id", sa.String(64), nullable=False),
        sa.Column("report_id", sa.Text, nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("measured_at", _TIME, nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("kernel_id", "report_id", name="pk_validation_reports"),
        sa.ForeignKeyConstraint(
            ["kernel_id"], ["kernels.kernel_id"], name="fk_validation_reports_kernel_id"
        ),
    )
    if op.get_bind().dialect.supports_alter:
        op.create_foreign_key(
            "fk_kernels_report_id",
            "kernels",
            "validation_reports",
            ["kernel_id", "report_id"],
            ["kernel_id", "report_id"],
        )
    op.create_table(
        "field_reports",
        sa.Column("report_id", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("kernel_id", sa.String(64), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("report_id", name="pk_field_reports"),
        sa.CheckConstraint(
            "outcome IN ('FOSSILIZED', 'CULLED', 'CANCELLED', 'ROLLED_BACK')",
            name="ck_field_reports_outcome_known",
        ),
    )
    op.create_index("ix_field_reports_run_id", "field_reports", ["run_id", "at"])
    op.create_index("ix_field_reports_kernel_id", "field_reports", ["kernel_id"])


def _create_kernels() -> None:
    op.create_table(
        "kernels",
        sa.Column("kernel_id", sa.String(64), nullable=False),
        sa.Column("blueprint_id", sa.String(64), nullable=False),
        sa.Column("blueprint_name", sa.Text, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("features", sa.BigInteger, nullable=False),
        sa.Column("dtype", sa.String(16), nullable=False),
        sa.Column("device", sa.String(16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("num_parameters", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("report_id", sa.Text),
        sa.Column("latency_us", sa.Double),
        sa.Column("memory_bytes", sa.BigInteger),
        sa.Column("endorsement_key_id", sa.String(64)),
        sa.Column("endorsement_signature", sa.String(128)),
        sa.PrimaryKeyConstraint("kernel_id", name="pk_kernels"),
        sa.ForeignKeyConstraint(
            ["blueprint_id"], ["blueprints.blueprint_id"], name="fk_kernels_blueprint_id"
        ),
        # Refers to a table that does not exist yet: SQLite takes it here, PostgreSQL afterwards.
        sa.ForeignKeyConstraint(
            ["kernel_id", "report_id"],
            ["validation_reports.kernel_id", "validation_reports.report_id"],
            name="fk_kernels_report_id",
            use_alter=True,
        ),
        sa.CheckConstraint(_KINDS, name="ck_kernels_kind_known"),
        sa.CheckConstraint(
            "status IN ('COMPILED', 'VALIDATED', 'REJECTED', 'ARCHIVED')",
            name="ck_kernels_status_known",
        ),
        sa.CheckConstraint(
            "status <> 'VALIDATED' OR (report_id IS NOT NULL"
            " AND endorsement_key_id IS NOT NULL AND endorsement_signature IS NOT NULL)",
            name="ck_kernels_validated_is_endorsed",
        ),
    )
    op.create_index(
        "ix_kernels_signature", "kernels", ["kind", "features", "dtype", "device", "status"]
    )
    op.create_index("ix_kernels_blueprint_id", "kernels", ["blueprint_id"])


def downgrade() -> None:
    """Drop the tables."""
    if op.get_bind().dialect.supports_alter:
        op.drop_constraint("fk_kernels_report_id", "kernels", type_="foreignkey")
    for table in ("field_reports", "kernel_tags", "validation_reports", "kernels", "blueprints"):
        op.drop_table(table)
