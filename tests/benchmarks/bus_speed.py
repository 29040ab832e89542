"""How fast the bus is, beside raw redis-py in the same run: `uv run python tests/benchmarks/bus_speed.py`.

Raw is asyncio redis-py with hiredis, pipelined by 100, with a message of the same size and a server of
its own from the test kit. Prints one table; the ratios count, the absolute figures are the machine's.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


async def raw(url: str, count: int) -> dict[str, float]:
    """Return messages per second of plain redis-py."""
    client: Any = Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]
    data = enclose(SIGNAL, **WORDS).data
    elapsed = _clock()
    for _ in range(count // 100):
        pipeline = client.pipeline(transaction=False)
        for _ in range(100):
            pipeline.xadd("raw", {"message": data})
        await pipeline.execute()
    published = count / elapsed()
    await client.xgroup_create("raw", "readers", id="0")
    elapsed, num_read = _clock(), 0
    while num_read < count:
        [(_, entries)] = await client.xreadgroup("readers", "one", {"raw": ">"}, count=100)
        await client.xack("raw", "readers", *(entry_id for entry_id, _ in entries))
        num_read += len(entries)
    consumed = count / elapsed()
    await client.aclose()
    return {"publish_many": published, "publish": published, "consume": consumed}


async def measure(bus: Bus, count: int) -> dict[str, float]:
    """Return messages per second of a bus, and microseconds per `publish_nowait`."""
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

    async def publish_some() -> None:
        for _ in range(count // NUM_PUBLISHERS):
            await bus.publish(SIGNAL, **WORDS)

    elapsed = _clock()
    await asyncio.gather(*(publish_some() for _ in range(NUM_PUBLISHERS)))
    rates["publish"] = count / elapsed()
    elapsed = _clock()
    for _ in range(NUM_NOWAIT):
        bus.publish_nowait(SIGNAL, **WORDS)
    rates["nowait_us"] = elapsed() / NUM_NOWAIT * 1e6
    await bus.flush(30.0)
    await bus.close()
    return rates


def _clock() -> Callable[[], float]:
    begun = time.perf_counter()
    return lambda: time.perf_counter() - begun


async def _compare(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder, start_redis(Path(folder)) as server:
        plain = await raw(server.url, count)
        redis = await measure(open_redis_bus(server.url), count)
    memory = await measure(open_memory_bus("memory://bench"), count)
    print(f"{'':14}{'raw /s':>10}{'redis /s':>10}{'ratio':>8}{'memory /s':>11}")
    for name, rate in plain.items():
        ratio = redis[name] / rate
        print(f"{name:14}{rate:10.0f}{redis[name]:10.0f}{ratio:8.2f}{memory[name]:11.0f}")
    print(f"publish_nowait: redis {redis['nowait_us']:.1f} us, memory {memory['nowait_us']:.1f} us")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="messages of each measurement")
    asyncio.run(_compare(parser.parse_args().count))
