"""What becomes of a delivery, on every backend: given back, kept, counted, set aside, requeued."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import pytest

from esper.contracts import (
    Bus,
    ConfigError,
    Delivery,
    HealthSignal,
    NotFoundError,
    TopicNames,
)

pytestmark = pytest.mark.long

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
PREFETCHES = pytest.mark.parametrize("prefetch", [1, 10])


async def publish(bus: Bus, *signals: HealthSignal, group: str = "readers") -> None:
    await bus.create_group([HEALTH], group=group)
    for signal in signals:
        await bus.publish(signal, sender_id="tests", trace_id="run-1")


def read(bus: Bus, *, prefetch: int = 1, consumer: str = "one") -> AsyncIterator[Delivery]:
    return bus.subscribe([HEALTH], group="readers", consumer=consumer, prefetch=prefetch)


def epoch(delivery: Delivery) -> int:
    return cast("HealthSignal", delivery.payload()).epoch


@PREFETCHES
async def test_message_given_back_comes_again_after_the_delay(
    make_url: MakeUrl, connect: Connect, health: Health, prefetch: int
) -> None:
    async with connect(make_url(2.0)) as bus:
        await publish(bus, health(0))
        reader = read(bus, prefetch=prefetch)
        for expected_count in (1, 2):
            delivery = await anext(reader)
            assert delivery.delivery_count == expected_count
            await delivery.nack()
        third = await anext(reader)
        before = asyncio.get_running_loop().time()
        await third.nack(delay_seconds=0.3)
        fourth = await anext(reader)
        assert asyncio.get_running_loop().time() - before >= 0.29
        assert fourth.delivery_count == 4
        assert fourth.message == third.message
        await fourth.ack()


async def test_delay_may_be_longer_than_the_reclaim_time(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(0.2, 3)) as bus:
        await publish(bus, health(0), health(1))
        first = read(bus)
        before = asyncio.get_running_loop().time()
        await (await anext(first)).nack(delay_seconds=1.0, counted=False)
        await (await anext(first)).ack()
        second = read(bus, consumer="two")
        delivery = await anext(second)
        assert asyncio.get_running_loop().time() - before >= 0.99
        assert (epoch(delivery), delivery.delivery_count) == (0, 1)
        await delivery.nack()
        again = await anext(second)
        assert again.delivery_count == 2
        await again.ack()


@PREFETCHES
async def test_message_given_back_does_not_hold_up_the_others(
    make_url: MakeUrl, connect: Connect, health: Health, prefetch: int
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(5)))
        reader = read(bus, prefetch=prefetch)
        bad = await anext(reader)
        await bad.nack(delay_seconds=30.0)
        for expected in range(1, 5):
            delivery = await anext(reader)
            assert epoch(delivery) == expected
            await delivery.ack()


async def test_attempt_that_is_not_the_message_s_fault_is_not_counted(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(max_deliveries=2)) as bus:
        await publish(bus, health(0))
        reader = read(bus)
        for _ in range(4):
            delivery = await anext(reader)
            assert delivery.delivery_count == 1
            await delivery.nack(counted=False)
        await (await anext(reader)).nack()
        assert (await anext(reader)).delivery_count == 2


@PREFETCHES
async def test_message_handed_out_too_often_goes_to_the_dead_letters_with_the_reason(
    make_url: MakeUrl, connect: Connect, health: Health, prefetch: int
) -> None:
    async with connect(make_url(max_deliveries=3)) as bus:
        await publish(bus, health(0), health(1))
        reader = read(bus, prefetch=prefetch)
        handed_out: list[int] = []
        while len(handed_out) < 4:
            delivery = await anext(reader)
            handed_out.append(epoch(delivery))
            await (delivery.ack() if epoch(delivery) else delivery.nack())
        waits = asyncio.ensure_future(anext(reader))
        while not (letters := await bus.dead_letters()):
            await asyncio.sleep(0.01)
        [letter] = letters
        waits.cancel()
        await asyncio.wait({waits})
    assert sorted(handed_out) == [0, 0, 0, 1]
    assert letter.reason == "handed out 3 times and never acknowledged"
    assert (letter.topic, letter.group, letter.delivery_count) == (HEALTH, "readers", 3)
    assert b'"epoch":0' in letter.data


async def test_dead_letter_is_requeued_to_its_group_alone_as_it_was(
    make_url: MakeUrl, connect: Connect, health: Health, capsys: pytest.CaptureFixture[str]
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="others")
        await publish(bus, health(0))
        others = bus.subscribe([HEALTH], group="others", consumer="one")
        await (await anext(others)).ack()
        reader = read(bus)
        first = await anext(reader)
        await first.dead_letter("it is ugly")
        await first.dead_letter("twice")
        [letter] = await bus.dead_letters()
        assert letter.reason == "it is ugly"
        await bus.requeue(letter.letter_id)
        again = await anext(reader)
        assert (again.message, again.delivery_count) == (first.message, 1)
        await again.ack()
        assert await bus.dead_letters() == []
        with pytest.raises(NotFoundError, match="there is no dead letter"):
            await bus.requeue(letter.letter_id)
        await publish(bus, health(1))
        assert epoch(await anext(others)) == 1
    assert "it is ugly" in capsys.readouterr().err


async def test_kept_message_stays_however_long_it_takes(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(0.3)) as bus:
        await publish(bus, health(0), health(1))
        slowly = read(bus, consumer="slow")
        slow = await anext(slowly)
        quick = read(bus, consumer="quick")
        async with slow.keep():
            await (await anext(quick)).ack()
            waits = asyncio.ensure_future(anext(quick))
            done, _ = await asyncio.wait({waits}, timeout=0.8)
            assert not done
        again = await waits
        assert (again.message, again.delivery_count) == (slow.message, 2)


async def test_what_a_slow_consumer_fetched_ahead_goes_to_others_untried(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(0.4)) as bus:
        await publish(bus, *map(health, range(6)))
        slowly = read(bus, consumer="slow", prefetch=10)
        slow = await anext(slowly)
        async with slow.keep():
            quick = read(bus, consumer="quick", prefetch=10)
            for expected in range(1, 6):
                delivery = await anext(quick)
                assert (epoch(delivery), delivery.delivery_count) == (expected, 1)
                await delivery.ack()


async def test_acknowledgements_of_a_closed_subscription_all_count(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(7)))
        reader = bus.subscribe([HEALTH], group="readers", consumer="one", prefetch=5)
        for _ in range(3):
            await (await anext(reader)).ack()
        await reader.aclose()
        rest = read(bus, prefetch=5)
        counts = {epoch(d): d.delivery_count for d in [await anext(rest) for _ in range(4)]}
    assert counts == {3: 1, 4: 1, 5: 1, 6: 1}


@pytest.mark.parametrize("delay_seconds", [-1.0, float("nan")])
async def test_impossible_delay_is_refused(
    make_url: MakeUrl, connect: Connect, health: Health, delay_seconds: float
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, health(0))
        reader = read(bus)
        delivery = await anext(reader)
        with pytest.raises(ConfigError, match="expected 0 or more"):
            await delivery.nack(delay_seconds=delay_seconds)


async def test_impossible_prefetch_is_refused(make_url: MakeUrl, connect: Connect) -> None:
    async with connect(make_url()) as bus:
        with pytest.raises(ConfigError, match="has prefetch 0; expected 1 or more"):
            await anext(read(bus, prefetch=0))


async def test_cancelling_at_the_very_end_of_keeping_is_not_lost(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, health(0))
        reader = read(bus)
        delivery = await anext(reader)

        async def handle() -> None:
            async with delivery.keep():
                await asyncio.sleep(0)
                asyncio.get_running_loop().call_soon(handling.cancel)
            raise AssertionError("the cancellation was swallowed")

        handling = asyncio.ensure_future(handle())
        await asyncio.wait({handling})
        assert handling.cancelled()


async def test_word_that_comes_too_late_does_not_concern_the_next_delivery(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(0.2)) as bus:
        await publish(bus, health(0))
        reader = read(bus)
        first = await anext(reader)
        second = await anext(reader)  # overdue: the same consumer gets it again
        await first.nack(counted=False)
        third = await anext(reader)
        assert (second.delivery_count, third.delivery_count) == (2, 3)


async def test_letter_of_a_removed_group_stays_until_the_group_is_back(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, health(0))
        reader = read(bus)
        await (await anext(reader)).dead_letter("ugly")
        await cast("Any", reader).aclose()
        await bus.remove_group([HEALTH], group="readers")
        [letter] = await bus.dead_letters()
        with pytest.raises(NotFoundError, match=r"'readers', which is gone .* create the group"):
            await bus.requeue(letter.letter_id)
        assert await bus.dead_letters() == [letter]
        await bus.create_group([HEALTH], group="readers")
        await bus.requeue(letter.letter_id)
        assert epoch(await anext(read(bus))) == 0


async def test_what_was_set_aside_while_it_waited_and_requeued_is_in_one_hand_only(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, health(0))
        reader = read(bus)
        delivery = await anext(reader)
        await delivery.nack()
        await delivery.dead_letter("ugly")
        [letter] = await bus.dead_letters()
        await bus.requeue(letter.letter_id)
        assert epoch(await anext(reader)) == 0
        await publish(bus, health(1))
        assert epoch(await anext(reader)) == 1
