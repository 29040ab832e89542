"""How a run is stopped: a signal becomes a request that the training loop honours between two steps."""

import signal
from enum import Enum, auto
from types import FrameType
from typing import Any, Self

from esper.tamiyo.entry import HANGUP, SIGNALS


class StopRequestedError(Exception):
    """The user asked to stop; raised between two steps, when everything is consistent."""


class StoppedEarlyError(Exception):
    """A run was stopped by the user, and everything was saved."""


class _Mode(Enum):
    INTERRUPTING = auto()
    """Nothing is worth saving yet: a signal interrupts at once."""
    NOTING = auto()
    """Training: the first signal asks to stop, a second one interrupts."""
    SAVING = auto()
    """What was trained is being written: no signal may cost it."""


class StopSignals:
    """Turns SIGINT, SIGTERM and SIGHUP into a request to stop between two steps; a context manager.

    A run begins where a signal interrupts, calls `defer` when it begins to train, and `hold` while it
    writes what it trained.
    """

    def __init__(self) -> None:
        self.requested = False
        self._mode = _Mode.INTERRUPTING
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take over the signals."""
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """From now on, note a signal instead of interrupting; a second one interrupts."""
        self._mode = _Mode.NOTING

    def hold(self) -> None:
        """From now on, note every signal and interrupt nothing: what follows takes seconds at most."""
        self._mode = _Mode.SAVING

    def honour(self) -> bool:
        """Tell whether to stop now; whoever is told so saves next, and signals are held."""
        if self.requested:
            self.hold()
        return self.requested

    def _note(self, number: int, _: FrameType | None) -> None:
        # A terminal that is closed sends its signal itself, and the shell in it does so once more.
        again = self.requested and number != HANGUP
        self.requested = True
        if self._mode is _Mode.INTERRUPTING or (again and self._mode is _Mode.NOTING):
            raise KeyboardInterrupt
