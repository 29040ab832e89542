"""Blueprints and kernels for sequences and for channels along one and three axes.

Only the check of the columns `kind` changes. PostgreSQL replaces the constraint; SQLite cannot, so
there the tables are made again, with their rows, indexes and everything that refers to them.
"""

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TABLES = ("blueprints", "kernels")
_BEFORE = "kind IN ('features', 'channels_2d')"
_NOW = "kind IN ('features', 'causal_sequence', 'sequence', 'channels_1d', 'channels_2d', 'channels_3d')"


def upgrade() -> None:
    """Allow the new kinds."""
    _replace_checks(_BEFORE, _NOW)


def downgrade() -> None:
    """Allow the first kinds only; fails, changing nothing, if there are rows of the others."""
    _replace_checks(_NOW, _BEFORE)


def _replace_checks(old: str, new: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        if context.is_offline_mode():
            raise CommandError("revision 0002 reads a SQLite database; run it without --sql")
        # References are checked when the transaction ends; until then a table may be missing.
        op.execute("PRAGMA defer_foreign_keys = ON")
        for table in _TABLES:
            _make_again(table, old, new)
        return
    for table in _TABLES:
        name = f"ck_{table}_kind_known"
        op.drop_constraint(name, table, type_="check")
        op.create_check_constraint(name, table, new)


def _make_again(table: str, old: str, new: str) -> None:
    """Replace one check of a SQLite table, keeping its rows.

    The table is dropped and created under its own name, and not renamed as Alembic's batch mode does:
    inserting the rows again is what mends the references of other tables to them.
    """
    made_by = sa.text("SELECT sql FROM sqlite_master WHERE tbl_name = :table AND sql IS NOT NULL")
    statements = list(op.get_bind().scalars(made_by, {"table": table}))
    assert any(old in statement for statement in statements)
    op.execute(f"CREATE TABLE rows_kept AS SELECT * FROM {table}")
    op.execute(f"DROP TABLE {table}")
    for statement in statements:  # the table, then its indexes
        op.get_bind().exec_driver_sql(statement.replace(old, new))
    op.execute(f"INSERT INTO {table} SELECT * FROM rows_kept")
    op.execute("DROP TABLE rows_kept")
