"""Connections to the library's database: which driver, which options, and what its errors mean.

`library` and the migrations get their engines here; every driver exception leaves through
`translated`.
"""

import re
import sqlite3
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import sqlalchemy as sa
from pydantic_core import from_json, to_json
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from esper.contracts import (
    BackendUnavailableError,
    ConfigError,
    EsperError,
    IllegalTransitionError,
    MessageError,
)

_LOCK_SECONDS = 15
"""How long a writer waits for another one of the same SQLite file."""

_BEGINS = "esper_begins"
"""Execution option of an engine: how its transactions begin on SQLite, or not at all."""


def _to_json(value: Any) -> str:
    return to_json(value).decode()


_OPTIONS: Mapping[str, Any] = {
    "hide_parameters": True,
    # Columns of JSON through pydantic's own reader and writer: a fifth of the time of `json`.
    "json_serializer": _to_json,
    "json_deserializer": from_json,
}


class Engines:
    """One engine's connections, by what they are for; one pool serves them all."""

    def __init__(self, engine: sa.Engine) -> None:
        self.reading = engine.execution_options(**{_BEGINS: None})
        """For single statements that read: they need no transaction."""
        self.unchanging = engine
        """For transactions that see one state of the database throughout."""
        self.writing = engine.execution_options(**{_BEGINS: "BEGIN IMMEDIATE"})
        """For transactions that write: on SQLite they take the lock at once."""
        if engine.dialect.name == "postgresql":
            self.reading = engine.execution_options(isolation_level="AUTOCOMMIT")
            self.unchanging = engine.execution_options(isolation_level="REPEATABLE READ")

    def dispose(self) -> None:
        """Close the pool's connections."""
        self.writing.dispose()


def parse_url(url: str) -> sa.URL:
    """Return `url` with the driver filled in: `postgresql://` means psycopg 3.

    Raises:
        ConfigError: if it is malformed, or no SQLite or PostgreSQL URL.

    """
    expected = (
        "expected sqlite:///relative.db, sqlite:////absolute.db, sqlite:// (in memory) "
        "or postgresql+psycopg://user:password@host:port/database"
    )
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise ConfigError(f"the library's URL is malformed; {expected}") from error
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        if parsed.host:
            raise ConfigError(f"the library's SQLite URL names a host, {parsed.host!r}; {expected}")
        return parsed
    raise ConfigError(f"the library's URL has scheme {parsed.drivername!r}; {expected}")


def place(url: sa.URL) -> str:
    """Return where the database is, without credentials."""
    if url.get_backend_name() == "sqlite":
        in_memory = url.database in (None, "", ":memory:")
        return (
            "SQLite in memory" if in_memory else f"SQLite file {Path(str(url.database)).absolute()}"
        )
    host = url.host or url.query.get("host") or "localhost"
    return f"PostgreSQL {host}:{url.port or 5432}/{url.database or url.username or ''}"


def make_engine(url: sa.URL) -> sa.Engine:
    """Return an engine for `url`; does not connect."""
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    from esper.urza.postgres import make_postgres_engine  # a run on SQLite needs no psycopg

    return make_postgres_engine(url, _OPTIONS)


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    options = dict(_OPTIONS) | {
        "connect_args": {"timeout": _LOCK_SECONDS, "check_same_thread": False}
    }
    if url.database in (None, "", ":memory:"):
        # One connection is the database; the pool hands it to one thread at a time.
        engine = sa.create_engine(
            url, **options, poolclass=sa.QueuePool, pool_size=1, max_overflow=0
        )
    else:
        engine = sa.create_engine(url, **options)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # None: Python's driver opens no transactions of its own, `_begin_sqlite` does.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    # What was acknowledged survives the loss of power too; with the write-ahead log, NORMAL would not.
    connection.execute("PRAGMA synchronous = FULL")
    _use_write_ahead_log(connection)


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Let readers and a writer of the file work side by side; in memory this changes nothing."""
    # SQLite does not wait when two processes switch a new file at the same moment; one is refused.
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later fails when another one wrote in between;
    # taking the write lock at the start makes writers queue instead.
    begin = connection.get_execution_options().get(_BEGINS, "BEGIN")
    if begin is not None:
        connection.exec_driver_sql(begin)


@contextmanager
def translated(url: sa.URL) -> Generator[None]:
    """Turn the driver's exceptions within the context into Esper's."""
    try:
        yield
    except SQLAlchemyError as error:
        raise _translate(url, error) from error


def _translate(url: sa.URL, error: SQLAlchemyError) -> EsperError:
    said = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
    for secret in _secrets(url):
        said = said.replace(secret, "***")
    if isinstance(error, IntegrityError) and (refused := re.search(r"a row of \w+ [^\n]*", said)):
        return IllegalTransitionError(
            f"the library ({place(url)}) refused a change: {refused[0]}; nothing was changed"
        )
    if isinstance(error, DataError):
        return MessageError(f"the library ({place(url)}) cannot store this value: {said}")
    if isinstance(error, PoolTimeoutError):
        advice = "too many threads use the library at once; use fewer"
    elif url.get_backend_name() == "sqlite":
        advice = _sqlite_advice(url, said)
    else:
        advice = _postgres_advice(url, said)
    return BackendUnavailableError(f"the library ({place(url)}) is not available: {said}; {advice}")


def _secrets(url: sa.URL) -> list[str]:
    """Return the URL's passwords in every form that a message may quote, longest first."""
    plain = [str(url.password)] if url.password else []
    for name, value in url.query.items():
        if "password" in name:
            plain += [value] if isinstance(value, str) else value
    forms = {form for word in plain for form in (word, quote(word, safe=""), quote_plus(word))}
    return sorted(filter(None, forms), key=len, reverse=True)


def _sqlite_advice(url: sa.URL, said: str) -> str:
    file = Path(str(url.database))
    if "unable to open" in said:
        if not file.parent.is_dir():
            return f"there is no folder {file.parent.absolute()}; make it first"
        return "check that the file and its folder can be read and written"
    for phrase, advice in (
        ("locked", "another process holds it; end that process or try again"),
        ("readonly", "the file or its folder is not writable; change its mode or use another file"),
        ("not a database", "the file is something else; use another name"),
        ("malformed", "the file is damaged; restore a copy or use another name"),
        ("full", "free some space"),
    ):
        if phrase in said:
            return advice
    return "check the file"


def _postgres_advice(url: sa.URL, said: str) -> str:
    for phrase, advice in (
        ("password", "check the user and password in DATABASE_URL or POSTGRES_*"),
        ("role", "check the user in DATABASE_URL or POSTGRES_USER"),
        ("pg_hba.conf", "the server does not let this user in from here; check its pg_hba.conf"),
        ("permission denied", "the user lacks rights on this database; grant them"),
        ("does not exist", f"create the database first, for example `createdb {url.database}`"),
        ("too many clients", "the server has no connection left; close others or raise its limit"),
        ("starting up", "the server is still starting; try again"),
        (
            "timeout expired",
            "check that the server runs, is not frozen, and that host and port are right",
        ),
        ("did not answer", "it is frozen, overloaded or cut off; look at it, or try again"),
        ("statement timeout", "another transaction holds it up, or it is overloaded; try again"),
    ):
        if phrase in said:
            return advice
    return "check that the server runs and that host and port are right"
