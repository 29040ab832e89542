"""What every scenario stands on: its size, its server's addresses, and how its ledger is closed."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger import Ledger, number_in, poison
from redis import Redis
from workers import TOPIC, opened

from esper.testkit.redis import RedisServer

UNDECODABLE_FROM = 10_000_007
"""Poison from here on is put into the stream as bytes that are no message."""
STREAM = f"esper:{TOPIC.value}"
_MAX_LETTERS = 10_000


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
    num_cancellations=10_000,
    num_concurrent=10_000,
    num_backlog=1_000_000,
    num_lost_answers=500,
    is_long=True,
)


def bus_url(server: RedisServer, port: int | None = None, *, reclaim: float = 1.0) -> str:
    """Return the bus's URL: of the server, or of a proxy's port in front of it."""
    query = f"reclaim_after_seconds={reclaim}"
    return f"redis://{server.host}:{port or server.port}/0?{query}"


def raw(server: RedisServer) -> Any:
    """Return a plain client."""
    return Redis(host=server.host, port=server.port)


def dead_numbers(server: RedisServer) -> Counter[int]:
    """Return the numbers of the messages that are dead letters, and how often each is one."""

    async def letters() -> list[bytes]:
        async with opened(bus_url(server)) as bus:
            return [letter.data for letter in await bus.dead_letters(limit=_MAX_LETTERS)]

    return Counter(map(number_in, asyncio.run(letters())))


def close_the_book(ledger: Ledger, server: RedisServer) -> Ledger:
    """Add what the bus itself holds: the dead letters, and what landed twice."""
    ledger.dead = dead_numbers(server)
    with raw(server) as client:
        entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]] = client.xrange(STREAM)
    on_stream = Counter(number_in(b"".join(fields.values())) for _, fields in entries)
    ledger.landed_twice = sum(times > 1 for times in on_stream.values())
    ledger.poisonous = {number for number in ledger.tried if poison(number, 0)}
    return ledger
