"""How long a message takes from one process to another, beside raw redis-py.

    uv run python -m tests.benchmarks.bus_latency

A publisher sends at a fixed rate, a consumer in a process of its own notes when each message is in its
hands. Raw and Oona take turns; the table has the percentiles of all rounds and the medians of the ratios.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from tests.benchmarks.bus_speed import SIGNAL, TOPIC, WORDS

from esper.oona import open_redis_bus
from esper.oona.envelope import enclose
from esper.testkit.redis import start_redis

WARM_UP = 50
"""Messages whose times do not count."""


async def _consume_raw(url: str, key: str, count: int) -> list[float]:
    client: Any = Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]
    await client.xgroup_create(key, "readers", id="0", mkstream=True)
    print("ready", flush=True)
    seconds: list[float] = []
    while len(seconds) < count:
        for _, entries in await client.xreadgroup(
            "readers", "one", {key: ">"}, count=100, block=1000
        ):
            now = time.time()
            seconds += [now - float(fields[b"sent"]) for _, fields in entries]
            await client.xack(key, "readers", *(entry_id for entry_id, _ in entries))
    await client.aclose()
    return seconds


async def _consume_oona(url: str, prefix: str, count: int) -> list[float]:
    bus = open_redis_bus(f"{url}?prefix={prefix}")
    await bus.open()
    await bus.create_group([TOPIC], group="readers")
    print("ready", flush=True)
    seconds: list[float] = []
    async for delivery in bus.subscribe([TOPIC], group="readers", consumer="one", prefetch=100):
        delivery.payload()
        seconds.append(time.time() - float(delivery.message.sender_id))
        await delivery.ack()
        if len(seconds) == count:
            break
    await bus.close()
    return seconds


async def _publish(system: str, url: str, name: str, rate: float, count: int) -> None:
    client: Any = Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]
    bus = open_redis_bus(f"{url}?prefix={name}")
    await bus.open()
    data = enclose(SIGNAL, **WORDS).data
    begun = time.perf_counter()
    for number in range(count):
        await asyncio.sleep(begun + number / rate - time.perf_counter())
        sent = repr(time.time())
        if system == "raw":
            await client.xadd(name, {"sent": sent, "message": data})
        else:
            await bus.publish(SIGNAL, sender_id=sent, trace_id="run-1")
    await bus.close()
    await client.aclose()


def _measure(system: str, url: str, rate: float, count: int) -> list[float]:
    """Return milliseconds per message."""
    name = uuid4().hex
    command = [sys.executable, "-m", "tests.benchmarks.bus_latency", "--consume", system]
    consumer = subprocess.Popen(
        [*command, "--url", url, "--name", name, "--count", str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert consumer.stdout is not None
    assert consumer.stdout.readline() == "ready\n"
    asyncio.run(_publish(system, url, name, rate, count))
    seconds: list[float] = json.loads(consumer.stdout.readline())
    consumer.wait()
    return [1000 * each for each in seconds[WARM_UP:]]


def _percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100)[round(100 * share) - 1]


def _compare(rates: list[float], rounds: int, duration_seconds: float) -> None:
    print(f"{'':12}{'':6}{'raw ms':>10}{'oona ms':>10}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder, start_redis(Path(folder)) as server:
        for rate in rates:
            measured: dict[str, list[list[float]]] = {"raw": [], "oona": []}
            for _ in range(rounds):
                for system, taken in measured.items():
                    count = WARM_UP + round(rate * duration_seconds)
                    taken.append(_measure(system, server.url, rate, count))
            for share in (0.5, 0.99):
                of = {s: [_percentile(each, share) for each in t] for s, t in measured.items()}
                ratio = statistics.median(
                    ours / plain for ours, plain in zip(of["oona"], of["raw"], strict=True)
                )
                medians = {system: statistics.median(values) for system, values in of.items()}
                print(
                    f"{rate:8.0f} /s  p{100 * share:<4.0f}{medians['raw']:10.2f}{medians['oona']:10.2f}"
                    f"{ratio:8.2f}",
                    flush=True,
                )


def main() -> None:
    """Measure and print one table, or be the consumer of such a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[200.0, 1000.0], help="per second"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--consume", choices=["raw", "oona"], help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.consume:
        consume = {"raw": _consume_raw, "oona": _consume_oona}[arguments.consume]
        print(json.dumps(asyncio.run(consume(arguments.url, arguments.name, arguments.count))))
    else:
        _compare(arguments.rates, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
