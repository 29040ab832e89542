"""What every scenario stands on: its size, and how its ledger is closed."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bus import STREAM, bus_url, opened, pause, raw
from ledger import Ledger, number_in, poison
from redis.exceptions import ResponseError

from esper.testkit.redis import RedisServer

UNDECODABLE_FROM = 10_000_007
"""Poison from here on is put into the stream as bytes that are no message."""
MAX_LETTERS = 10_000
_CHUNK = 10_000
_REFUSAL_SECONDS = 20.0
_EVENT_ID = re.compile(rb'"event_id":\s*"([^"]+)"')


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything."""

    num_messages: int
    num_kills: int
    num_server_kills: int
    num_drops: int
    num_partitions: int
    partition_seconds: float
    num_exits: int
    """Messages that end the process of each handler."""
    num_destroyed: int
    """Times that the group is destroyed."""
    full_seconds: float
    num_cancellations: int
    num_concurrent: int
    num_backlog: int
    num_lost_answers: int
    is_long: bool


SHORT = Size(
    num_messages=2_000,
    num_kills=3,
    num_server_kills=1,
    num_drops=3,
    num_partitions=1,
    partition_seconds=0.5,
    num_exits=1,
    num_destroyed=3,
    full_seconds=0.5,
    num_cancellations=500,
    num_concurrent=10_000,
    num_backlog=20_000,
    num_lost_answers=20,
    is_long=False,
)
LONG = Size(
    num_messages=100_000,
    num_kills=20,
    num_server_kills=5,
    num_drops=50,
    num_partitions=5,
    partition_seconds=10.0,
    num_exits=20,
    num_destroyed=30,
    full_seconds=5.0,
    num_cancellations=10_000,
    num_concurrent=10_000,
    num_backlog=1_000_000,
    num_lost_answers=500,
    is_long=True,
)


def dead_numbers(server: RedisServer) -> Counter[int]:
    """Return the numbers of the messages that are dead letters, and how often each is one."""

    async def letters() -> list[bytes]:
        async with opened(bus_url(server.port)) as bus:
            return [letter.data for letter in await bus.dead_letters(limit=MAX_LETTERS)]

    return Counter(map(number_in, asyncio.run(letters())))


def close_the_book(ledger: Ledger, server: RedisServer) -> Ledger:
    """Add what the bus itself holds: the dead letters, and under which id each message landed."""
    ledger.dead = dead_numbers(server)
    ledger.poisonous = {number for number in ledger.tried if poison(number, 0)}
    landed: Counter[int] = Counter()
    ids: dict[str, int] = {}
    for data in _all_entries(server):
        number = number_in(data)
        landed[number] += 1
        if found := _EVENT_ID.search(data):
            ids[found[1].decode()] = number
    ledger.landed_twice = sum(times > 1 for times in landed.values())
    ledger.mistaken = {
        number
        for number, event_id in ledger.acknowledged.items()
        if number < UNDECODABLE_FROM and ids.get(event_id) != number
    }
    return ledger


def wait_until_refused(server: RedisServer) -> None:
    """Wait until the server takes no more writes. Raises `TimeoutError` if it goes on taking them."""
    deadline = time.monotonic() + _REFUSAL_SECONDS
    with raw(server.port) as client:
        while time.monotonic() < deadline:
            try:
                client.set("probe", 1)
            except ResponseError:
                return
            pause()
    raise TimeoutError("the server goes on taking writes")


def _all_entries(server: RedisServer) -> Iterator[bytes]:
    first = "-"
    with raw(server.port) as client:
        while entries := client.xrange(STREAM, first, count=_CHUNK):
            yield from (b"".join(fields.values()) for _, fields in entries)
            first = f"({entries[-1][0].decode()}"
