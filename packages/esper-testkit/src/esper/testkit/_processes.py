"""What the throwaway servers share: free ports, waiting with a deadline, orderly ends.

`postgres` and `s3` start their servers through it.
"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

_STOP_SECONDS = 10.0

NOBODY = 65534
"""The user and group that own nothing on Linux; PostgreSQL refuses to run as root."""

_LAUNCH = """
import ctypes, os, sys
end_with, user, *command = sys.argv[1:]
if int(user):
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
if sys.platform == "linux":  # after the change of user, which clears it
    ctypes.CDLL(None).prctl(1, int(end_with))  # 1 is PR_SET_PDEATHSIG
os.execv(command[0], command)
"""
"""Changes the user if asked to, and has the kernel signal the server when the thread that started
it ends: no server outlives tests that were killed (Linux)."""


def free_port() -> int:
    """Return a localhost port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(
    command: Sequence[str],
    *,
    log: int,
    end_with: signal.Signals = signal.SIGKILL,
    user: int = 0,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` with its output in the file descriptor `log`.

    Args:
        command: an absolute path and its arguments.
        log: an open file descriptor.
        end_with: what the process gets when the thread that called this ends.
        user: run as this user and group (we must be root); 0 for the current one.
        environment: the process's whole environment; None for ours.

    """
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(int(end_with)), str(user)]
    return subprocess.Popen(
        [*launcher, *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=None if environment is None else dict(environment),
        cwd="/",
    )


def wait_until(
    is_up: Callable[[], bool], process: subprocess.Popen[bytes], *, timeout_seconds: float
) -> bool:
    """Wait until `is_up`; tell whether that happened in time while the process lived."""
    deadline = time.monotonic() + timeout_seconds
    while process.poll() is None and time.monotonic() < deadline:
        if is_up():
            return process.poll() is None
        time.sleep(0.01)
    return False


def children(parent: int) -> list[int]:
    """Return the ids of the processes that `parent` started and that still live (needs `ps`)."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    pairs = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, owner in pairs if int(owner) == parent]


def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> None:
    """Ask `process` to end, and kill it when it does not."""
    process.send_signal(how)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
