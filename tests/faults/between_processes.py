"""Scenarios between processes: consumers and servers are killed, connections break, disks are full.

Each takes a size, an empty folder and something to wait with, and returns its ledger.
"""

import asyncio
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bus import STREAM, bus_url, opened, raw
from hands import destroy_group, pending
from ledger import POISON_EVERY, Book, Ledger, numbers_in, poison
from schedule import Wait, spread
from stage import (
    UNDECODABLE_FROM,
    Size,
    close_the_book,
    dead_numbers,
    wait_until_refused,
)
from workers import STEADY, Crew, Habits, crew, publish_all

from esper.testkit.proxy import start_proxy
from esper.testkit.redis import RedisServer, start_redis

_CONSUMERS = 3
_OUTAGE_SECONDS = 0.2
_UNSEEN = 100
"""Messages that are published while there is no group."""
_MEMORY_MB = 32
"""What a consumer may need for a backlog, however long it is."""


def wait_for_all(people: Crew, server: RedisServer, wait: Wait) -> None:
    """Wait until everything acknowledged is handled or, where it is poison, dead."""

    def is_done(ledger: Ledger) -> bool:
        missing = ledger.acknowledged.keys() - ledger.handled.keys()
        if people.is_publishing() or any(poison(n, 0) is None for n in missing):
            return False
        return missing <= dead_numbers(server).keys()

    wait(people, is_done)


