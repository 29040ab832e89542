"""The processes of a scenario: publishers and consumers, each writing down what it sees.

They are forked from a server that has imported the bus already, so that one starts in milliseconds; a
`Crew` starts them, kills them, and replaces those that died.
"""

import asyncio
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from itertools import batched, count
from pathlib import Path
from typing import Any

from bus import (
    GROUP,
    RECLAIM_SECONDS,
    TOPIC,
    bus_url,
    number_of,
    open_patiently,
    opened,
    packet,
    pause,
    raw,
)
from hands import pending, unacknowledged_by
from ledger import PREFETCH, Book, Books, Ledger, poison

from esper.contracts import BackendUnavailableError, Bus, Delivery, setup_logging
from esper.testkit.redis import RedisServer

_BURST = 50
"""Messages that a publisher sends at a time."""
_LOOKS_FOR_A_BATCH = 100
"""Before a consumer is killed although nothing is in its hands."""
_PR_SET_PDEATHSIG = 1
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["__main__", "esper.oona", "esper.contracts"])


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How the processes of a crew work."""

    num_exits: int = 0
    """Messages that end the process of their handler."""
    handling_seconds: float = 0.0
    """For each message."""
    resting_seconds: float = 0.0
    """Of publishers, after each burst."""


STEADY = Habits(handling_seconds=0.001, resting_seconds=0.02)
"""Three consumers are just kept busy by one publisher: a fault meets both at work, in mid-batch."""


async def publish_all(
    bus: Bus, book: Book, numbers: Sequence[int], *, resting_seconds: float = 0.0
) -> None:
    """Publish the numbers in bursts, one after the other and together by turns; write both ends down."""
    for burst, one_by_one in zip(batched(numbers, _BURST), count(), strict=False):
        book.note("tried", burst)
        if one_by_one % 2:
            sends = [bus.publish(packet(n), sender_id="faults", trace_id="run") for n in burst]
        else:
            payloads = [packet(number) for number in burst]
            sends = [bus.publish_many(payloads, sender_id="faults", trace_id="run")]
        results = await asyncio.gather(*sends, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(
                result, BackendUnavailableError
            ):
                raise result
        if one_by_one % 2:
            answers = dict(zip(burst, results, strict=True))
        elif isinstance(results[0], BaseException):
            answers = {}
        else:
            answers = dict(zip(burst, results[0], strict=True))
        ids = {n: str(one) for n, one in answers.items() if not isinstance(one, BaseException)}
        book.note("acknowledged", ids.keys(), ids.values())
        if resting_seconds:
            await asyncio.sleep(resting_seconds)


def publish(
    url: str, folder: Path, name: str, first: int, last: int, resting_seconds: float
) -> None:
    """Be a publisher of the numbers from `first` to before `last`."""
    _settle_down()

    async def run() -> None:
        bus = await open_patiently(url)
        book, numbers = Book(folder, name), range(first, last)
        await publish_all(bus, book, numbers, resting_seconds=resting_seconds)
        await bus.close()

    asyncio.run(run())


def consume(url: str, folder: Path, name: str, port: int, habits: Habits) -> None:
    """Be a consumer until killed; poison is refused, given back for ever, or ends the process."""
    _settle_down()

    async def run() -> None:
        book = Book(folder, name)
        bus = await open_patiently(url)
        _note_memory(book)
        reader = bus.subscribe([TOPIC], group=GROUP, consumer=name, prefetch=PREFETCH)
        async with aclosing(reader):
            handled = 0
            async for delivery in reader:
                number = number_of(delivery)
                if kind := poison(number, habits.num_exits):
                    if kind == "exits":
                        note_killed(port, book)
                        os._exit(9)
                    with suppress(BackendUnavailableError):  # then it comes again
                        await _set_aside(kind, delivery)
                    continue
                book.note("handled", [number])
                if habits.handling_seconds:
                    await asyncio.sleep(habits.handling_seconds)
                with suppress(BackendUnavailableError):
                    await delivery.ack()
                handled += 1
                if handled % 10_000 == 0:
                    _note_memory(book)

    asyncio.run(run())


def note_killed(port: int, consumers: Book) -> None:
    """Write down what a consumer repeats that is killed, or about to be."""
    unknown = unacknowledged_by(port, consumers.path)
    consumers.note("in-hand", unknown)
    consumers.note("killed-with", [len(unknown)])


async def _set_aside(kind: str, delivery: Delivery) -> None:
    if kind == "gives back":
        await delivery.nack()
    else:
        await delivery.dead_letter("poison")


def _note_memory(book: Book) -> None:
    book.note("memory", [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])


def _settle_down() -> None:
    """End with whoever started us, and keep quiet: breaking things is noisy."""
    setup_logging("faults", level="CRITICAL")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Crew:
    """The processes of one scenario; consumers that end are replaced whenever the crew is looked after.

    Args:
        scenario: its name.
        folder: where the books are kept.
        url: of the bus.
        port: of the server itself.
        habits: how they work.

    """

    def __init__(self, scenario: str, folder: Path, url: str, port: int, *, habits: Habits) -> None:
        self.folder = folder
        self.num_deaths = 0
        """Of consumers, killed or by their own hand."""
        self._books = Books(scenario, folder)
        self._faults = Book(folder, "faults")
        self._url = url
        self._port = port
        self._habits = habits
        self._consumers: list[Any] = []
        self._publishers: list[Any] = []
        self._names = count()

    def publish(self, first: int, last: int) -> None:
        """Start a publisher of these numbers."""
        name = f"publisher-{next(self._names)}"
        self._publishers.append(
            self._start(publish, name, first, last, self._habits.resting_seconds)
        )

    def consume(self, num_consumers: int) -> None:
        """Start consumers."""
        for _ in range(num_consumers):
            name = f"consumer-{next(self._names)}"
            self._consumers.append(self._start(consume, name, self._port, self._habits))

    def kill_consumer(self, index: int) -> None:
        """`kill -9` one of the consumers in the middle of a batch, if there is one soon; replace it."""
        consumer = self._consumers[index % len(self._consumers)]
        for _ in range(_LOOKS_FOR_A_BATCH):
            if pending(self._port, consumer.name):
                break
        self._kill([consumer])
        self.look_after()

    def dismiss(self) -> None:
        """`kill -9` all consumers; nobody takes their place."""
        self._kill(self._consumers)
        self._consumers.clear()

    @contextmanager
    def standing_still(self, num_consumers: int) -> Generator[None]:
        """Let the first consumers do nothing for the length of the context, as if their machine slept."""
        still = self._consumers[:num_consumers]
        for consumer in still:
            os.kill(consumer.pid, signal.SIGSTOP)
        yield
        for consumer in still:
            os.kill(consumer.pid, signal.SIGCONT)

    def note_in_hand(self, messages: Iterable[int]) -> None:
        """Write down what a fault finds in somebody's hands, each once."""
        self._faults.note("in-hand", messages)

    def look_after(self) -> None:
        """Replace consumers that ended. Raises `RuntimeError` if a publisher failed."""
        for publisher in self._publishers:
            if publisher.exitcode not in (None, 0):
                raise RuntimeError(f"a publisher failed with exit code {publisher.exitcode}")
        dead = [consumer for consumer in self._consumers if consumer.exitcode is not None]
        for consumer in dead:
            if consumer.exitcode not in (9, -signal.SIGKILL):
                raise RuntimeError(f"a consumer failed with exit code {consumer.exitcode}")
            self._consumers.remove(consumer)
        self.num_deaths += len(dead)
        self.consume(len(dead))

    def is_publishing(self) -> bool:
        """Tell whether a publisher is still at work."""
        return any(publisher.exitcode is None for publisher in self._publishers)

    def pause(self) -> None:
        """Let the others work; note if everything, or the server, stood still meanwhile."""
        started = time.monotonic()
        pause()
        with raw(self._port) as client:
            client.ping()
        if time.monotonic() - started > RECLAIM_SECONDS / 2:
            self._faults.note("stall", [1])

    def ledger(self) -> Ledger:
        """Add up what is written down so far."""
        return self._books.read()

    def end(self) -> None:
        """Kill all."""
        for process in (*self._consumers, *self._publishers):
            process.kill()
            process.join()

    def _kill(self, consumers: Sequence[Any]) -> None:
        for consumer in consumers:
            consumer.kill()
            consumer.join()
            note_killed(self._port, Book(self.folder, consumer.name))

    def _start(self, work: Any, name: str, *arguments: Any) -> Any:
        args = (self._url, self.folder, name, *arguments)
        process = _context.Process(target=work, name=name, args=args, daemon=True)
        process.start()
        return process


@contextmanager
def crew(
    scenario: str,
    folder: Path,
    server: RedisServer,
    *,
    url: str = "",
    habits: Habits = STEADY,
) -> Generator[Crew]:
    """Give a crew for the length of the context, and a group that misses nothing.

    Args:
        scenario: its name.
        folder: for the books.
        server: the bus.
        url: how the crew gets there, if not directly.
        habits: how it works.

    """
    books = folder / "books"
    books.mkdir(parents=True, exist_ok=True)
    url = url or bus_url(server.port)

    async def make_group() -> None:
        async with opened(url) as bus:
            await bus.create_group([TOPIC], group=GROUP)

    asyncio.run(make_group())
    people = Crew(scenario, books, url, server.port, habits=habits)
    try:
        yield people
    finally:
        people.end()
