"""What Alembic runs, for the command line (`uv run alembic …`) and for `esper.urza.migrate.upgrade`.

The latter hands over its connection; the former takes the database from the settings
(DATABASE_URL or POSTGRES_*). Both work in one transaction under the migration lock.
"""

from alembic import context
from alembic.util import CommandError
from sqlalchemy import URL, Connection

from esper.contracts import EsperError
from esper.contracts.settings import load_settings
from esper.urza.engine import make_engine, parse_url, translated
from esper.urza.migrate import exclusive
from esper.urza.schema import is_part, metadata_of


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata_of(connection.dialect),
        include_object=is_part,
    )
    with context.begin_transaction():
        context.run_migrations()


def _print_sql(url: URL) -> None:
    context.configure(
        dialect_name=url.get_backend_name(),
        target_metadata=metadata_of(url.get_dialect()()),
        literal_binds=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _run_from_settings() -> None:
    url = parse_url(load_settings().library_url())
    if context.is_offline_mode():
        _print_sql(url)
        return
    engine = make_engine(url)
    try:
        with translated(url), exclusive(engine) as connection:
            _run(connection)
    finally:
        engine.dispose()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    _run(handed_over)
else:
    try:
        _run_from_settings()
    except EsperError as error:  # the command line prints this kind as one line
        raise CommandError(str(error)) from error
