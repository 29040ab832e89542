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
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from itertools import batched, count
from pathlib import Path
from typing import Any, cast

from ledger import Book, Books, Ledger, poison

from esper.contracts import (
    BackendUnavailableError,
    Bus,
    Delivery,
    SystemStatePacket,
    TopicNames,
    setup_logging,
)
from esper.oona import open_redis_bus

GROUP = "readers"
TOPIC = TopicNames.SYSTEM_EVENTS_EPOCH
PREFETCH = 100
_BURST = 50
"""Messages that a publisher sends at a time."""
_PR_SET_PDEATHSIG = 1
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["__main__", "esper.oona", "esper.contracts"])


def packet(number: int) -> SystemStatePacket:
    """Return a payload that carries the number."""
    return SystemStatePacket(
        run_id="faults", epoch=1, step=number, val_loss=0.5, learning_rate=0.1, num_parameters=7
    )


def number_of(delivery: Delivery) -> int:
    """Return the number that a message carries."""
    return cast("SystemStatePacket", delivery.payload()).step


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[Bus]:
    """Open a client for the length of the context."""
    bus = open_redis_bus(url)
    await bus.open()
    try:
        yield bus
    finally:
        await bus.close()


async def open_patiently(url: str) -> Bus:
    """Return an open client, however long the server is away."""
    bus = open_redis_bus(url)
    while True:
        try:
            await bus.open()
        except BackendUnavailableError:
            await asyncio.sleep(0.05)
        else:
            return bus


async def publish_all(bus: Bus, book: Book, numbers: Sequence[int]) -> None:
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
            pairs = zip(burst, results, strict=True)
            arrived = [n for n, result in pairs if not isinstance(result, BaseException)]
        else:
            arrived = [] if isinstance(results[0], BaseException) else list(burst)
        book.note("acknowledged", arrived)


def publish(url: str, folder: Path, name: str, first: int, last: int) -> None:
    """Be a publisher of the numbers from `first` to before `last`."""
    _settle_down()

    async def run() -> None:
        bus = await open_patiently(url)
        await publish_all(bus, Book(folder, name), range(first, last))
        await bus.close()

    asyncio.run(run())


def consume(url: str, folder: Path, name: str, num_exits: int) -> None:
    """Be a consumer until killed; poison is refused, given back for ever, or ends the process."""
    _settle_down()

    async def run() -> None:
        book = Book(folder, name)
        bus = await open_patiently(url)
        reader = bus.subscribe([TOPIC], group=GROUP, consumer=name, prefetch=PREFETCH)
        async with aclosing(reader):
            handled = 0
            async for delivery in reader:
                number = number_of(delivery)
                if kind := poison(number, num_exits):
                    await _suffer(kind, delivery)
                    continue
                book.note("handled", [number])
                await delivery.ack()
                handled += 1
                if handled % 10_000 == 0:
                    book.note("memory", [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])

    asyncio.run(run())


async def _suffer(kind: str, delivery: Delivery) -> None:
    match kind:
        case "exits":
            os._exit(9)
        case "gives back":
            await delivery.nack()
        case _:
            await delivery.dead_letter("poison")


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
        num_exits: how many messages end the process of their handler.

    """

    def __init__(self, scenario: str, folder: Path, url: str, *, num_exits: int = 0) -> None:
        self.folder = folder
        self.num_deaths = 0
        """Of consumers, killed or by their own hand."""
        self._books = Books(scenario, folder)
        self._url = url
        self._num_exits = num_exits
        self._consumers: list[Any] = []
        self._publishers: list[Any] = []
        self._names = count()

    def publish(self, first: int, last: int) -> None:
        """Start a publisher of these numbers."""
        name = f"publisher-{next(self._names)}"
        self._publishers.append(self._start(publish, name, first, last))

    def consume(self, num_consumers: int) -> None:
        """Start consumers."""
        for _ in range(num_consumers):
            name = f"consumer-{next(self._names)}"
            started = self._start(consume, name, self._num_exits)
            self._consumers.append(started)

    def kill_consumer(self, index: int) -> None:
        """`kill -9` one of the consumers, whatever it is doing; another takes its place."""
        self._consumers[index % len(self._consumers)].kill()
        self._consumers[index % len(self._consumers)].join()
        self.look_after()

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

    def ledger(self) -> Ledger:
        """Add up what is written down so far."""
        return self._books.read()

    def end(self) -> None:
        """Kill all."""
        for process in (*self._consumers, *self._publishers):
            process.kill()
            process.join()

    def _start(self, work: Any, name: str, *arguments: Any) -> Any:
        args = (self._url, self.folder, name, *arguments)
        process = _context.Process(target=work, args=args, daemon=True)
        process.start()
        return process


@contextmanager
def crew(scenario: str, folder: Path, url: str, *, num_exits: int = 0) -> Generator[Crew]:
    """Give a crew for the length of the context, and a group that misses nothing."""
    books = folder / "books"
    books.mkdir(parents=True, exist_ok=True)

    async def make_group() -> None:
        async with opened(url) as bus:
            await bus.create_group([TOPIC], group=GROUP)

    asyncio.run(make_group())
    people = Crew(scenario, books, url, num_exits=num_exits)
    try:
        yield people
    finally:
        people.end()


def pause() -> None:
    """Let the others work before looking again."""
    time.sleep(0.05)
