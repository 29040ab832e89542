"""Ctrl-C and SIGTERM as an event: the first asks to end in good order, the second ends at once.

`serving.run_worker` and other programs that consume wait for it through `consume(stop=…)`.
"""

import asyncio
import signal
from collections.abc import Generator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals() -> Generator[asyncio.Event]:
    """Set the event at the first SIGINT or SIGTERM; the second cancels the task that is in the context.

    That task leaves the context quietly then. Enter it in the main thread's event loop.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    stop = asyncio.Event()
    num_cuts = 0

    def on_signal() -> None:
        nonlocal num_cuts
        if stop.is_set():
            num_cuts += 1
            task.cancel()
        stop.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    except asyncio.CancelledError:
        others = [task.uncancel() for _ in range(num_cuts)]
        if not others or others[-1]:
            raise  # somebody else cancelled it too
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
