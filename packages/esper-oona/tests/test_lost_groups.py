"""What only a Redis server can lose: groups that vanish, streams that are flushed, dead consumers.

Also how what a dead consumer held is taken over, and what the tending script may trim.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from esper.contracts import Bus, GroupLosses, SystemStatePacket, TopicNames
from esper.oona.options import RedisOptions
from esper.oona.redis_letters import groups_key
from esper.oona.redis_membership import sweep_consumers
from esper.oona.redis_tending import tend

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]

EPOCHS = TopicNames.SYSTEM_EVENTS_EPOCH


def epoch_event(epoch: int) -> SystemStatePacket:
    return SystemStatePacket(
        run_id="run", epoch=epoch, step=epoch, val_loss=0.5, learning_rate=0.1, num_parameters=7
    )


async def publish(bus: Bus, first: int, last: int) -> None:
    events = [epoch_event(epoch) for epoch in range(first, last)]
    await bus.publish_many(events, sender_id="tests", trace_id="run-1")


@asynccontextmanager
async def reading(bus: Bus, *, prefetch: int = 10, consumer: str = "one") -> AsyncGenerator[Any]:
    """Give a function that takes and acknowledges so many messages and returns their epochs."""
    found = bus.subscribe([EPOCHS], group="readers", consumer=consumer, prefetch=prefetch)

    async def take(number: int) -> list[int]:
        epochs: list[int] = []
        for _ in range(number):
            delivery = await anext(found)
            await delivery.ack()
            payload = delivery.payload()
            assert isinstance(payload, SystemStatePacket)
            epochs.append(payload.epoch)
        return epochs

    async with aclosing(found):
        yield take


@asynccontextmanager
async def raw_client(url: str) -> AsyncGenerator[tuple[Any, str]]:
    """Give a client of the server, and the key of the topic's stream."""
    async with Redis.from_url(url.partition("?")[0]) as raw:  # pyright: ignore[reportUnknownMemberType]
        yield raw, f"{RedisOptions.from_url(url).prefix}:{EPOCHS.value}"


