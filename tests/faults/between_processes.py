"""Scenarios between processes: consumers and servers are killed, connections break, disks are full.

Each takes a size, an empty folder and something to wait with, and returns its ledger.
"""

import asyncio
import signal
from collections import Counter
from pathlib import Path

from ledger import POISON_EVERY, Book, Ledger, poison
from schedule import Wait, spread
from stage import STREAM, UNDECODABLE_FROM, Size, bus_url, close_the_book, dead_numbers, raw
from workers import GROUP, PREFETCH, Crew, crew, opened, publish_all

from esper.testkit.proxy import start_proxy
from esper.testkit.redis import RedisServer, start_redis

_CONSUMERS = 3


def wait_for_all(people: Crew, server: RedisServer, wait: Wait) -> None:
    """Wait until everything acknowledged is handled or, where it is poison, dead."""

    def is_done(ledger: Ledger) -> bool:
        missing = ledger.acknowledged - ledger.handled.keys()
        if people.is_publishing() or any(poison(n, 0) is None for n in missing):
            return False
        return missing <= dead_numbers(server).keys()

    wait(people, is_done)


def storm(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Kill consumers and the server, drop and partition connections, with poison among the messages."""
    settings = ["appendfsync always"]
    with (
        start_redis(folder, settings=settings) as server,
        start_proxy(server.host, server.port) as proxy,
        crew("storm", folder, bus_url(server, proxy.port), num_exits=size.num_exits) as people,
    ):
        num_undecodable = size.num_messages // 1_000

        book = Book(people.folder, "undecodable")

        def put_undecodable(index: int) -> None:
            number = UNDECODABLE_FROM + POISON_EVERY * index
            with raw(server) as client:
                client.xadd(STREAM, {"message": b"\xff%d" % number})
            book.note("tried", [number])
            book.note("acknowledged", [number])

        def kill_server(_: int) -> None:
            server.stop(signal.SIGKILL)
            server.start()

        def partition(_: int) -> None:
            proxy.partition()
            wait.seconds(size.partition_seconds)
            proxy.heal()

        people.consume(_CONSUMERS)
        people.publish(0, size.num_messages)
        spread(
            people,
            wait,
            size.num_messages,
            [
                (size.num_kills, people.kill_consumer),
                (size.num_server_kills, kill_server),
                (size.num_drops, lambda _: proxy.drop()),
                (size.num_partitions, partition),
                (num_undecodable, put_undecodable),
            ],
        )
        wait_for_all(people, server, wait)
        ledger = close_the_book(people.ledger(), server)
        breaks = size.num_partitions + size.num_server_kills + size.num_drops
        ledger.allowed_duplicates = PREFETCH * (people.num_deaths + _CONSUMERS * breaks)
        ledger.notes.append(f"{people.num_deaths} consumers died")
        return ledger


def lost_group(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Destroy the consumer group while messages are in hand and on their way."""
    with (
        start_redis(folder) as server,
        crew("lost group", folder, bus_url(server)) as people,
    ):
        people.consume(1)
        people.publish(0, size.num_messages)

        def destroy(_: int) -> None:
            with raw(server) as client:
                client.xgroup_destroy(STREAM, GROUP)

        # One that has not read yet would begin with what is published from then on.
        wait(people, lambda ledger: bool(ledger.handled))
        spread(people, wait, size.num_messages, [(2, destroy)])
        wait_for_all(people, server, wait)
        ledger = close_the_book(people.ledger(), server)
        # A group begins anew where a consumer last saw it: everything since may come again, and
        # what is given up meanwhile is filed again.
        ledger.dead = Counter(set(ledger.dead))
        ledger.allowed_duplicates = 2 * len(ledger.tried)
        return ledger


def full_disk(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Let the server's disk be full for a while, then its memory."""
    num_messages = size.num_messages // 2
    with (
        start_redis(folder) as server,
        crew("full disk", folder, bus_url(server)) as people,
    ):

        def fill(index: int) -> None:
            if index:
                with raw(server) as client:
                    client.config_set("maxmemory", "1")
                    wait.seconds(0.5)
                    client.config_set("maxmemory", "0")
            else:
                server.fill_disk()
                wait.seconds(1.5)
                server.free_disk()

        people.consume(_CONSUMERS)
        people.publish(0, num_messages)
        spread(people, wait, num_messages, [(2, fill)])
        wait_for_all(people, server, wait)
        ledger = close_the_book(people.ledger(), server)
        ledger.poisonous = {n for n in ledger.tried if poison(n, 0)}
        ledger.allowed_duplicates = PREFETCH * _CONSUMERS * 2
        return ledger


def poisoned_rate(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Compare how fast clean messages are handled with and without one percent of poison."""
    rates: list[float] = []
    ledger = Ledger(scenario="1 % poison")
    for name, multiplier in (("clean", POISON_EVERY), ("poisoned", 1)):
        inside = folder / name
        inside.mkdir()
        with (
            start_redis(inside) as server,
            crew("1 % poison", inside, bus_url(server), num_exits=0) as people,
        ):
            # Multiples of 100 are clean, whatever their number.
            asyncio.run(_fill(bus_url(server), people, size.num_messages, multiplier))
            people.consume(1)
            wait_for_all(people, server, wait)
            ledger = close_the_book(people.ledger(), server)
            rates.append(ledger.rate)
    share = rates[1] / rates[0]
    ledger.notes.append(f"clean at {share:.2f} of the full rate ({rates[0]:,.0f}/s)")
    if size.is_long:
        assert share >= 0.8, ledger.notes
    return ledger


async def _fill(url: str, people: Crew, num_messages: int, multiplier: int) -> None:
    book = Book(people.folder, "filler")
    numbers = range(0, num_messages * multiplier, multiplier)
    async with opened(url) as bus:
        await publish_all(bus, book, numbers)


def backlog(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Read a long backlog and measure the consumer's memory."""
    with (
        start_redis(folder, settings=["appendonly no"]) as server,
        crew("backlog", folder, bus_url(server, reclaim=60.0)) as people,
    ):
        people.publish(0, size.num_backlog)
        wait(people, lambda _: not people.is_publishing())
        people.consume(1)
        wait_for_all(people, server, wait)
        ledger = people.ledger()
        with raw(server) as client:
            ledger.dead = Counter(dict.fromkeys(ledger.acknowledged - ledger.handled.keys(), 1))
            ledger.notes.append(f"{client.xlen('esper:dead-letters'):,} dead letters kept")
        ledger.poisonous = {n for n in ledger.tried if poison(n, 0)}
        grown = max(ledger.peak_memory_kb) - ledger.peak_memory_kb[0]
        ledger.notes.append(
            f"consumer at most {max(ledger.peak_memory_kb) // 1024} MB, grew {grown // 1024} MB, "
            f"{ledger.rate:,.0f}/s"
        )
        assert grown < 64 * 1024, ledger.notes
        return ledger
