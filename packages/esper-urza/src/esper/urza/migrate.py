"""Brings a database's schema up to date, once, however many processes open it together.

`SqlLibrary.open` calls `upgrade`; `migrations/env.py` uses the same lock for the command line.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from esper.contracts import BackendUnavailableError
from esper.urza.engine import Engines, place

SCRIPTS = "esper.urza:migrations"
"""Where Alembic finds the scripts, in a checkout as in an installed wheel."""

_ADVISORY_LOCK = 0x65737065725F7572
"""Names the migration lock on PostgreSQL: "esper_ur" in ASCII; locks are per database."""

_alembic_lock = threading.Lock()
"""Alembic keeps its context in module globals, so one thread of a process migrates at a time."""


def make_config() -> Config:
    """Return Alembic's configuration for the scripts in this package."""
    config = Config()
    config.set_main_option("script_location", SCRIPTS)
    return config


@contextmanager
def exclusive(engine: sa.Engine) -> Generator[sa.Connection]:
    """Give a transaction that no other migrating process shares; others wait for its end."""
    # On SQLite the option makes the transaction take the file's write lock at once.
    with Engines(engine).writing.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        yield connection


def upgrade(engine: sa.Engine) -> None:
    """Apply every revision that `engine`'s database lacks, all or none.

    Raises:
        BackendUnavailableError: if the schema is newer than this code.
        sqlalchemy.exc.SQLAlchemyError: what the driver raises, not wrapped.

    """
    config = make_config()
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        if _is_current(connection, scripts):
            return
    with _alembic_lock, exclusive(engine) as connection:
        if not _is_current(connection, scripts):  # another process may have been first
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def revision(engine: sa.Engine) -> str | None:
    """Return the revision of a database's schema, None for an empty one.

    Raises:
        BackendUnavailableError: if it is newer than this code.
        sqlalchemy.exc.SQLAlchemyError: what the driver raises, not wrapped.

    """
    with engine.connect() as connection:
        _is_current(connection, ScriptDirectory.from_config(make_config()))
        return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    """Return the revision of this code's schema."""
    newest = ScriptDirectory.from_config(make_config()).get_current_head()
    assert newest is not None
    return newest


def _is_current(connection: sa.Connection, scripts: ScriptDirectory) -> bool:
    applied = set(MigrationContext.configure(connection).get_current_heads())
    known = {script.revision for script in scripts.walk_revisions()}
    if unknown := applied - known:
        raise BackendUnavailableError(
            f"the library ({place(connection.engine.url)}) has schema revision "
            f"{', '.join(sorted(unknown))}; this esper-urza knows {', '.join(sorted(known))} only: "
            "a newer version made it, so upgrade esper-urza or use another database"
        )
    return applied == set(scripts.get_heads())
