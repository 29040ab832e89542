"""How many features a kernel reads, where those are others than the ones it adds to: for widenings."""

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SAME = "COALESCE(OLD.inputs, 0) = COALESCE(NEW.inputs, 0)"
_MESSAGE = "a row of kernels is never changed"


def upgrade() -> None:
    """Add the column, and guard it like the others that say what a kernel is built for."""
    op.add_column("kernels", sa.Column("inputs", sa.BigInteger))
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER kernels_keep_inputs BEFORE UPDATE ON kernels FOR EACH ROW"
            f" WHEN NOT ({_SAME}) BEGIN SELECT RAISE(ABORT, '{_MESSAGE}'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION guard_kernels_keep_inputs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NOT ({_SAME}) THEN RAISE EXCEPTION '{_MESSAGE}' USING ERRCODE = 'check_violation';"
        " END IF; RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER kernels_keep_inputs BEFORE UPDATE ON kernels FOR EACH ROW"
        " EXECUTE FUNCTION guard_kernels_keep_inputs()"
    )


def downgrade() -> None:
    """Remove both; refuse where widenings are on file, which would become other kernels."""
    connection = op.get_bind()
    found = sa.text("SELECT 1 FROM kernels WHERE inputs IS NOT NULL")
    if not context.is_offline_mode() and connection.execute(found).first():
        raise CommandError(
            "kernels that widen a layer are on file, and version 0004 cannot say what they read; "
            "export the library and import it into a new one that is not downgraded"
        )
    if connection.dialect.name == "sqlite":
        op.execute("DROP TRIGGER kernels_keep_inputs")
    else:
        op.execute("DROP FUNCTION guard_kernels_keep_inputs() CASCADE")
    op.drop_column("kernels", "inputs")