async def test_consumer_that_comes_after_its_group_was_destroyed_misses_nothing(
    redis_url: MakeUrl, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    url = redis_url()
    async with connect(url) as bus, raw_client(url) as (raw, key):
        await bus.create_group([EPOCHS], group="readers")
        await publish(bus, 0, 5)
        async with reading(bus) as take:
            assert await take(3) == [0, 1, 2]
        await tend(raw, RedisOptions.from_url(url), EPOCHS)  # somebody looked at it before
        await publish(bus, 5, 8)
        await raw.xgroup_destroy(key, "readers")
    async with connect(url) as bus:
        async with reading(bus) as take:
            assert await take(5) == [3, 4, 5, 6, 7]
        losses = GroupLosses(topic=EPOCHS, group="readers", num_lost=0, num_recreated=1)
        assert await bus.group_losses() == [losses]
        assert not bus.lost
    said = capsys.readouterr().err
    assert '"event": "data loss on the bus"' in said
    assert "consumer group vanished" in said


async def test_group_that_vanished_still_protects_what_it_had_not_acknowledged(
    redis_url: MakeUrl, connect: Connect
) -> None:
    url = redis_url() + "&retain=2,0.001s"
    options = RedisOptions.from_url(url)
    async with connect(url) as bus, raw_client(url) as (raw, key):
        await bus.create_group([EPOCHS], group="readers")
        await publish(bus, 0, 6)
        look = await tend(raw, options, EPOCHS)
        assert look is not None
        assert (look.length, look.num_trimmed) == (6, 0)
        await raw.xgroup_destroy(key, "readers")
        look = await tend(raw, options, EPOCHS)
        assert look is not None
        assert (look.length, [group.is_missing for group in look.groups]) == (6, [True])
        async with reading(bus) as take:
            assert await take(6) == [0, 1, 2, 3, 4, 5]
        await bus.remove_group([EPOCHS], group="readers")
        look = await tend(raw, options, EPOCHS)
        assert look is not None
        assert (look.length, look.groups) == (0, [])


async def test_flushed_server_is_noticed_by_the_next_read_and_counted(
    redis_url: MakeUrl, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    url = redis_url(0.4)
    options = RedisOptions.from_url(url)
    async with connect(url) as bus, raw_client(url) as (raw, key):
        await bus.create_group([EPOCHS], group="readers")
        await publish(bus, 0, 4)
        async with reading(bus, prefetch=1) as take:
            assert await take(1) == [0]
            await raw.delete(key, groups_key(options, EPOCHS))
            await publish(bus, 4, 6)
            assert await take(2) == [4, 5]
        assert bus.lost == {EPOCHS: 3}
        assert await bus.group_losses() == [
            GroupLosses(topic=EPOCHS, group="readers", num_lost=3, num_recreated=1)
        ]
    assert capsys.readouterr().err.count("data loss on the bus") == 1


async def test_entries_in_hand_are_not_trimmed_and_acknowledged_ones_are(
    redis_url: MakeUrl, connect: Connect
) -> None:
    url = redis_url() + "&retain=2"
    options = RedisOptions.from_url(url)
    async with connect(url) as bus, raw_client(url) as (raw, _):
        await bus.create_group([EPOCHS], group="readers")
        await publish(bus, 0, 8)
        found = bus.subscribe([EPOCHS], group="readers", consumer="one")
        async with aclosing(found):
            deliveries = [await anext(found) for _ in range(5)]
            for delivery in (*deliveries[:2], *deliveries[3:]):
                await delivery.ack()
            look = await tend(raw, options, EPOCHS)
            assert look is not None
            assert (look.length, look.num_trimmed) == (6, 2)  # the third holds up the rest
            await deliveries[2].ack()
            look = await tend(raw, options, EPOCHS)
            assert look is not None
            assert (look.length, look.num_trimmed) == (3, 3)
        assert not bus.lost


async def test_consumer_that_ends_takes_its_name_back_and_leaves_what_it_held(
    redis_url: MakeUrl, connect: Connect
) -> None:
    url = redis_url()
    async with connect(url) as bus, raw_client(url) as (raw, key):
        await bus.create_group([EPOCHS], group="readers")
        await publish(bus, 0, 3)
        async with reading(bus, consumer="first") as take:
            assert await take(1) == [0]
        names = {row["name"]: row["pending"] for row in await raw.xinfo_consumers(key, "readers")}
        assert names == {b"released": 2}
        async with reading(bus, consumer="second") as take:
            assert await take(2) == [1, 2]
        names = {row["name"]: row["pending"] for row in await raw.xinfo_consumers(key, "readers")}
        assert names == {b"released": 0}


async def test_only_names_that_hold_nothing_and_were_silent_for_long_are_removed(
    redis_url: MakeUrl, connect: Connect
) -> None:
    url = redis_url()
    async with connect(url) as bus, raw_client(url) as (raw, key):
        await bus.create_group([EPOCHS], group="readers")
        await publish(bus, 0, 1)
        await raw.xreadgroup("readers", "killed", {key: ">"})
        await raw.xgroup_createconsumer(key, "readers", "gone")
        assert await sweep_consumers(raw, [key, "no stream"], "readers", idle_seconds=600.0) == 0
        assert await sweep_consumers(raw, [key, "no stream"], "readers") == 1
        [killed] = await raw.xinfo_consumers(key, "readers")
        assert (killed["name"], killed["pending"]) == (b"killed", 1)


@pytest.mark.parametrize("prefetch", [1, 100])
async def test_what_a_killed_consumer_held_is_taken_over_and_only_what_is_tried_is_counted(
    redis_url: MakeUrl, connect: Connect, prefetch: int
) -> None:
    url = redis_url(0.2)
    async with connect(url) as bus, raw_client(url) as (raw, key):
        await bus.create_group([EPOCHS], group="readers")
        await publish(bus, 0, 300)
        await raw.xreadgroup("readers", "killed", {key: ">"}, count=300)
        pending = await raw.xpending_range(key, "readers", "-", "+", 1)
        while pending[0]["time_since_delivered"] < 200:
            await asyncio.sleep(0.02)
            pending = await raw.xpending_range(key, "readers", "-", "+", 1)
        found = bus.subscribe([EPOCHS], group="readers", consumer="one", prefetch=prefetch)
        async with aclosing(found):
            await publish(bus, 300, 301)
            first = await anext(found)
            rows = await raw.xpending_range(key, "readers", "-", "+", 300)
            assert [row["times_delivered"] for row in rows] == [2] + 299 * [1]
            counts = {first.delivery_count}
            await first.ack()
            for _ in range(300):
                delivery = await anext(found)
                counts.add(delivery.delivery_count)
                await delivery.ack()
        assert counts == {1, 2}
        assert (await raw.xpending(key, "readers"))["pending"] == 0


@pytest.mark.parametrize("delay_seconds", [0.0, 1.0, 100.0])
async def test_giving_back_to_a_group_that_has_vanished_is_no_error_and_it_is_handed_out_anew(
    redis_url: MakeUrl, connect: Connect, delay_seconds: float
) -> None:
    url = redis_url()
    async with connect(url) as bus, raw_client(url) as (raw, key):
        await bus.create_group([EPOCHS], group="readers")
        await publish(bus, 0, 2)
        found = bus.subscribe([EPOCHS], group="readers", consumer="one", prefetch=10)
        async with aclosing(found):
            held = [await anext(found) for _ in range(2)]
            await raw.xgroup_destroy(key, "readers")
            for delivery in held:
                await delivery.renew()
            await held[0].nack(delay_seconds=delay_seconds)
            await held[1].nack(delay_seconds=delay_seconds, counted=False)
            again = [await anext(found) for _ in range(2)]
            assert [each.message for each in again] == [each.message for each in held]
            assert [each.delivery_count for each in again] == [1, 1]


async def test_groups_that_are_created_while_topics_are_trimmed_get_all_that_comes_after(
    redis_url: MakeUrl, connect: Connect
) -> None:
    """Nothing may be trimmed on the word of the groups of a moment ago."""
    url = redis_url() + "&retain=1,0.001s"
    options = RedisOptions.from_url(url)
    num_published = 0

    async def publish_next(bus: Bus, number: int) -> None:
        nonlocal num_published
        first, num_published = num_published, num_published + number
        await publish(bus, first, first + number)

    async with connect(url) as bus, connect(url) as other, raw_client(url) as (raw, _):
        owed_from: dict[str, int] = {}
        num_trimmed = 0
        for number in range(40):
            group = f"group-{number}"

            async def begin(group: str = group) -> None:
                await other.create_group([EPOCHS], group=group)
                owed_from[group] = num_published
                await publish_next(other, 2)

            looks = [tend(raw, options, EPOCHS) for _ in range(3)]
            found = await asyncio.gather(publish_next(bus, 3), begin(), *looks)
            num_trimmed += sum(look.num_trimmed for look in found[2:] if look is not None)
            if number % 4 == 3:  # what nobody waits for any more goes at the next look
                old = list(owed_from)[0:3]
                await asyncio.gather(
                    *(bus.remove_group([EPOCHS], group=name) for name in old),
                    *(tend(raw, options, EPOCHS) for _ in range(3)),
                )
                for name in old:
                    del owed_from[name]
        for group, first in owed_from.items():
            async with aclosing(
                bus.subscribe([EPOCHS], group=group, consumer="one", prefetch=500)
            ) as reader:
                epochs: set[int] = set()
                while not epochs.issuperset(range(first, num_published)):
                    delivery = await anext(reader)
                    payload = delivery.payload()
                    assert isinstance(payload, SystemStatePacket)
                    epochs.add(payload.epoch)
                    await delivery.ack()
        assert not bus.lost
        assert num_trimmed


async def test_word_about_a_delivery_from_before_its_group_vanished_concerns_no_later_one(
    redis_url: MakeUrl, connect: Connect
) -> None:
    url = redis_url()
    async with connect(url) as bus, raw_client(url) as (raw, key):
        await bus.create_group([EPOCHS], group="readers")
        await publish(bus, 0, 1)
        found = bus.subscribe([EPOCHS], group="readers", consumer="one")
        before = await anext(found)
        await raw.xgroup_destroy(key, "readers")
        after = await anext(found)
        assert before.position == after.position
        await before.nack(counted=False)
        [pending] = await raw.xpending_range(key, "readers", "-", "+", 10)
        assert pending["times_delivered"] == after.delivery_count == 1
        assert pending["time_since_delivered"] < 60_000  # still held
        await after.nack()
        assert (await anext(found)).delivery_count == 2


async def test_requeued_letter_is_not_lost_with_its_group(
    redis_url: MakeUrl, connect: Connect
) -> None:
    url = redis_url()
    async with connect(url) as bus, raw_client(url) as (raw, key):
        await bus.create_group([EPOCHS], group="readers")
        await publish(bus, 0, 1)
        found = bus.subscribe([EPOCHS], group="readers", consumer="one")
        await (await anext(found)).dead_letter("ugly")
        await asyncio.sleep(0.002)  # what came in the same millisecond may be repeated
        await publish(bus, 1, 3)
        for _ in range(2):
            await (await anext(found)).ack()
        await tend(raw, RedisOptions.from_url(url), EPOCHS)  # everything is acknowledged
        [letter] = await bus.dead_letters()
        await bus.requeue(letter.letter_id)
        await raw.xgroup_destroy(key, "readers")
        async with reading(bus, consumer="two") as take:
            assert 0 in await take(3)
