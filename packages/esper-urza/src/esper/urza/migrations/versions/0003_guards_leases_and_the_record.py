"""Guards against impossible states, leases, validators' keys, tags as arrays, and the chained record.

PostgreSQL searches tags in an array with a GIN index from here on, and needs the table of tags no more.
The guards are triggers: both databases can have those without making a table anew.
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_TAGS = sa.JSON().with_variant(postgresql.ARRAY(sa.Text), "postgresql")

_NO_VERDICT = (
    "NEW.report_id IS NULL AND NEW.endorsement_key_id IS NULL AND NEW.endorsement_signature IS NULL"
)
_BLUEPRINT_MOVES = (
    "OLD.status = NEW.status OR (OLD.status = 'SUBMITTED' AND NEW.status = 'COMPILED')"
    " OR (OLD.status <> 'ARCHIVED' AND NEW.status = 'ARCHIVED')"
)
_KERNEL_MOVES = (
    "OLD.status = NEW.status OR (OLD.status = 'COMPILED' AND NEW.status IN ('VALIDATED', 'REJECTED'))"
    " OR (OLD.status = 'VALIDATED' AND NEW.status IN ('COMPILED', 'REJECTED'))"
    " OR (OLD.status = 'REJECTED' AND NEW.status = 'VALIDATED')"
    " OR (OLD.status <> 'ARCHIVED' AND NEW.status = 'ARCHIVED')"
)
_ENDORSED = (
    "NEW.status <> 'VALIDATED' OR (EXISTS (SELECT 1 FROM validation_reports AS r"
    " WHERE r.kernel_id = NEW.kernel_id AND r.report_id = NEW.report_id AND r.passed)"
    " AND EXISTS (SELECT 1 FROM validator_keys AS k"
    " WHERE k.key_id = NEW.endorsement_key_id AND k.revoked_at IS NULL))"
)
_FOLLOWS = (
    "(NEW.seq = 0 AND NEW.previous = '0000000000000000000000000000000000000000000000000000000000000000')"
    " OR EXISTS (SELECT 1 FROM events AS e"
    " WHERE e.chain = NEW.chain AND e.seq = NEW.seq - 1 AND e.hash = NEW.previous)"
)
_BLUEPRINT_TAKES = (
    "EXISTS (SELECT 1 FROM blueprints AS b"
    " WHERE b.blueprint_id = NEW.blueprint_id AND b.status <> 'ARCHIVED')"
)


def _same(*columns: str, as_text: str | None = None) -> str:
    same = [f"OLD.{column} = NEW.{column}" for column in columns]
    if as_text is not None:  # PostgreSQL does not compare JSON
        same.append(f"CAST(OLD.{as_text} AS TEXT) = CAST(NEW.{as_text} AS TEXT)")
    return " AND ".join(same)


_GUARDS = (
    # name, table, when, what must hold, what is said otherwise
    ("blueprints_begin", "blueprints", "INSERT", "NEW.status = 'SUBMITTED'", "begins SUBMITTED"),
    ("blueprints_move", "blueprints", "UPDATE", _BLUEPRINT_MOVES, "does not move that way"),
    (
        "blueprints_keep",
        "blueprints",
        "UPDATE",
        _same("blueprint_id", "name", "kind", "created_at", as_text="ir"),
        "is never changed",
    ),
    ("blueprints_stay", "blueprints", "DELETE", "1 = 0", "is never deleted"),
    (
        "kernels_begin",
        "kernels",
        "INSERT",
        f"NEW.status = 'COMPILED' AND {_NO_VERDICT}",
        "begins COMPILED",
    ),
    ("kernels_built", "kernels", "INSERT", _BLUEPRINT_TAKES, "is of an ARCHIVED blueprint"),
    ("kernels_move", "kernels", "UPDATE", _KERNEL_MOVES, "does not move that way"),
    (
        "kernels_keep",
        "kernels",
        "UPDATE",
        _same(
            "kernel_id",
            "blueprint_id",
            "blueprint_name",
            "kind",
            "features",
            "dtype",
            "device",
            "size_bytes",
            "num_parameters",
            "created_at",
            as_text="tags",
        ),
        "is never changed",
    ),
    (
        "kernels_endorsed",
        "kernels",
        "UPDATE",
        _ENDORSED,
        "is VALIDATED only with a report that passed and a key that is enrolled",
    ),
    ("kernels_stay", "kernels", "DELETE", "1 = 0", "is never deleted"),
    ("validation_reports_keep", "validation_reports", "UPDATE", "1 = 0", "is never changed"),
    ("validation_reports_stay", "validation_reports", "DELETE", "1 = 0", "is never deleted"),
    ("field_reports_keep", "field_reports", "UPDATE", "1 = 0", "is never changed"),
    ("field_reports_stay", "field_reports", "DELETE", "1 = 0", "is never deleted"),
    (
        "validator_keys_keep",
        "validator_keys",
        "UPDATE",
        f"{_same('key_id', 'public_key', 'name', 'enrolled_at')}"
        " AND (OLD.revoked_at IS NULL"
        " OR (NEW.revoked_at IS NOT NULL AND OLD.revoked_at = NEW.revoked_at))",
        "is only revoked, once",
    ),
    ("validator_keys_stay", "validator_keys", "DELETE", "1 = 0", "is never deleted"),
    ("events_follow", "events", "INSERT", _FOLLOWS, "does not follow the one before it"),
    ("events_keep", "events", "UPDATE", "1 = 0", "is never changed"),
    ("events_stay", "events", "DELETE", "1 = 0", "is never deleted"),
)


_NEWEST_EVENT = """
CREATE FUNCTION newest_event(whose text) RETURNS TABLE (seq bigint, hash text)
LANGUAGE plpgsql AS $$ BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended(whose, 7310310201165309302));
  RETURN QUERY SELECT e.seq, e.hash::text FROM events AS e WHERE e.chain = whose
    ORDER BY e.seq DESC LIMIT 1;
