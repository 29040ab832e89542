"""The bus that the scenarios use: its names, its addresses, its payloads, and clients of it."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

from redis import Redis

from esper.contracts import (
    BackendUnavailableError,
    Bus,
    Delivery,
    SystemStatePacket,
    TopicNames,
)
from esper.oona import open_redis_bus

HOST = "127.0.0.1"
GROUP = "readers"
TOPIC = TopicNames.SYSTEM_EVENTS_EPOCH
STREAM = f"esper:{TOPIC.value}"
RECLAIM_SECONDS = 1.0
_KEPT = 10_000_000
"""Messages; nothing is trimmed, so that the ledger sees at the end all that ever landed."""


def bus_url(port: int, *, reclaim_seconds: float = RECLAIM_SECONDS) -> str:
    """Return the bus's URL: of a server's port, or of a proxy's in front of it."""
    query = f"reclaim_after_seconds={reclaim_seconds}&retain={_KEPT}"
    return f"redis://{HOST}:{port}/0?{query}"


def raw(port: int) -> Any:
    """Return a plain client."""
    return Redis(host=HOST, port=port)


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


def pause() -> None:
    """Let the others work before looking again."""
    time.sleep(0.05)
