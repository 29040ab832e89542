"""Where the commands `train` and `tamiyo` begin: ready for Ctrl-C before anything slow is imported.

torch alone takes seconds. Until the run itself takes the signals over (`stopping`), and when it is done
with them, there is nothing to save, so a signal ends the process with one line, wherever it is.
"""

import os
import signal

EXIT_INTERRUPTED = 130
INTERRUPTED = "train: interrupted; unless a report was named above, nothing was saved"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Run `train`."""
    _be_ready()
    from esper.tamiyo.cli import main as run_command_line

    run_command_line()


def tamiyo() -> None:
    """Run `tamiyo`."""
    _be_ready()
    from esper.tamiyo.commands import main as run_command_line

    run_command_line()


def _be_ready() -> None:
    for number in SIGNALS:
        signal.signal(number, _leave)


def _leave(_: int, __: object) -> None:
    # Not an exception: half-imported modules catch it, or turn it into errors of their own.
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(EXIT_INTERRUPTED)
