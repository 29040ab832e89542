"""The throwaway PostgreSQL answers, wants its password, keeps its data, and never outlives its tests."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from esper.testkit import postgres
from esper.testkit.postgres import PostgresServer, start_postgres

_HOLD_A_SERVER = """
import sys
from esper.testkit.postgres import start_postgres
with start_postgres() as server:
    print(server._process.pid, server._folder, flush=True)
    sys.stdin.read()
"""


def _plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def test_server_answers_and_every_database_is_fresh(postgres_server: PostgresServer) -> None:
    first, second = postgres_server.create_database(), postgres_server.create_database()
    assert first != second
    with psycopg.connect(_plain(first)) as connection:
        connection.execute("CREATE TABLE things (id int)")
    with psycopg.connect(_plain(second)) as connection:
        found = connection.execute("SELECT to_regclass('things')").fetchone()
    assert found == (None,)
    postgres_server.drop_database(first)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(_plain(first))


def test_wrong_password_is_refused(postgres_server: PostgresServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(
            host=postgres_server.host,
            port=postgres_server.port,
            user=postgres_server.user,
            password="wrong",
            dbname="postgres",
        )


def test_data_and_port_survive_an_outage() -> None:
    with start_postgres() as server:
        url, port = _plain(server.create_database()), server.port
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE things (id int)")
        server.stop()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
        server.start()
        assert server.port == port
        with psycopg.connect(url) as connection:
            connection.execute("SELECT * FROM things")


def test_programs_that_only_their_owner_may_reach_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = postgres.postgres_binaries()
    wheel, private = binaries.parents[1], tmp_path / "private"
    private.mkdir(mode=0o700)
    installed = private / wheel.name / binaries.parent.name
    shutil.copytree(binaries.parent, installed, symlinks=True)
    libraries = f"{wheel.name}.libs"
    if wheel.with_name(libraries).is_dir():
        shutil.copytree(wheel.with_name(libraries), private / libraries)
    monkeypatch.setattr(postgres, "postgres_binaries", lambda: installed / binaries.name)
    with start_postgres() as server:
        assert server.create_database()


if sys.platform == "linux":  # elsewhere the kernel does not end children with their parent

    def test_server_ends_when_its_tests_are_killed() -> None:
        holder = subprocess.Popen(
            [sys.executable, "-c", _HOLD_A_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with holder:
            assert holder.stdout is not None
            pid, folder = holder.stdout.readline().split()
            holder.send_signal(signal.SIGKILL)
        try:
            _wait_until_gone(int(pid))
        finally:
            shutil.rmtree(folder)


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while _is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # An orphan that nobody reaped yet has ended all the same.
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (ProcessLookupError, FileNotFoundError):
        return False
