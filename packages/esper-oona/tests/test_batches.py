"""Batch handlers on every backend: when a batch is full, and what a bad message does to its neighbours."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import cast

import pytest

from esper.contracts import (
    BackendUnavailableError,
    Bus,
    ConfigError,
    Delivery,
    HealthSignal,
    Retry,
    TopicNames,
    consume_batches,
)

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
SOON = Retry(first_seconds=0.01, longest_seconds=0.05, away_seconds=0.01)


async def publish(bus: Bus, *signals: HealthSignal) -> None:
    await bus.create_group([HEALTH], group="readers")
    await bus.publish_many(signals, sender_id="tests", trace_id="run-1")


def epochs(batch: Sequence[Delivery]) -> list[int]:
    return [cast("HealthSignal", delivery.payload()).epoch for delivery in batch]


async def test_batches_are_full_while_there_is_enough_and_smaller_when_the_time_is_up(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(25)))
        seen: list[list[int]] = []
        stop = asyncio.Event()

        async def handle(batch: Sequence[Delivery]) -> None:
            seen.append(epochs(batch))
            if sum(map(len, seen)) == 25:
                stop.set()

        await consume_batches(
            bus, [HEALTH], handle, group="readers", max_size=10, max_seconds=0.3, stop=stop
        )
        assert seen == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
        again = bus.subscribe([HEALTH], group="readers", consumer="next")
        await publish(bus, health(99))
        assert epochs([await anext(again)]) == [99]


async def test_bad_message_of_a_batch_goes_to_the_dead_letters_alone(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(max_deliveries=2)) as bus:
        await publish(bus, *map(health, range(10)))
        handled: set[int] = set()
        sizes: list[int] = []
        stop = asyncio.Event()

        def handle(batch: Sequence[Delivery]) -> None:
            sizes.append(len(batch))
            if 3 in epochs(batch):
                raise ValueError("three is bad")
            handled.update(epochs(batch))

        consuming = asyncio.create_task(
            consume_batches(
                bus,
                [HEALTH],
                handle,
                group="readers",
                max_size=10,
                max_seconds=0.2,
                retry=SOON,
                stop=stop,
            )
        )
        while not (letters := await bus.dead_letters()):
            await asyncio.sleep(0.01)
        stop.set()
        await consuming
    [letter] = letters
    assert b'"epoch":3' in letter.data
    assert letter.reason == "failed 2 times, the last time with ValueError('three is bad')"
    assert handled == set(range(10)) - {3}
    assert sizes == [10, *[1] * 10, 1]


async def test_handler_may_answer_for_each_message_of_a_batch(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(4)))
        seen: list[list[int]] = []
        stop = asyncio.Event()

        async def handle(batch: Sequence[Delivery]) -> None:
            seen.append(epochs(batch))
            if len(seen) == 1:
                await batch[1].dead_letter("one is bad")
                await batch[2].nack()
            else:
                stop.set()

        await consume_batches(
            bus, [HEALTH], handle, group="readers", max_size=4, max_seconds=5.0, stop=stop
        )
        [letter] = await bus.dead_letters()
        assert seen == [[0, 1, 2, 3], [2]]
        assert letter.reason == "one is bad"


async def test_batch_comes_again_uncounted_when_a_server_was_away(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(max_deliveries=1)) as bus:
        await publish(bus, *map(health, range(3)))
        counts: list[int] = []
        stop = asyncio.Event()

        async def handle(batch: Sequence[Delivery]) -> None:
            counts.extend(delivery.delivery_count for delivery in batch)
            if len(counts) <= 3:
                raise BackendUnavailableError("the store is away")
            if len(counts) == 6:
                stop.set()

        await consume_batches(
            bus,
            [HEALTH],
            handle,
            group="readers",
            max_size=3,
            max_seconds=0.2,
            retry=SOON,
            stop=stop,
        )
        assert counts == [1] * 6
        assert await bus.dead_letters() == []


async def test_drained_batch_that_takes_too_long_is_given_back_uncounted(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(3)))
        stop = asyncio.Event()

        async def hang(_: Sequence[Delivery]) -> None:
            stop.set()
            await asyncio.Event().wait()

        await consume_batches(
            bus, [HEALTH], hang, group="readers", max_size=3, stop=stop, grace_seconds=0.1
        )
        rest = bus.subscribe([HEALTH], group="readers", consumer="next")
        found = [await anext(rest) for _ in range(3)]
        assert {delivery.delivery_count for delivery in found} == {1}


@pytest.mark.parametrize(("max_size", "max_seconds"), [(0, 1.0), (10, -1.0), (10, float("nan"))])
async def test_impossible_batch_is_refused(
    make_url: MakeUrl, connect: Connect, max_size: int, max_seconds: float
) -> None:
    async with connect(make_url()) as bus:
        with pytest.raises(ConfigError, match="expected 1 or more, 0 or more"):
            await consume_batches(
                bus, [HEALTH], print, group="g", max_size=max_size, max_seconds=max_seconds
            )