END $$
"""
"""For those who append on PostgreSQL: one after the other, each sees what the one before has written.

The lock's number is "esper_ev" in ASCII; with the chain's name, each chain has one of its own.
"""


def upgrade() -> None:
    """Add columns and tables, fill them, then set the guards."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    _add_columns(is_sqlite=is_sqlite)
    op.create_table(
        "validator_keys",
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("public_key", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("enrolled_at", _TIME, nullable=False),
        sa.Column("revoked_at", _TIME),
        sa.PrimaryKeyConstraint("key_id", name="pk_validator_keys"),
    )
    op.create_table(
        "events",
        sa.Column("chain", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("line", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("chain", "seq", name="pk_events"),
    )
    if not context.is_offline_mode():
        _fill()
    if not is_sqlite:
        # Without its list of things to do later, which searches would have to read as well.
        op.create_index(
            "ix_kernels_all_tags",
            "kernels",
            ["all_tags"],
            postgresql_using="gin",
            postgresql_with={"fastupdate": "off"},
        )
        op.drop_table("kernel_tags")
    for guard in _GUARDS:
        _set_guard(*guard, is_sqlite=is_sqlite)
    if not is_sqlite:
        op.execute(
            "CREATE TRIGGER events_whole BEFORE TRUNCATE ON events FOR EACH STATEMENT"
            " EXECUTE FUNCTION guard_events_stay()"
        )
        op.execute(_NEWEST_EVENT)


def downgrade() -> None:
    """Remove the guards, and with the tables the record and the keys."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for name, *_ in _GUARDS:
        op.execute(f"DROP TRIGGER {name}" if is_sqlite else f"DROP FUNCTION guard_{name}() CASCADE")
    if not is_sqlite:
        op.execute("DROP FUNCTION newest_event(text)")
        _bring_back_tags()
        op.drop_index("ix_kernels_all_tags", "kernels")
    op.drop_table("events")
    op.drop_table("validator_keys")
    op.drop_index("ix_blueprints_waiting", "blueprints")
    op.drop_index("ix_kernels_waiting", "kernels")
    for table, columns in (
        ("blueprints", ("search", "lease_holder", "lease_until", "num_claims")),
        (
            "kernels",
            ("flops", "all_tags", "search", "lease_holder", "lease_until", "num_claims"),
        ),
    ):
        for column in columns:
            op.drop_column(table, column)


def _add_columns(*, is_sqlite: bool) -> None:
    if is_sqlite and context.is_offline_mode():
        raise CommandError("revision 0003 reads a SQLite database; run it without --sql")
    op.add_column("kernels", sa.Column("flops", sa.BigInteger))
    op.add_column("kernels", sa.Column("all_tags", _TAGS))
    for table in ("blueprints", "kernels"):
        op.add_column(table, sa.Column("search", sa.Text, nullable=False, server_default=""))
        op.add_column(table, sa.Column("lease_holder", sa.Text))
        op.add_column(table, sa.Column("lease_until", _TIME))
        op.add_column(
            table, sa.Column("num_claims", sa.Integer, nullable=False, server_default="0")
        )
    for table, key, status in (
        ("blueprints", "blueprint_id", "SUBMITTED"),
        ("kernels", "kernel_id", "COMPILED"),
    ):
        waits = sa.text(f"status = '{status}'")
        op.create_index(
            f"ix_{table}_waiting",
            table,
            ["created_at", key],
            sqlite_where=waits,
            postgresql_where=waits,
        )


def _fill() -> None:
    """Give the rows that are there already what the new columns hold."""
    blueprints = sa.table("blueprints", sa.column("blueprint_id"), sa.column("ir", sa.JSON))
    kernels = sa.table(
        "kernels",
        sa.column("kernel_id"),
        sa.column("blueprint_id"),
        sa.column("report_id"),
        sa.column("tags", sa.JSON),
        sa.column("all_tags", _TAGS),
        sa.column("search"),
        sa.column("flops"),
    )
    reports = sa.table(
        "validation_reports",
        sa.column("kernel_id"),
        sa.column("report_id"),
        sa.column("content", sa.JSON),
    )
    connection = op.get_bind()
    described: dict[str, str] = {}
    for row in connection.execute(sa.select(blueprints)).all():
        described[row.blueprint_id] = f"{row.ir['name']} {row.ir['description']}".lower()
        connection.execute(
            sa.text("UPDATE blueprints SET search = :search WHERE blueprint_id = :id"),
            {"search": described[row.blueprint_id], "id": row.blueprint_id},
        )
    latest = sa.and_(
        reports.c.kernel_id == kernels.c.kernel_id, reports.c.report_id == kernels.c.report_id
    )
    found = sa.select(kernels, reports.c.content).outerjoin(reports, latest)
    for row in connection.execute(found).all():
        report: dict[str, Any] = row.content or {}
        tags = list(dict.fromkeys((*row.tags, *report.get("tags", ()))))
        connection.execute(
            sa.update(kernels)
            .where(kernels.c.kernel_id == row.kernel_id)
            .values(
                all_tags=tags,
                flops=report.get("flops"),
                search=" ".join((described[row.blueprint_id], *tags)).lower(),
            )
        )


def _bring_back_tags() -> None:
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
    op.execute(
        "INSERT INTO kernel_tags (kernel_id, tag)"
        " SELECT kernel_id, unnest(all_tags) FROM kernels WHERE all_tags IS NOT NULL"
    )


def _set_guard(name: str, table: str, when: str, holds: str, said: str, *, is_sqlite: bool) -> None:
    """Have the database refuse what would leave `holds` untrue, with one sentence."""
    message = json.dumps(f"a row of {table} {said}")[1:-1]
    if is_sqlite:
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {when} ON {table} FOR EACH ROW WHEN NOT ({holds})"
            f" BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )
        return
    op.execute(
        f"CREATE FUNCTION guard_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NOT ({holds}) THEN RAISE EXCEPTION '{message}' USING ERRCODE = 'check_violation';"
        f" END IF; RETURN {'OLD' if when == 'DELETE' else 'NEW'}; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {name} BEFORE {when} ON {table} FOR EACH ROW"
        f" EXECUTE FUNCTION guard_{name}()"
    )
