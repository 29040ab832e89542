"""Looking at topics without a group, and handing a group again what it had, on every backend."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import datetime, timedelta
from typing import cast

import pytest

from esper.contracts import (
    Bus,
    ConfigError,
    Delivery,
    HealthSignal,
    NotFoundError,
    Payload,
    Record,
    TopicNames,
    utc_now,
)

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
COMMANDS = TopicNames.CONTROL_KASMINA_COMMANDS


async def publish(bus: Bus, *payloads: Payload) -> None:
    await bus.publish_many(payloads, sender_id="tests", trace_id="run-1")


def epoch(delivery: Delivery) -> int:
    return cast("HealthSignal", delivery.payload()).epoch


def epoch_of(record: Record) -> int:
    return json.loads(record.data)["payload"]["epoch"]


async def read(
    bus: Bus, *, since: datetime | str | None = None, until: datetime | str | None = None
) -> list[int]:
    return [epoch_of(record) async for record in bus.read([HEALTH], since=since, until=until)]


async def handle(bus: Bus, number: int, *, group: str = "readers") -> list[Delivery]:
    """Receive and acknowledge the next messages of the group."""
    reader = bus.subscribe([HEALTH], group=group, consumer="one")
    async with aclosing(reader):
        seen = [await anext(reader) for _ in range(number)]
        for delivery in seen:
            await delivery.ack()
    return seen


async def test_reading_shows_everything_in_order_and_takes_it_from_nobody(
    make_url: MakeUrl,
    connect: Connect,
    health: Health,
    samples: dict[TopicNames, Payload],
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        for payloads in ([health(n) for n in range(150)], [samples[COMMANDS]], [health(150)]):
            await publish(bus, *payloads)
            await asyncio.sleep(0.02)  # across topics, order is kept to the millisecond
        records = [record async for record in bus.read([COMMANDS, HEALTH])]
        assert [record.topic for record in records] == [HEALTH] * 150 + [COMMANDS, HEALTH]
        assert [epoch_of(r) for r in records if r.topic is HEALTH] == list(range(151))
        assert [epoch(delivery) for delivery in await handle(bus, 151)] == list(range(151))


async def test_reading_begins_and_ends_where_it_is_told(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(5)))
        await asyncio.sleep(0.02)  # times are kept in milliseconds
        between = utc_now()
        await asyncio.sleep(0.02)
        await publish(bus, *map(health, range(5, 10)))
        positions = [record.position async for record in bus.read([HEALTH])]
        assert await read(bus, since=positions[7]) == [7, 8, 9]
        assert await read(bus, until=positions[2]) == [0, 1, 2]
        assert await read(bus, since=positions[2], until=positions[3]) == [2, 3]
        assert await read(bus, since=between) == [5, 6, 7, 8, 9]
        assert await read(bus, until=between) == [0, 1, 2, 3, 4]
        assert await read(bus, since=between + timedelta(hours=1)) == []


async def test_reading_follows_what_comes(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, health(0))
        async with aclosing(bus.read([HEALTH], follow=True)) as records:
            assert epoch_of(await anext(records)) == 0
            waits = asyncio.ensure_future(anext(records))
            await asyncio.sleep(0.05)
            assert not waits.done()
            await publish(bus, health(1), health(2))
            assert epoch_of(await waits) == 1
            assert epoch_of(await anext(records)) == 2


async def test_group_gets_everything_again_from_a_position_on_and_others_do_not(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        for group in ("readers", "others"):
            await bus.create_group([HEALTH], group=group)
        await publish(bus, *map(health, range(6)))
        first = await handle(bus, 6)
        await handle(bus, 6, group="others")
        await bus.replay([HEALTH], group="readers", since=first[2].position)
        again = await handle(bus, 4)
        assert [d.message for d in again] == [d.message for d in first[2:]]
        assert [d.delivery_count for d in again] == [1] * 4
        await publish(bus, health(6))
        assert [epoch(d) for d in await handle(bus, 1)] == [6]
        assert [epoch(d) for d in await handle(bus, 1, group="others")] == [6]


async def test_group_gets_everything_again_from_a_time_on(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, *map(health, range(3)))
        await asyncio.sleep(0.02)  # times are kept in milliseconds
        between = utc_now()
        await asyncio.sleep(0.02)
        await publish(bus, *map(health, range(3, 5)))
        await handle(bus, 5)
        await bus.replay([HEALTH], group="readers", since=between)
        assert [epoch(d) for d in await handle(bus, 2)] == [3, 4]
        await bus.replay([HEALTH], group="readers")
        assert [epoch(d) for d in await handle(bus, 5)] == [0, 1, 2, 3, 4]


async def test_replay_skips_nothing_that_the_group_has_yet_to_read(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, *map(health, range(4)))
        await handle(bus, 1)
        await bus.replay([HEALTH], group="readers", since=utc_now() + timedelta(hours=1))
        assert [epoch(d) for d in await handle(bus, 3)] == [1, 2, 3]


async def test_new_group_can_have_what_was_published_before_it(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(3)))
        await bus.create_group([HEALTH], group="readers")
        await bus.replay([HEALTH], group="readers")
        assert [epoch(d) for d in await handle(bus, 3)] == [0, 1, 2]


async def test_consumer_that_waits_gets_the_replay(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, health(0))
        await handle(bus, 1)
        reader = bus.subscribe([HEALTH], group="readers", consumer="waiting")
        waits = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0.05)
        await bus.replay([HEALTH], group="readers")
        assert epoch(await waits) == 0


async def test_requeued_letter_has_the_same_bytes(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, health(0))
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        for _ in range(2):
            await (await anext(reader)).dead_letter("it is ugly")
            [letter] = await bus.dead_letters()
            [record] = [record async for record in bus.read([HEALTH])]
            assert letter.data == record.data
            await bus.requeue(letter.letter_id)


async def test_replay_for_a_group_that_a_topic_does_not_have_is_refused(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, health(0))
        await handle(bus, 1)
        with pytest.raises(
            NotFoundError, match=r"control\.kasmina\.commands has no group 'readers'"
        ):
            await bus.replay([HEALTH, COMMANDS], group="readers")
        await publish(bus, health(1))
        assert [epoch(d) for d in await handle(bus, 1)] == [1]


async def test_bad_bounds_are_refused(make_url: MakeUrl, connect: Connect) -> None:
    async with connect(make_url()) as bus:
        naive = datetime(2026, 1, 1)  # noqa: DTZ001 - that is the point
        with pytest.raises(ConfigError, match="has no time zone"):
            await bus.replay([HEALTH], group="readers", since=naive)
        with pytest.raises(ConfigError, match="'yesterday' is no position on this bus"):
            await anext(bus.read([HEALTH], since="yesterday"))
        with pytest.raises(ConfigError, match="one or the other"):
            await anext(bus.read([HEALTH], until=utc_now(), follow=True))