def storm(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Kill consumers and the server, drop and partition connections, with poison among the messages."""
    settings = ["appendfsync always"]
    habits = replace(STEADY, num_exits=size.num_exits)
    with (
        start_redis(folder, settings=settings) as server,
        start_proxy(server.host, server.port) as proxy,
        crew("storm", folder, server, url=bus_url(proxy.port), habits=habits) as people,
    ):
        book = Book(people.folder, "undecodable")

        def drop(_: int) -> None:
            proxy.drop()
            people.note_in_hand(pending(server.port) & people.ledger().handled.keys())

        def kill_server(_: int) -> None:
            server.stop(signal.SIGKILL)
            wait.seconds(_OUTAGE_SECONDS)
            server.start()
            people.note_in_hand(pending(server.port))

        def partition(_: int) -> None:
            proxy.partition()
            in_hand = pending(server.port)
            wait.seconds(size.partition_seconds)
            people.note_in_hand(in_hand | pending(server.port))
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
                (size.num_drops, drop),
                (size.num_partitions, partition),
                (size.num_messages // 1_000, lambda index: _put_undecodable(server, book, index)),
            ],
        )
        wait_for_all(people, server, wait)
        ledger = close_the_book(people.ledger(), server)
        num_busy = sum(count > 0 for count in ledger.in_killed_hands)
        ledger.notes.append(f"{people.num_deaths} consumers died, {num_busy} with messages in hand")
        return ledger


def _put_undecodable(server: RedisServer, book: Book, index: int) -> None:
    number = UNDECODABLE_FROM + POISON_EVERY * index
    book.note("tried", [number])
    with raw(server.port) as client:
        client.xadd(STREAM, {"message": b"\xff%d" % number})
    book.note("acknowledged", [number])


def lost_group(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Destroy the consumer group: under everybody's hands, with nobody there, with some asleep."""
    with start_redis(folder) as server, crew("lost group", folder, server) as people:

        def publish_unseen(index: int) -> None:
            first = size.num_messages + _UNSEEN * index
            unseen = range(first, first + _UNSEEN)
            people.publish(unseen.start, unseen.stop)
            wait(people, lambda ledger: ledger.acknowledged.keys() >= set(unseen))

        def destroy(index: int) -> None:
            match index % 3:
                case 0:  # everybody is there, with messages in hand
                    people.note_in_hand(destroy_group(server.port))
                    publish_unseen(index)
                case 1:  # nobody is, and who comes later has never seen the group
                    people.dismiss()
                    people.note_in_hand(destroy_group(server.port))
                    publish_unseen(index)
                    people.consume(_CONSUMERS)
                case _:  # some sleep through it, and newcomers find it gone
                    with people.standing_still(_CONSUMERS - 1):
                        people.note_in_hand(destroy_group(server.port))
                        publish_unseen(index)
                        people.consume(1)

        people.consume(_CONSUMERS)
        people.publish(0, size.num_messages)
        spread(people, wait, size.num_messages, [(size.num_destroyed, destroy)])
        wait_for_all(people, server, wait)
        ledger = close_the_book(people.ledger(), server)
        # What was given up and not noted yet when the group went is given up once more.
        ledger.letters_allowed = 1 + size.num_destroyed
        ledger.notes.append(f"{size.num_destroyed} times")
        return ledger


def full_disk(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Let the server's disk be full for a while, then its memory."""
    num_messages = size.num_messages // 2
    with start_redis(folder) as server, crew("full disk", folder, server) as people:

        def memory(limit: int) -> None:
            with raw(server.port) as client:
                client.config_set("maxmemory", limit)

        fillings: list[tuple[Callable[[], None], Callable[[], None]]] = [
            (server.fill_disk, server.free_disk),
            (lambda: memory(1), lambda: memory(0)),
        ]

        def fill(index: int) -> None:
            begin, end = fillings[index]
            begin()
            wait_until_refused(server)
            in_hand = pending(server.port)
            wait.seconds(size.full_seconds)
            people.note_in_hand(in_hand | pending(server.port))
            end()

        people.consume(_CONSUMERS)
        people.publish(0, num_messages)
        spread(people, wait, num_messages, [(len(fillings), fill)])
        wait_for_all(people, server, wait)
        return close_the_book(people.ledger(), server)


def poisoned_rate(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Compare how fast clean messages are handled with and without one percent of poison, at once."""
    crews: dict[str, tuple[Crew, RedisServer]] = {}
    with ExitStack() as stack:
        for name in ("clean", "poisoned"):
            inside = folder / name
            inside.mkdir()
            server = stack.enter_context(start_redis(inside))
            people = stack.enter_context(crew("1 % poison", inside, server, habits=Habits()))
            # Multiples of 100 are clean, whatever their number.
            multiplier = POISON_EVERY if name == "clean" else 1
            asyncio.run(_fill(server, people, size.num_messages, multiplier))
            crews[name] = people, server
        for people, _ in crews.values():
            people.consume(1)
        for people, server in crews.values():
            wait_for_all(people, server, wait)
        ledgers = {name: close_the_book(p.ledger(), server) for name, (p, server) in crews.items()}
        ledger = ledgers["poisoned"]
        share = _share(crews, ledgers)
    ledger.complaints += ledgers["clean"].problems()
    ledger.notes.append(
        f"clean rest at {share:.2f} of the full rate ({ledgers['clean'].rate:,.0f}/s), side by side"
    )
    if size.is_long and not share >= 0.8:
        ledger.complaints.append(f"the clean rest goes at {share:.2f} of the full rate")
    return ledger


def _share(crews: Mapping[str, tuple[Crew, RedisServer]], ledgers: Mapping[str, Ledger]) -> float:
    """Return the ratio of the rates while both are at work."""
    ends_at = min(ledger.last_at for ledger in ledgers.values())
    rates: dict[str, float] = {}
    for name, (people, _) in crews.items():
        books = people.folder.glob("consumer*.book")
        handled = sum(1 for book in books for _ in numbers_in(book, "handled", until=ends_at))
        rates[name] = handled / max(ends_at - ledgers[name].first_at, 1e-9)
    # A short run may be over before the other has begun; that says nothing.
    return rates["poisoned"] / rates["clean"] if rates["clean"] > 0 else float("nan")


async def _fill(server: RedisServer, people: Crew, num_messages: int, multiplier: int) -> None:
    book = Book(people.folder, "filler")
    numbers = range(0, num_messages * multiplier, multiplier)
    async with opened(bus_url(server.port)) as bus:
        await publish_all(bus, book, numbers)
    if multiplier == 1:
        for index in range(num_messages // 1_000):
            _put_undecodable(server, book, index)


def backlog(size: Size, folder: Path, wait: Wait) -> Ledger:
    """Read a long backlog and measure the consumer's memory."""
    with (
        start_redis(folder, settings=["appendonly no"]) as server,
        crew("backlog", folder, server, habits=Habits()) as people,
    ):
        people.publish(0, size.num_backlog)
        wait(people, lambda _: not people.is_publishing())
        people.consume(1)
        wait_for_all(people, server, wait)
        ledger = close_the_book(people.ledger(), server)
        before, most = ledger.peak_memory_kb[0], max(ledger.peak_memory_kb)
        grown_mb = (most - before) // 1024
        ledger.notes.append(
            f"consumer at most {most // 1024} MB, grew {grown_mb} MB, {ledger.rate:,.0f}/s"
        )
        if grown_mb > _MEMORY_MB:
            ledger.complaints.append(f"the consumer grew by {grown_mb} MB; allowed {_MEMORY_MB}")
        return ledger
