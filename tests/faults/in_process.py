"""Scenarios within one process: cancelled tasks, many publishes at once, answers that get lost."""

import asyncio
import random
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ledger import Book, Books, Ledger
from schedule import Wait
from stage import Size, bus_url, close_the_book
from workers import GROUP, PREFETCH, TOPIC, number_of, opened, packet

from esper.contracts import Bus, Delivery
from esper.testkit.proxy import start_proxy
from esper.testkit.redis import start_redis

_DRAIN_SECONDS = 60.0
_MAX_TURNS = 40
"""Of the event loop, before a task is cancelled; a round trip takes some."""
_BURST = 50


class _Desk:
    """One client that publishes and handles, and writes both down."""

    def __init__(self, bus: Bus, scenario: str, folder: Path) -> None:
        self.bus = bus
        self.book = Book(folder, "desk")
        self.books = Books(scenario, folder)
        self.in_hand: list[Delivery] = []
        self._reader: AsyncGenerator[Delivery] | None = None

    async def publish(self, number: int) -> None:
        self.book.note("tried", [number])
        await self.bus.publish(packet(number), sender_id="faults", trace_id="run")
        self.book.note("acknowledged", [number])

    async def take(self, prefetch: int) -> None:
        if self._reader is None:
            self._reader = self.bus.subscribe(
                [TOPIC], group=GROUP, consumer="desk", prefetch=prefetch
            )
        try:
            delivery = await anext(self._reader)
        except BaseException:
            self._reader = None  # a generator that was cancelled is over
            raise
        self.book.note("handled", [number_of(delivery)])
        self.in_hand.append(delivery)

    async def acknowledge(self) -> None:
        if self.in_hand:
            await self.in_hand.pop(0).ack()

    async def look(self) -> None:
        assert await self.bus.dead_letters() == [], "the answer belongs to another request"

    async def drain(self) -> Ledger:
        """Handle what is left."""
        if self._reader is not None:
            await self._reader.aclose()
        reader = self.bus.subscribe([TOPIC], group=GROUP, consumer="last", prefetch=PREFETCH)
        async with aclosing(reader), asyncio.timeout(_DRAIN_SECONDS):
            while self.books.read().lost:
                delivery = await anext(reader)
                self.book.note("handled", [number_of(delivery)])
                await delivery.ack()
        return self.books.read()


def cancellations(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Cancel publishing, acknowledging and iterating wherever they happen to be."""
    choose = random.Random(0)

    async def play(url: str) -> Ledger:
        async with opened(url) as bus:
            await bus.create_group([TOPIC], group=GROUP)
            desk = _Desk(bus, "cancellations", folder)
            for number in range(size.num_cancellations // 4):
                works: list[Coroutine[Any, Any, None]] = [
                    desk.publish(number),
                    desk.take(choose.choice([1, 10])),
                    desk.acknowledge(),
                    desk.look(),
                ]
                tasks = [asyncio.create_task(work) for work in works]
                for task in tasks:
                    for _ in range(choose.randrange(_MAX_TURNS)):
                        await asyncio.sleep(0)
                    task.cancel()
                for result in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(result, Exception):
                        raise result
                wait.say(f"cancellations: {4 * number:,} of {size.num_cancellations:,}")
            return await desk.drain()

    with start_redis(folder) as server:
        ledger = close_the_book(asyncio.run(play(_patient(bus_url(server)))), server)
    ledger.poisonous = ()
    ledger.allowed_duplicates = size.num_cancellations
    return ledger


def concurrent_publishes(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Publish thousands of messages at the same time, each awaited by a task of its own."""

    async def play(url: str) -> Ledger:
        async with opened(url) as bus:
            await bus.create_group([TOPIC], group=GROUP)
            desk = _Desk(bus, "concurrent publishes", folder)
            await asyncio.gather(*map(desk.publish, range(size.num_concurrent)))
            wait.say("concurrent publishes: all are acknowledged")
            return await desk.drain()

    with start_redis(folder) as server:
        ledger = close_the_book(asyncio.run(play(_patient(bus_url(server)))), server)
    ledger.poisonous = ()
    return ledger


def lost_answers(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Cut connections after a batch arrived and before the answer did: it must land once."""
    with start_redis(folder) as server, start_proxy(server.host, server.port) as proxy:

        async def play(url: str) -> Ledger:
            async with opened(url) as bus, opened(bus_url(server)) as direct:
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

        url = _patient(bus_url(server, proxy.port))
        ledger = close_the_book(asyncio.run(play(url)), server)
        ledger.notes.append(f"{proxy.num_lost_answers} answers lost")
    ledger.poisonous = ()
    return ledger


def _patient(url: str) -> str:
    """Return the URL of a bus on which no message is overdue or given up."""
    return f"{url}&max_deliveries=1000000"
