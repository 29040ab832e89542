"""Standard output and error of programs whose reader may go away, as behind `| head`."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO


class OutputLostError(OSError):
    """Standard output cannot be written: its reader has gone, or its disk is full."""


def give_up(error: OSError) -> None:
    """Raise `error` as an `OutputLostError`, which nothing else raises."""
    raise OutputLostError(error.errno, error.strerror) from error


def no_matter(_: OSError) -> None:
    """Do nothing."""


class Lasting:
    """A text stream that drops what is written from the first time on that it cannot be.

    Then it calls `on_loss` with the reason, once. A reader that has gone, a terminal that was closed or a
    full disk behind `> log` must not cost a training. All else is the stream's own.
    """

    def __init__(self, stream: TextIO, on_loss: Callable[[OSError], None]) -> None:
        # In place of another one: only the innermost is told of a loss.
        self._stream: TextIO = stream._stream if isinstance(stream, Lasting) else stream
        self._on_loss = on_loss
        self.is_lost = False
        """Whether what is written is dropped."""

    def write(self, text: str) -> int:
        """Write `text`, or drop it."""
        if self.is_lost:
            return len(text)
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Flush what was written, or drop it."""
        if self.is_lost:
            return
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def __getattr__(self, name: str) -> object:
        """Return what else there is of the stream."""
        return getattr(self.__dict__["_stream"], name)

    def _lose(self, error: OSError) -> None:
        self.is_lost = True
        with suppress(OSError):  # a stream without a file
            _lead_nowhere(self._stream)
        self._on_loss(error)


def _lead_nowhere(stream: TextIO) -> None:
    """Let the file of `stream` drop what it still holds: Python flushes it at its end."""
    number = stream.fileno()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
