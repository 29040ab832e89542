"""Processes that read a task's samples ahead, while the model learns from earlier ones.

There is one set for the whole run, whichever part is read: torch's `DataLoader`, whose samples are whole
batches here, each asked for by part, indices and seed. It keeps their order.
"""

import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, Self, override

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from esper.contracts import ConfigError, EsperError
from esper.tamiyo.tasks.samples import Batch, Samples

type Wanted = tuple[int, Sequence[int], int]
"""One batch: whose samples, which of them, and the seed."""

type Reading = Callable[[Iterable[Sequence[int]], int], Iterator[Batch]]
"""`(indices of each batch, seed) → batches`, in that order."""


FEEDER_SECONDS = 1.0
"""So long a thread that has nothing more to hand over may take to end."""


class ReaderDiedError(EsperError, RuntimeError):
    """A process that reads samples ended before its time."""


@dataclass(frozen=True)
class _Failure:
    """What a worker returns in place of a batch that cannot be read."""

    message: str
    traceback: str


class Readers:
    """`workers` processes that read datasets ahead; a context manager, behind which there are none left.

    They start with the first batch that is asked for; until then datasets can be added. With none, the same
    batches are read here, when they are needed.
    """

    def __init__(self, workers: int = 0, *, pin: bool = False) -> None:
        self._workers = workers
        self._pin = pin
        self._samples: list[Samples] = []
        self._order = _Order()
        self._loader: DataLoader[Any] | None = None

    @property
    def are_idle(self) -> bool:
        """Whether there is nothing to read: all data is in memory."""
        return not self._samples

    def add(self, samples: Samples) -> Reading:
        """Take on the samples of one part; return what reads them."""
        self._samples.append(samples)
        return partial(self._read, len(self._samples) - 1)

    def __enter__(self) -> Self:
        """Return it; the processes come when they are needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self.close()

    def close(self) -> None:
        """End the processes, whatever they are at."""
        loader, self._loader = self._loader, None
        iterator: Any = getattr(loader, "_iterator", None)
        if iterator is not None:
            # What it does when it is collected; but who knows which traceback still refers to it.
            iterator._shutdown_workers()
            for queue in iterator._index_queues:
                # torch lets its feeder be. Should that hold a semaphore last, while Python ends, it may be
                # removed and yet stay on the list of those to be removed, of which Python complains.
                if queue._thread is not None:
                    queue._thread.join(FEEDER_SECONDS)

    def _read(self, number: int, batches: Iterable[Sequence[int]], seed: int) -> Iterator[Batch]:
        if not self._workers:
            for indices in batches:
                yield self._samples[number].read(indices, seed)
            return
        self._order.wanted = ((number, indices, seed) for indices in batches)
        try:
            for batch in self._iterate():
                if isinstance(batch, _Failure):
                    raise ConfigError(batch.message) from RuntimeError(batch.traceback)
                yield batch
        except (RuntimeError, OSError, EOFError) as error:
            said = str(error) or type(error).__name__
            raise ReaderDiedError(
                f"a process that reads samples ahead died ({said}); it may have run out of memory, or of "
                "shared memory (/dev/shm): try fewer --workers, or 0, which shows an error where it happens"
            ) from error

    def _iterate(self) -> Iterator[Batch | _Failure]:
        """Begin with what is wanted now; what an earlier reading left is dropped."""
        if self._loader is not None:
            return iter(self._loader)
        with _starting():
            self._loader = DataLoader(
                _Batches(self._samples),
                batch_size=None,
                sampler=self._order,
                num_workers=self._workers,
                collate_fn=_as_it_is,
                pin_memory=self._pin,
                # A fork of a process with threads may hang, and ours has many.
                multiprocessing_context="spawn",
                persistent_workers=True,
                worker_init_fn=_ignore_interrupts,
                generator=torch.Generator(),  # the loader would draw from the global one
            )
            try:
                return iter(self._loader)
            except Exception as error:  # anything may happen while data of the user's is pickled
                raise ConfigError(
                    f"the data cannot be handed to --workers: {type(error).__name__}: {error}; define its "
                    "class in a module's top level and keep no open files in it, or leave --workers out"
                ) from error


class _Order(Sampler[Wanted]):
    """What is wanted next, each time that the loader begins anew."""

    def __init__(self) -> None:
        self.wanted: Iterator[Wanted] = iter(())

    @override
    def __iter__(self) -> Iterator[Wanted]:
        return self.wanted


class _Batches(Dataset[Batch | _Failure]):
    """Whole batches as a dataset: what a worker holds."""

    def __init__(self, samples: Sequence[Samples]) -> None:
        self._samples = samples

    @override
    def __getitem__(self, index: Wanted) -> Batch | _Failure:
        number, indices, seed = index
        try:
            return self._samples[number].read(indices, seed)
        except Exception as error:  # noqa: BLE001 - raised where the run is, see `_read`
            said = (
                str(error) if isinstance(error, EsperError) else f"{type(error).__name__}: {error}"
            )
            return _Failure(said, traceback.format_exc())


def _as_it_is(batch: Any) -> Any:
    return batch


def _ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _starting() -> Generator[None]:
    """Start processes that Ctrl-C does not reach, and leave no trace of that here."""
    # It takes the mask of signals away, unless it is there already.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    of_children = signal.getsignal(signal.SIGCHLD)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more workers than processors: the user said so
            yield
    finally:
        # The loader's handler would raise its error anywhere, also in the middle of a step.
        if threading.current_thread() is threading.main_thread() and of_children is not None:
            signal.signal(signal.SIGCHLD, of_children)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
