"""PostgreSQL connections that give up on a server that no longer answers.

`engine` makes its PostgreSQL engines with these. A server that is gone closes the connection; one
that is frozen, or behind a network that swallows packets, keeps it open and silent, and the driver
would wait for ever: no timeout of the server's own can help then.
"""

import time
from collections.abc import Generator, Mapping
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.errors import OperationalError
from sqlalchemy import event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

CONNECT_SECONDS = 5
REPLY_SECONDS = 30.0
"""For one statement; the library's take milliseconds, so whatever lasts longer is no longer working."""
_STATEMENT_SECONDS = 25
"""The server's own limit is reached first, so that a slow one cleans up and says why."""
_KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Seconds, times, milliseconds: a peer that vanished from the network is noticed within half a minute."""

_FRESH_SECONDS = 1.0
"""A pooled connection that was in use so recently is not asked first whether it still works."""


class PatientConnection(psycopg.Connection[Any]):
    """A connection whose waits end after `REPLY_SECONDS`; it is closed then, its state unknown."""

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Run one exchange with the server.

        Raises:
            psycopg.OperationalError: if the server does not answer in time.

        """
        return super().wait(self._limited(gen), *args, **kwargs)

    def _limited(self, exchange: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Pass on what `exchange` waits for until the time is up; the driver looks in regularly."""
        deadline = time.monotonic() + REPLY_SECONDS
        try:
            waits_for = next(exchange)
            while True:
                ready = yield waits_for
                if not ready and time.monotonic() > deadline:
                    self.close()
                    raise OperationalError(f"the server did not answer for {REPLY_SECONDS:.0f} s")
                waits_for = exchange.send(ready)
        except StopIteration as end:
            return end.value


def make_postgres_engine(url: sa.URL, options: Mapping[str, Any]) -> sa.Engine:
    """Return an engine for a `postgresql+psycopg` URL with these options; does not connect.

    What the URL's query says about time-outs and options wins over the defaults here.
    """
    defaults: Mapping[str, object] = {
        "connect_timeout": CONNECT_SECONDS,
        # Times come back in the session's zone; UTC keeps every legal one within Python's years.
        "options": f"-c timezone=utc -c statement_timeout={_STATEMENT_SECONDS}s",
    } | _KEEPALIVE
    arguments = {name: value for name, value in defaults.items() if name not in url.query}
    engine = sa.create_engine(url, **options, connect_args=arguments)
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", _ask_unless_fresh)
    return engine


def _connect(_dialect: Any, _record: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return PatientConnection.connect(*args, **kwargs)


def _note_use(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _ask_unless_fresh(
    connection: PatientConnection, record: ConnectionPoolEntry, _proxy: Any
) -> None:
    """Have a pooled connection replaced, and all others, if the server has left it.

    `pool_pre_ping` would ask each time, which costs as much as a query.
    """
    now = time.monotonic()
    if now - record.info.get("used_at", now) < _FRESH_SECONDS:
        return
    try:
        connection.autocommit = True
        connection.execute(b"")
        connection.autocommit = False
    except psycopg.Error as error:
        raise InvalidatePoolError from error
