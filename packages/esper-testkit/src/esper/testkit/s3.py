"""Throwaway S3 servers on free localhost ports: one that checks signatures, one with conditional writes.

`s3_server` hands the first (nanio) to a whole test session and `conditional_s3_server` the second
(localbucket); `start_s3` makes more.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from esper.testkit._processes import end, free_port, launch, wait_until

_START_SECONDS = 30.0
_START_ATTEMPTS = 3
"""Between choosing a free port and binding it, another process may take it."""


class S3Server:
    """One server process; objects survive `stop` and `start`."""

    def __init__(self, folder: Path, program: Literal["nanio", "localbucket"] = "nanio") -> None:
        self._program = program
        self.host = "127.0.0.1"
        self.port = 0
        """0 until the first start; kept from then on."""
        self.access_key = "esper-tests"
        self.secret_key = "only-for-throwaway-servers"
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """The server's URL, without credentials."""
        return f"http://{self.host}:{self.port}"

    def url(self, bucket: str) -> str:
        """Return `bucket`'s URL as Esper's artifact store takes it, without credentials."""
        return f"s3://{bucket}?endpoint={self.endpoint}"

    def start(self) -> None:
        """Start the server and wait until it answers; does nothing if it runs.

        Call it from a thread that outlives the server.

        Raises:
            RuntimeError: if it does not come up, with the end of its log.

        """
        if self._process is not None:
            return
        attempts = 1 if self.port else _START_ATTEMPTS
        for attempt in range(1, attempts + 1):
            port = self.port or free_port()
            process = self._launch(port)
            if wait_until(
                lambda p=port: _answers(self.host, p), process, timeout_seconds=_START_SECONDS
            ):
                self.port, self._process = port, process
                return
            end(process, signal.SIGKILL)
            if attempt == attempts:
                log = (self.folder / "log").read_text(errors="replace")
                raise RuntimeError(f"{self._program} did not start:\n{log[-2000:]}")

    def stop(self) -> None:
        """End the server as an outage does; does nothing if it is not running."""
        process, self._process = self._process, None
        if process is not None:
            end(process, signal.SIGKILL)

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        data, address = str(self.folder / "data"), ("--host", self.host, "--port", str(port))
        if self._program == "nanio":
            command = ["nanio", "serve", "--no-access-log", *address, "--data-dir", data]
        else:
            (self.folder / "data").mkdir(exist_ok=True)
            command = ["localbucket", *address, data]
        credentials = {"NANIO_ACCESS_KEY": self.access_key, "NANIO_SECRET_KEY": self.secret_key}
        with (self.folder / "log").open("ab") as log:
            return launch(
                [sys.executable, "-m", *command],
                log=log.fileno(),
                environment=os.environ | credentials,
            )


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.")
    except OSError:
        return False


@contextmanager
def start_s3(
    folder: Path, program: Literal["nanio", "localbucket"] = "nanio"
) -> Generator[S3Server]:
    """Run a server of one's own, with its files in `folder`, for the length of the context.

    Raises:
        RuntimeError: if it does not start.

    """
    server = S3Server(folder, program)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server]:
    """Give the whole test session one S3 server; make buckets of your own in it."""
    with start_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def conditional_s3_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server]:
    """Give the whole test session one S3 server that knows `If-None-Match` and takes any credentials."""
    with start_s3(tmp_path_factory.mktemp("conditional-s3"), "localbucket") as server:
        yield server
