"""How a run is stopped: a signal becomes a request that the training loop honours between two steps."""

import signal
from types import FrameType
from typing import Any, Self


class StopRequestedError(Exception):
    """The user asked to stop; raised between two steps, when everything is consistent."""


class StopSignals:
    """Turns SIGINT and SIGTERM into a request to stop between two steps; a context manager.

    Until `defer` is called there is nothing to save, and a signal interrupts at once; so does a second
    one afterwards.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferring = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take over the two signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """From now on, note a signal instead of interrupting."""
        self._deferring = True

    def _note(self, _: int, __: FrameType | None) -> None:
        if self.requested or not self._deferring:
            raise KeyboardInterrupt
        self.requested = True
