"""Scenarios within one process: cancelled tasks, many publishes at once, answers that get lost.

Nothing is ever overdue here: what a cancelled reader held must be given back, or it is missed.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

from bus import GROUP, TOPIC, bus_url, number_of, opened, packet
from ledger import PREFETCH, Book, Books, Ledger, number_in
from schedule import Wait
from stage import Size, close_the_book

from esper.contracts import Bus, Delivery
from esper.testkit.proxy import start_proxy
from esper.testkit.redis import start_redis

_DRAIN_SECONDS = 60.0
_TURNS = (4, 10, 40, 160)
"""Of the event loop, before a task is cancelled at the latest; a round trip takes some."""
_BURST = 50
_HOUR = 3600.0


class _Desk:
    """One client that publishes and handles, and writes both down."""

    def __init__(self, bus: Bus, scenario: str, folder: Path) -> None:
        self.bus = bus
        self.book = Book(folder, "desk")
        self.books = Books(scenario, folder)
        self.num_looks = 0
        self._in_hand: list[Delivery] = []
        self._seen: list[tuple[str, int]] = []
        """Positions on the stream, and the messages that are there."""
        self._reader: AsyncGenerator[Delivery] | None = None

    async def publish(self, number: int) -> None:
        self.book.note("tried", [number])
        event_id = await self.bus.publish(packet(number), sender_id="faults", trace_id="run")
        self.book.note("acknowledged", [number], [event_id])

    async def take(self, prefetch: int) -> None:
        if self._reader is None:
            self._reader = self.bus.subscribe(
                [TOPIC], group=GROUP, consumer="desk", prefetch=prefetch
            )
        try:
            delivery = await anext(self._reader)
        except BaseException:
            self._leave()
            raise
        self._note_handled(delivery)
        self._in_hand.append(delivery)

    async def acknowledge(self) -> None:
        if self._in_hand:
            delivery = self._in_hand.pop(0)
            try:
                await delivery.ack()
            except asyncio.CancelledError:
                self.book.note("in-hand", [number_of(delivery)])
                raise

    async def look(self, choose: random.Random) -> None:
        """Ask for something of which only the right answer will do."""
        if not self._seen or choose.random() < 0.5:
            assert await self.bus.dead_letters() == [], "the answer belongs to another request"
        else:
            position, number = choose.choice(self._seen)
            async with aclosing(self.bus.read([TOPIC], since=position, until=position)) as records:
                found = [number_in(record.data) async for record in records]
            assert found == [number], f"asked for {number}, the answer is {found}"
        self.num_looks += 1

    async def drain(self) -> Ledger:
        """Handle what is left."""
        if self._reader is not None:
            reader = self._reader
            self._leave()
            await reader.aclose()
        reader = self.bus.subscribe([TOPIC], group=GROUP, consumer="last", prefetch=PREFETCH)
        missing = self.books.read().lost
        async with aclosing(reader), asyncio.timeout(_DRAIN_SECONDS):
            while missing:
                delivery = await anext(reader)
                self._note_handled(delivery)
                missing.discard(number_of(delivery))
                await delivery.ack()
        return self.books.read()

    def _note_handled(self, delivery: Delivery) -> None:
        number = number_of(delivery)
        self.book.note("handled", [number])
        self._seen.append((delivery.position, number))

    def _leave(self) -> None:
        """The reader ends, as a generator does that is cancelled: what it held comes again, once."""
        self._reader = None
        self.book.note("in-hand", map(number_of, self._in_hand))
        self._in_hand.clear()


def cancellations(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Cancel publishing, acknowledging, asking and iterating wherever they happen to be."""
    choose = random.Random(0)

    async def play(url: str) -> Ledger:
        async with opened(url) as bus:
            await bus.create_group([TOPIC], group=GROUP)
            desk = _Desk(bus, "cancellations", folder)
            number = num_cancelled = 0
            while num_cancelled < size.num_cancellations:
                works: list[Coroutine[Any, Any, None]] = [
                    desk.publish(number),
                    desk.take(choose.choice([1, 10])),
                    desk.acknowledge(),
                    desk.look(choose),
                ]
                num_cancelled += await _cancel(works, choose)
                number += 1
                wait.say(f"cancellations: {num_cancelled:,} of {size.num_cancellations:,}")
            ledger = await desk.drain()
            ledger.notes.append(f"{num_cancelled:,} cancelled, {desk.num_looks:,} answers compared")
            return ledger

    return _played(folder, play)


async def _cancel(works: list[Coroutine[Any, Any, None]], choose: random.Random) -> int:
    """Start all, cancel each somewhere; count those that were not done. Raises what they raise."""
    tasks = [asyncio.create_task(work) for work in works]
    num_turns = choose.choice(_TURNS)
    moments = [choose.randrange(1, num_turns) for _ in tasks]
    for turn in range(num_turns):
        for task, moment in zip(tasks, moments, strict=True):
            if moment == turn:
                task.cancel()
        await asyncio.sleep(0)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
    return sum(task.cancelled() for task in tasks)


def concurrent_publishes(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Publish thousands of messages at the same time, each awaited by a task of its own."""

    async def play(url: str) -> Ledger:
        async with opened(url) as bus:
            await bus.create_group([TOPIC], group=GROUP)
            desk = _Desk(bus, "concurrent publishes", folder)
            await asyncio.gather(*map(desk.publish, range(size.num_concurrent)))
            wait.say("concurrent publishes: all are acknowledged")
            return await desk.drain()

    return _played(folder, play)


def lost_answers(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Cut connections after a batch arrived and before the answer did: it must land once."""
    with start_redis(folder) as server, start_proxy(server.host, server.port) as proxy:

        async def play(url: str) -> Ledger:
            direct_url = _unhurried(server.port)
            async with opened(url) as bus, opened(direct_url) as direct:
                await bus.create_group([TOPIC], group=GROUP)
                desk = _Desk(bus, "lost answers", folder)
                first = 0
                while proxy.num_lost_answers < size.num_lost_answers:
                    proxy.lose_answers(1, to=b":producer:")
                    burst = range(first, first + _BURST)
                    await asyncio.gather(*map(desk.publish, burst))
                    first += _BURST
                    wait.say(f"lost answers: {proxy.num_lost_answers:,}")
                proxy.lose_answers(0)
                desk.bus = direct
                return await desk.drain()

        ledger = close_the_book(asyncio.run(play(_unhurried(proxy.port))), server)
        ledger.poisonous = ()
        ledger.notes.append(f"{proxy.num_lost_answers} answers lost")
    return ledger


def _played(folder: Path, play: Callable[[str], Coroutine[Any, Any, Ledger]]) -> Ledger:
    with start_redis(folder) as server:
        ledger = close_the_book(asyncio.run(play(_unhurried(server.port))), server)
    ledger.poisonous = ()
    return ledger


def _unhurried(port: int) -> str:
    """Return the URL of a bus on which no message is overdue or given up."""
    return f"{bus_url(port, reclaim_seconds=_HOUR)}&max_deliveries=1000000"
