"""`oona bench`: how fast the bus is from here, on streams of its own that are removed afterwards."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Annotated, Protocol, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import typer

from esper.contracts import Bus, HealthSignal, TopicNames, new_id
from esper.oona.commands.printing import console, print_json, span, table
from esper.oona.commands.session import Json, Url, command, opened, url_of
from esper.oona.options import RedisOptions
from esper.oona.redis_client import connect

HELP = """
Measure how fast the bus is from here.

Publishes and consumes small messages on streams of its own, which are removed afterwards;
takes a few seconds.

\b
  oona bench
  oona bench -n 100000 --json
"""

_TOPIC = TopicNames.TELEMETRY_SEED_HEALTH
_GROUP = "bench"
_CONCURRENT = 100
_PREFETCH = 100


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured."""

    messages: int
    publish_many_per_second: float
    publish_per_second: float
    consume_per_second: float
    latency_p50_seconds: float
    latency_p99_seconds: float
    """From publishing one message to having it, with nothing else going on."""


class _Keys(Protocol):
    """The commands that remove what was made."""

    async def unlink(self, *names: bytes) -> int: ...

    def scan_iter(self, match: str, count: int) -> AsyncIterator[bytes]: ...


@command
def bench(
    number: Annotated[int, typer.Option("-n", help="Messages of each kind.", min=200)] = 10_000,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Measure."""
    own_url = _with_own_prefix(url_of(url))
    result = asyncio.run(_measure(own_url, number))
    if as_json:
        print_json(asdict(result))
        return
    rows = [
        ("publish_many", f"{result.publish_many_per_second:,.0f}"),
        (f"publish, {_CONCURRENT} at a time", f"{result.publish_per_second:,.0f}"),
        (f"consume, prefetch {_PREFETCH}", f"{result.consume_per_second:,.0f}"),
    ]
    out = console()
    for line in table((f"{number:,} MESSAGES", "PER SECOND"), rows):
        out.print(line)
    p50, p99 = span(result.latency_p50_seconds), span(result.latency_p99_seconds)
    out.print(f"one message, published to received: p50 {p50}, p99 {p99}")


def _with_own_prefix(url: str) -> str:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query)) | {"prefix": f"oona-bench-{new_id()}"}
    query.pop("journal", None)  # what a bench could not send is not worth keeping
    return urlunsplit(parts._replace(query=urlencode(query)))


async def _measure(url: str, number: int) -> Result:
    try:
        async with opened(url) as bus:
            await bus.create_group([_TOPIC], group=_GROUP)
            many = await _rate(number, lambda: _publish_many(bus, number))
            consumed = await _rate(number, lambda: _consume(bus, number))
            each = await _rate(number, lambda: _publish_each(bus, number))
            await _consume(bus, number)
            latencies = await _latencies(bus, min(1000, number // 10))
    finally:
        await _remove(RedisOptions.from_url(url))
    cuts = quantiles(latencies, n=100, method="inclusive")
    return Result(
        messages=number,
        publish_many_per_second=many,
        publish_per_second=each,
        consume_per_second=consumed,
        latency_p50_seconds=cuts[49],
        latency_p99_seconds=cuts[98],
    )


async def _rate(number: int, work: Callable[[], Awaitable[None]]) -> float:
    begun_at = time.perf_counter()
    await work()
    return number / (time.perf_counter() - begun_at)


async def _publish_many(bus: Bus, number: int) -> None:
    payloads = [_payload(epoch) for epoch in range(number)]
    for begin in range(0, number, 1000):
        await bus.publish_many(payloads[begin : begin + 1000], sender_id="oona", trace_id=_GROUP)


async def _publish_each(bus: Bus, number: int) -> None:
    epochs = iter(range(number))

    async def publish() -> None:
        for epoch in epochs:
            await bus.publish(_payload(epoch), sender_id="oona", trace_id=_GROUP)

    await asyncio.gather(*(publish() for _ in range(_CONCURRENT)))


async def _consume(bus: Bus, number: int) -> None:
    subscription = bus.subscribe([_TOPIC], group=_GROUP, consumer="one", prefetch=_PREFETCH)
    num_left = number
    async with aclosing(subscription) as deliveries:
        async for delivery in deliveries:
            delivery.payload()
            await delivery.ack()
            num_left -= 1
            if not num_left:
                break


async def _latencies(bus: Bus, number: int) -> list[float]:
    found: list[float] = []
    async with aclosing(bus.subscribe([_TOPIC], group=_GROUP, consumer="one")) as deliveries:
        for epoch in range(number):
            waiting = asyncio.ensure_future(anext(deliveries))
            begun_at = time.perf_counter()
            await bus.publish(_payload(epoch), sender_id="oona", trace_id=_GROUP)
            delivery = await waiting
            found.append(time.perf_counter() - begun_at)
            await delivery.ack()
    return found


async def _remove(options: RedisOptions) -> None:
    client = connect(options)
    keys = cast("_Keys", client)
    try:
        async for name in keys.scan_iter(f"{options.prefix}:*", 1000):
            await keys.unlink(name)
    finally:
        await client.aclose()


def _payload(epoch: int) -> HealthSignal:
    return HealthSignal(
        layer_id=1,
        seed_id=0,
        chunk_id=0,
        epoch=epoch,
        activation_variance=0.5,
        dead_neuron_ratio=0.25,
        avg_correlation=0.125,
    )
