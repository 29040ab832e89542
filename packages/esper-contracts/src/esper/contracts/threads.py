"""Work that may hang with a server: done in threads that Python does not wait for when it ends.

`serving` runs workers' handlers in them, and the run's runtime asks the library through `within`. An
executor of the standard library will not do: Python joins its threads at exit, so one driver that
waits for a frozen server would keep the whole process.
"""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread


def in_thread[T](work: Callable[[], T], *, name: str) -> Future[T]:
    """Start `work` in a daemon thread of its own and return its future, which cannot be cancelled.

    What is no `Exception`, such as the `SystemExit` of a plugin, arrives as a `RuntimeError`: in an
    event loop it would end the loop's thread, and whoever waits would wait for ever.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            future.set_exception(error if isinstance(error, Exception) else _tamed(error))
        else:
            future.set_result(result)

    try:
        Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:
        run()  # Python is ending and starts no threads any more; what is left to do is done here
    return future


def _tamed(error: BaseException) -> RuntimeError:
    tamed = RuntimeError(f"it raised {type(error).__name__}({error})")
    tamed.__cause__ = error
    return tamed


def within[T](timeout_seconds: float, work: Callable[[], T], *, name: str) -> T:
    """Return what `work` returns, or leave it to itself when the time is up.

    Raises:
        TimeoutError: if it does not return in time; its thread goes on, and nobody waits for it.

    """
    return in_thread(work, name=name).result(max(0.0, timeout_seconds))
