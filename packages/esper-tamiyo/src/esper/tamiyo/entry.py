"""Where the commands `train` and `tamiyo` begin: ready for Ctrl-C before anything slow is imported.

torch alone takes seconds. Until the run itself takes the signals over (`stopping`), and when it is done
with them, there is nothing to save, so a signal ends the process with one line, wherever it is.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

EXIT_INTERRUPTED = 130
HANGUP = getattr(signal, "SIGHUP", None)
"""What a terminal sends that is closed; Windows has none."""
SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    # Not under nohup, which has it ignored.
    *([HANGUP] if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN else []),
)
"""What stops a program that goes on saving what it has."""
AT_WORST = {"train": "unless a report was named above, nothing was saved"}
OTHERWISE = "what there was before is as it was"
"""What an interruption leaves, where the run cannot say it."""


def main() -> None:
    """Run `train`."""
    _be_ready("train")
    from esper.tamiyo.cli import main as run_command_line

    run_command_line()


def tamiyo() -> None:
    """Run `tamiyo`."""
    _be_ready("tamiyo")
    from esper.tamiyo.commands import main as run_command_line

    run_command_line()


def what_is_left(program: str) -> str:
    """Return what a person must know of an interrupted command that says nothing itself."""
    return AT_WORST.get(program, OTHERWISE)


def _be_ready(program: str) -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started without, as by `>&-`
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for the life of the process

    def leave(_: int, __: object) -> None:
        # Not an exception: half-imported modules catch it, or turn it into errors of their own.
        with suppress(OSError):  # nobody may be left to read it
            os.write(2, f"{program}: interrupted; {what_is_left(program)}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    for number in SIGNALS:
        signal.signal(number, leave)
