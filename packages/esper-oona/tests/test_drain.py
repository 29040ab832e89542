"""Processes that consume over a real Redis and are told to stop by SIGTERM, once or twice."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import cast

import pytest

from esper.contracts import Bus, HealthSignal, TopicNames

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH

_CONSUMER = """
import asyncio, sys
from esper.contracts import TopicNames, consume, stop_signals
from esper.oona import open_redis_bus

async def main(url, seconds, grace_seconds):
    async def handle(delivery):
        print(delivery.payload().epoch, flush=True)
        await asyncio.sleep(seconds)

    async def tell(stop):
        await stop.wait()
        print("stopping", flush=True)

    bus = open_redis_bus(url)
    await bus.open()
    with stop_signals() as stop:
        telling = asyncio.create_task(tell(stop))
        await consume(
            bus, [TopicNames.TELEMETRY_SEED_HEALTH], handle, group="readers",
            prefetch=5, stop=stop, grace_seconds=grace_seconds,
        )
    await bus.close()
    print("done", flush=True)

asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
"""
"""Handles messages slowly and says which it began."""


@asynccontextmanager
async def consumer(
    url: str, *, seconds: float, grace_seconds: float
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run a consumer process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _CONSUMER,
        url,
        str(seconds),
        str(grace_seconds),
        stdout=subprocess.PIPE,
        env=os.environ,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def fill(bus: Bus, health: Health) -> None:
    await bus.create_group([HEALTH], group="readers")
    await bus.publish_many([health(n) for n in range(20)], sender_id="tests", trace_id="run-1")


async def rest(bus: Bus, number: int) -> dict[int, int]:
    """Return the epochs of the next messages and how often each was handed out."""
    reader = bus.subscribe([HEALTH], group="readers", consumer="next")
    found = [await anext(reader) for _ in range(number)]
    return {cast("HealthSignal", d.payload()).epoch: d.delivery_count for d in found}


async def test_process_told_to_stop_finishes_what_it_fetched(
    redis_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(redis_url()) as bus:
        await fill(bus, health)
        async with consumer(redis_url(), seconds=0.05, grace_seconds=20.0) as process:
            assert await line(process) == "0"
            process.send_signal(signal.SIGTERM)
            said = [await line(process) for _ in range(6)]
            assert said == ["stopping", "1", "2", "3", "4", "done"]
            assert await process.wait() == 0
        assert await rest(bus, 15) == dict.fromkeys(range(5, 20), 1)


async def test_process_that_has_no_time_left_gives_the_rest_back_untried(
    redis_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(redis_url()) as bus:
        await fill(bus, health)
        async with consumer(redis_url(), seconds=1000.0, grace_seconds=0.2) as process:
            assert await line(process) == "0"
            process.send_signal(signal.SIGTERM)
            assert await line(process) == "stopping"
            assert await line(process) == "done"
            assert await process.wait() == 0
        assert await rest(bus, 20) == dict.fromkeys(range(20), 1)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_ends_the_process_at_once(
    redis_url: MakeUrl, connect: Connect, health: Health, first: signal.Signals
) -> None:
    async with connect(redis_url()) as bus:
        await fill(bus, health)
        async with consumer(redis_url(), seconds=1000.0, grace_seconds=1000.0) as process:
            assert await line(process) == "0"
            process.send_signal(first)
            assert await line(process) == "stopping"
            process.send_signal(signal.SIGTERM)
            assert await line(process) == "done"
            assert await process.wait() == 0
        found = await rest(bus, 20)
        assert found.pop(0) == 2  # it was in hand, and nobody waited for it
        assert found == dict.fromkeys(range(1, 20), 1)
