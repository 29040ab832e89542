"""When a consumer tells the server what was handled: at once, or a moment later; and what if it cannot."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from esper.contracts import Bus, HealthSignal, TopicNames
from esper.oona.options import RedisOptions
from esper.testkit.redis import start_redis

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH


async def publish(bus: Bus, *signals: HealthSignal) -> None:
    await bus.create_group([HEALTH], group="readers")
    await bus.publish_many(signals, sender_id="tests", trace_id="run-1")


@asynccontextmanager
async def raw_client(url: str) -> AsyncGenerator[tuple[Any, str]]:
    """Give a client of the server, and the key of the topic's stream."""
    async with Redis.from_url(url.partition("?")[0]) as raw:  # pyright: ignore[reportUnknownMemberType]
        yield raw, f"{RedisOptions.from_url(url).prefix}:{HEALTH.value}"


async def test_what_was_tried_before_is_acknowledged_at_once_and_the_rest_together(
    redis_url: MakeUrl, connect: Connect, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the next message kills the process, one that was tried before must not be blamed for it."""
    monkeypatch.setattr("esper.oona.redis_consumer._ACK_SECONDS", 3600.0)
    url = redis_url()
    async with connect(url) as bus, raw_client(url) as (raw, key):
        await publish(bus, *map(health, range(3)))
        reader = bus.subscribe([HEALTH], group="readers", consumer="one", prefetch=10)
        async with aclosing(reader):
            first, second, third = [await anext(reader) for _ in range(3)]
            await second.nack()
            again = await anext(reader)
            assert (again.position, again.delivery_count) == (second.position, 2)
            await first.ack()
            await again.ack()
            rows = await raw.xpending_range(key, "readers", "-", "+", 10)
            pending = [row["message_id"].decode() for row in rows]
            assert pending == [first.position, third.position]
        rows = await raw.xpending_range(key, "readers", "-", "+", 10)
        assert [row["message_id"].decode() for row in rows] == [third.position]


async def test_acknowledgements_that_fail_with_the_read_beside_them_are_sent_later_and_no_surprise(
    tmp_path: Path, connect: Connect, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.oona.redis_consumer._ACK_SECONDS", 3600.0)
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
    with start_redis(tmp_path) as server:
        async with connect(server.url) as bus, raw_client(server.url) as (raw, key):
            await publish(bus, *map(health, range(2)))
            reader = bus.subscribe([HEALTH], group="readers", consumer="one", prefetch=2)
            async with aclosing(reader):
                for _ in range(2):
                    await (await anext(reader)).ack()
                server.stop()
                waits = asyncio.ensure_future(anext(reader))
                await asyncio.sleep(0)
                done, _ = await asyncio.wait({waits}, timeout=0.3)  # some tries fail
                assert not done
                server.start()
                bus.publish_nowait(health(2), sender_id="tests", trace_id="run-1")
                last = await waits
                [row] = await raw.xpending_range(key, "readers", "-", "+", 10)
                assert row["message_id"].decode() == last.position
    gc.collect()
    assert complaints == []


async def test_a_reader_that_is_closed_waits_for_acknowledgements_on_their_way(
    redis_url: MakeUrl, connect: Connect, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_their_way = asyncio.Event()
    execute = Pipeline.execute

    async def slowly(self: Pipeline, raise_on_error: bool = True) -> list[Any]:
        on_their_way.set()
        await asyncio.sleep(0.3)
        return await execute(self, raise_on_error)

    url = redis_url()
    async with connect(url) as bus, raw_client(url) as (raw, key):
        await publish(bus, health(0))
        async with aclosing(
            bus.subscribe([HEALTH], group="readers", consumer="one", prefetch=10)
        ) as reader:
            delivery = await anext(reader)
            monkeypatch.setattr(Pipeline, "execute", slowly)
            await delivery.ack()
            await on_their_way.wait()
        assert await raw.xpending_range(key, "readers", "-", "+", 10) == []
        assert bus.traffic.groups[0].num_acknowledged == 1
