"""How fast the bus is, beside raw redis-py and FastStream in the same run.

    uv run --group rivals python tests/benchmarks/bus_speed.py

Raw is asyncio redis-py with hiredis, pipelined by 100, with a message of the same size and a server of its
own from the test kit. Each round measures all of them one after another; the table has the medians of the
rounds and of their ratios. The ratios count; the absolute figures are the machine's.
"""

import argparse
import asyncio
import importlib
import importlib.util
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from esper.contracts import Bus, HealthSignal, TopicNames
from esper.oona import open_memory_bus, open_redis_bus
from esper.oona.envelope import enclose
from esper.testkit.redis import start_redis

TOPIC = TopicNames.TELEMETRY_SEED_HEALTH
SIGNAL = HealthSignal(
    layer_id=1,
    seed_id=2,
    chunk_id=0,
    epoch=3,
    activation_variance=0.5,
    dead_neuron_ratio=0.25,
    avg_correlation=-0.125,
)
WORDS = {"sender_id": "bench", "trace_id": "run-1"}
NUM_PUBLISHERS = 200
NUM_NOWAIT = 8_000
"""Fewer than the outbox holds, so that nothing is dropped."""
NOWAIT = "publish_nowait"
MEASURES = ("publish_many", "publish", "consume", NOWAIT)

type Rates = dict[str, float]
"""Calls or messages per second, by measure."""


async def raw(url: str, count: int) -> Rates:
    """Measure plain redis-py."""
    client: Any = Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]
    data, key = enclose(SIGNAL, **WORDS).data, uuid4().hex
    elapsed = _clock()
    for _ in range(count // 100):
        pipeline = client.pipeline(transaction=False)
        for _ in range(100):
            pipeline.xadd(key, {"message": data})
        await pipeline.execute()
    published = count / elapsed()
    await client.xgroup_create(key, "readers", id="0")
    elapsed, num_read = _clock(), 0
    while num_read < count:
        [(_, entries)] = await client.xreadgroup("readers", "one", {key: ">"}, count=100)
        await client.xack(key, "readers", *(entry_id for entry_id, _ in entries))
        num_read += len(entries)
    consumed = count / elapsed()
    await client.delete(key)
    await client.aclose()
    return {"publish_many": published, "publish": published, "consume": consumed}


async def oona(bus: Bus, count: int) -> Rates:
    """Measure a bus: typed messages, each acknowledged."""
    await bus.open()
    await bus.create_group([TOPIC], group="readers")
    elapsed = _clock()
    for _ in range(count // 1000):
        await bus.publish_many([SIGNAL] * 1000, **WORDS)
    rates = {"publish_many": count / elapsed()}
    elapsed, num_read = _clock(), 0
    async for delivery in bus.subscribe([TOPIC], group="readers", consumer="one", prefetch=100):
        delivery.payload()
        await delivery.ack()
        num_read += 1
        if num_read == count:
            break
    rates["consume"] = count / elapsed()
    rates["publish"] = await _publish_concurrently(lambda: bus.publish(SIGNAL, **WORDS), count)
    rates[NOWAIT] = 1 / statistics.median(_nowait_seconds(bus) for _ in range(NUM_NOWAIT // 100))
    await bus.flush(30.0)
    await bus.remove_group([TOPIC], group="readers")
    await bus.close()
    return rates


def _nowait_seconds(bus: Bus) -> float:
    """Return the seconds of one call, from a hundred."""
    elapsed = _clock()
    for _ in range(100):
        bus.publish_nowait(SIGNAL, **WORDS)
    return elapsed() / 100


async def faststream(url: str, count: int) -> Rates:
    """Measure FastStream: one typed handler, which acknowledges by returning."""
    # Not an import statement: the types are checked where the rivals are not installed, too.
    redis: Any = importlib.import_module("faststream.redis")
    quiet = logging.getLogger("quiet")  # it would write two lines for each message
    quiet.setLevel(logging.CRITICAL)
    broker, key, done = redis.RedisBroker(url, logger=quiet), uuid4().hex, asyncio.Event()
    num_read = 0

    async def handle(signal: HealthSignal) -> None:
        nonlocal num_read
        assert signal.epoch == SIGNAL.epoch
        num_read += 1
        if num_read == count:
            done.set()

    client: Any = Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]
    await client.xgroup_create(key, "readers", id="0", mkstream=True)
    source = redis.StreamSub(key, group="readers", consumer="one", max_records=100)
    broker.subscriber(stream=source)(handle)
    await broker.connect()
    published = await _publish_concurrently(
        lambda: broker.publish(SIGNAL, stream=key), count, num_publishers=50
    )  # with more than 100, its connection pool refuses
    elapsed = _clock()
    await broker.start()
    await done.wait()
    consumed = count / elapsed()
    await broker.stop()
    await client.delete(key)
    await client.aclose()
    return {"publish": published, "consume": consumed}


async def _publish_concurrently(
    publish: Callable[[], Awaitable[object]], count: int, *, num_publishers: int = NUM_PUBLISHERS
) -> float:
    """Return the rate of awaited publishes, of which many are under way at a time."""

    async def publish_some() -> None:
        for _ in range(count // num_publishers):
            await publish()

    elapsed = _clock()
    await asyncio.gather(*(publish_some() for _ in range(num_publishers)))
    return count / elapsed()


def _clock() -> Callable[[], float]:
    begun = time.perf_counter()
    return lambda: time.perf_counter() - begun


async def _round(url: str, count: int) -> dict[str, Rates]:
    measured = {
        "raw": await raw(url, count),
        "oona": await oona(open_redis_bus(f"{url}?prefix={uuid4().hex}"), count),
        "memory": await oona(open_memory_bus("memory://bench"), count),
    }
    if importlib.util.find_spec("faststream"):
        measured["faststream"] = await faststream(url, max(count // 10, NUM_PUBLISHERS))
    return measured


def _print_table(rounds: list[dict[str, Rates]]) -> None:
    systems = list(rounds[0])
    print(
        f"\n{platform.platform()}, {os.cpu_count()} cores; medians of {len(rounds)} rounds, per second"
    )
    print(f"{'':16}" + "".join(f"{name:>12}" for name in systems) + f"{'oona/raw':>14}")
    for measure in MEASURES:
        line = f"{measure:16}"
        for system in systems:
            rates = [each[system][measure] for each in rounds if measure in each[system]]
            line += f"{statistics.median(rates):12,.0f}" if rates else f"{'-':>12}"
        ratios = [
            each["oona"][measure] / each["raw"][measure]
            for each in rounds
            if measure in each["raw"]
        ]
        if ratios:
            line += f"{statistics.median(ratios):7.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(line)
    for system in ("oona", "memory"):
        micros = statistics.median(1e6 / each[system][NOWAIT] for each in rounds)
        print(f"{NOWAIT} on {system}: {micros:.1f} us a call")
    if "faststream" not in systems:
        print("FastStream is not installed here: uv run --group rivals python …")


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="messages of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="how often all are measured")
    arguments = parser.parse_args()
    rounds: list[dict[str, Rates]] = []
    with tempfile.TemporaryDirectory() as folder, start_redis(Path(folder)) as server:
        for number in range(1, arguments.rounds + 1):
            print(f"round {number} of {arguments.rounds}", end="\r", flush=True)
            rounds.append(asyncio.run(_round(server.url, arguments.count)))
    _print_table(rounds)


if __name__ == "__main__":
    main()
