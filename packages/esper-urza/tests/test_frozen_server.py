"""A PostgreSQL server that keeps its connections and answers nothing: no call waits for ever."""

import time
from collections.abc import Generator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from esper.contracts import BackendUnavailableError
from esper.testkit.postgres import PostgresServer, start_postgres
from esper.urza import open_file_store, open_library
from esper.urza.engine import make_engine, parse_url, translated


@pytest.fixture(scope="module")
def server() -> Generator[PostgresServer]:
    """A server of this module's own: freezing it must not disturb others."""
    with start_postgres() as started:
        yield started


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.urza.postgres.REPLY_SECONDS", 0.5)
    monkeypatch.setattr("esper.urza.postgres.CONNECT_SECONDS", 2)


@pytest.mark.parametrize(
    ("fresh_seconds", "said"),
    [(60.0, "it is frozen, overloaded or cut off"), (0.0, "is not frozen")],
)
@pytest.mark.usefixtures("patience")
def test_a_frozen_server_is_told_and_the_library_works_again_after_it(
    server: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fresh_seconds: float,
    said: str,
) -> None:
    monkeypatch.setattr("esper.urza.postgres._FRESH_SECONDS", fresh_seconds)
    library = open_library(server.create_database(), open_file_store(f"file:{tmp_path}"))
    library.open()
    server.freeze()
    begun = time.monotonic()
    try:
        with pytest.raises(BackendUnavailableError, match=said):
            library.list_blueprints()
    finally:
        server.thaw()
    assert time.monotonic() - begun < 20
    assert library.list_blueprints() == []
    library.close()


@pytest.mark.usefixtures("patience")
def test_a_server_that_freezes_within_a_transaction_is_told(server: PostgresServer) -> None:
    url = parse_url(server.create_database())
    engine = make_engine(url)
    told = pytest.raises(BackendUnavailableError, match="did not answer for 0 s; it is frozen")
    try:
        with told, translated(url), engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
            server.freeze()
            connection.execute(sa.text("SELECT 2"))
    finally:
        server.thaw()
        engine.dispose()


def test_the_server_itself_ends_a_statement_that_takes_too_long(server: PostgresServer) -> None:
    engine = make_engine(parse_url(server.url()))
    with engine.connect() as connection:
        assert connection.execute(sa.text("SHOW statement_timeout")).scalar_one() == "25s"
        assert connection.execute(sa.text("SHOW timezone")).scalar_one() == "UTC"
    engine.dispose()


def test_what_the_url_says_about_options_wins(server: PostgresServer) -> None:
    url = f"{server.url()}?options=-c%20statement_timeout%3D7s"
    engine = make_engine(parse_url(url))
    with engine.connect() as connection:
        assert connection.execute(sa.text("SHOW statement_timeout")).scalar_one() == "7s"
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:{secret}@localhost:{port}/db",
        "postgresql:///db?host=localhost&port={port}&user=me&password={secret}",
        "postgresql:///db?host=localhost&port={port}&user=me&sslpassword={secret}",
    ],
)
@pytest.mark.parametrize("quoted", ["hunter2 of/us", "hunter2%20of%2Fus", "hunter2+of%2Fus"])
def test_no_form_of_a_password_is_told(url: str, quoted: str) -> None:
    secret = "hunter2%20of%2Fus"
    parsed = parse_url(url.format(secret=secret, port=1))
    said = OperationalError("", None, Exception(f"cannot use {quoted} here"))
    with pytest.raises(BackendUnavailableError) as told, translated(parsed):
        raise said
    assert "hunter2" not in str(told.value)
    assert "***" in str(told.value)
