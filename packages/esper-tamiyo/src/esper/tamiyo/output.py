"""Standard output and error of a program that goes on when nobody reads them any more, as behind `| head`."""

import os
import sys
from collections.abc import Callable
from typing import TextIO


class OutputLostError(OSError):
    """Standard output cannot be written: its reader has gone, or its disk is full."""


def give_up(error: OSError) -> None:
    """Raise `error` as an `OutputLostError`, which nothing else raises: what `guarded` commands do."""
    raise OutputLostError(error.errno, error.strerror) from error


class Lasting:
    """A text stream that leads nowhere once it cannot be written to, and calls `on_loss` with the reason.

    A reader that has gone, a terminal that was closed or a full disk behind `> log` must not cost a
    training. All else is the stream's own.
    """

    def __init__(self, stream: TextIO, on_loss: Callable[[OSError], None]) -> None:
        self._stream = stream
        self._on_loss = on_loss

    def write(self, text: str) -> int:
        """Write `text`, or drop it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Flush what was written, or drop it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def __getattr__(self, name: str) -> object:
        """Return what else there is of the stream."""
        return getattr(self._stream, name)

    def _lose(self, error: OSError) -> None:
        lead_nowhere(self._stream)
        self._on_loss(error)


def lead_nowhere(stream: TextIO) -> None:
    """Let `stream` drop all that is written, also what it still holds: Python flushes it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def say_on_stderr(text: str) -> None:
    """Print one line on standard error, or drop it where nobody reads that either."""
    try:
        print(text, file=sys.stderr)
    except OSError:
        lead_nowhere(sys.stderr)
