"""Handlers on every backend: what returning and raising do, one message at a time and several."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import cast

import pytest

from esper.contracts import (
    BackendUnavailableError,
    Bus,
    ConfigError,
    Delivery,
    HealthSignal,
    KasminaCommand,
    MessageError,
    Retry,
    TopicNames,
    consume,
    typed,
)
from esper.contracts.tracing import trace_for

pytestmark = pytest.mark.long

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
SOON = Retry(first_seconds=0.01, longest_seconds=0.05, away_seconds=0.01)
PREFETCHES = pytest.mark.parametrize("prefetch", [1, 10])


async def publish(bus: Bus, *signals: HealthSignal) -> None:
    await bus.create_group([HEALTH], group="readers")
    for signal in signals:
        await bus.publish(signal, sender_id="tests", trace_id=f"run-{signal.epoch}")


def epoch(delivery: Delivery) -> int:
    return cast("HealthSignal", delivery.payload()).epoch


@asynccontextmanager
async def ended(task: asyncio.Task[None], stop: asyncio.Event):
    """Stop the consuming at the end of the context, and let its error out."""
    try:
        yield
    finally:
        stop.set()
        await task


async def nothing_waits(bus: Bus) -> bool:
    """Tell whether a newcomer of the group gets nothing for a moment."""
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, stop.set)
    rest = bus.subscribe([HEALTH], group="readers", consumer="newcomer", stop=stop)
    return await anext(rest, None) is None


@PREFETCHES
async def test_what_a_handler_returned_from_is_acknowledged(
    make_url: MakeUrl, connect: Connect, health: Health, prefetch: int
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(25)))
        seen: list[int] = []
        stop = asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            seen.append(epoch(delivery))
            if len(seen) == 25:
                stop.set()

        await consume(bus, [HEALTH], handle, group="readers", prefetch=prefetch, stop=stop)
        assert seen == list(range(25))
        assert await nothing_waits(bus)


async def test_sync_handler_of_payloads_runs_in_a_thread_within_the_trace(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, health(0), health(1))
        seen: list[tuple[int, str, bool]] = []
        loop, stop = asyncio.get_running_loop(), asyncio.Event()

        def handle(signal: HealthSignal) -> None:
            in_main = threading.current_thread() is threading.main_thread()
            seen.append((signal.epoch, trace_for(None).trace_id, in_main))
            if len(seen) == 2:
                loop.call_soon_threadsafe(stop.set)

        handler = typed(HealthSignal, handle)
        await consume(bus, [HEALTH], handler, group="readers", stop=stop)
    assert seen == [(0, "run-0", False), (1, "run-1", False)]


async def test_handler_that_keeps_failing_ends_in_the_dead_letters_with_its_last_error(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(max_deliveries=3)) as bus:
        await publish(bus, health(0), health(1))
        counts: list[int] = []
        good = asyncio.Event()
        stop = asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            if epoch(delivery):
                good.set()
                return
            counts.append(delivery.delivery_count)
            raise ValueError(f"try number {len(counts)}")

        consuming = asyncio.create_task(
            consume(bus, [HEALTH], handle, group="readers", retry=SOON, stop=stop)
        )
        async with ended(consuming, stop):
            await good.wait()
            while not (letters := await bus.dead_letters()):
                await asyncio.sleep(0.01)
    [letter] = letters
    assert counts == [1, 2, 3]
    assert letter.reason == "failed 3 times, the last time with ValueError('try number 3')"
    assert letter.delivery_count == 3


async def test_message_error_goes_to_the_dead_letters_at_once(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, health(0))
        told: list[Exception] = []
        stop = asyncio.Event()

        async def handle(_: Delivery) -> None:
            stop.set()
            raise MessageError("no such layer")

        await consume(
            bus,
            [HEALTH],
            handle,
            group="readers",
            on_error=lambda _, error: told.append(error),
            stop=stop,
        )
        [letter] = await bus.dead_letters()
    assert letter.reason == "no such layer"
    assert [str(error) for error in told] == ["no such layer"]


async def test_message_of_another_model_goes_to_the_dead_letters(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, health(0))
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.3, stop.set)

        async def handle(command: KasminaCommand) -> None:
            raise AssertionError(command)

        handler = typed(KasminaCommand, handle)
        await consume(bus, [HEALTH], handler, group="readers", stop=stop)
        [letter] = await bus.dead_letters()
    assert "a handler of KasminaCommand got a HealthSignal" in letter.reason


async def test_server_that_is_away_is_not_the_message_s_fault(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(max_deliveries=2)) as bus:
        await publish(bus, health(0))
        counts: list[int] = []
        stop = asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            counts.append(delivery.delivery_count)
            if len(counts) < 5:
                raise BackendUnavailableError("the library is away")
            stop.set()

        await consume(bus, [HEALTH], handle, group="readers", retry=SOON, stop=stop)
        assert counts == [1] * 5
        assert await bus.dead_letters() == []
        assert await nothing_waits(bus)


async def test_what_a_handler_settles_itself_is_left_alone(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(3)))
        seen: list[tuple[int, int]] = []
        stop = asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            seen.append((epoch(delivery), delivery.delivery_count))
            if seen[-1] == (0, 1):
                await delivery.nack()
            elif epoch(delivery) == 1:
                await delivery.dead_letter("not today")
                raise ValueError("after it was settled")
            if len(seen) == 4:
                stop.set()

        await consume(bus, [HEALTH], handle, group="readers", stop=stop)
        [letter] = await bus.dead_letters()
        assert sorted(seen) == [(0, 1), (0, 2), (1, 1), (2, 1)]
        assert letter.reason == "not today"


async def test_slow_handler_is_no_dead_one(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(0.3)) as bus:
        await publish(bus, health(0))
        seen: list[int] = []
        stop = asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            seen.append(delivery.delivery_count)
            await asyncio.sleep(1.0)
            stop.set()

        both = [
            consume(bus, [HEALTH], handle, group="readers", consumer=name, stop=stop)
            for name in ("one", "two")
        ]
        await asyncio.gather(*both)
    assert seen == [1]


async def test_several_are_handled_at_the_same_time(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(8)))
        together = asyncio.Barrier(4)
        seen: list[int] = []
        stop = asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            await together.wait()
            seen.append(epoch(delivery))
            if len(seen) == 8:
                stop.set()

        await consume(bus, [HEALTH], handle, group="readers", concurrency=4, prefetch=2, stop=stop)
        assert sorted(seen) == list(range(8))
        assert await nothing_waits(bus)


async def test_messages_that_were_tried_before_are_never_handled_beside_each_other(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(2.0)) as bus:
        await publish(bus, *map(health, range(3)))
        first = bus.subscribe([HEALTH], group="readers", consumer="first")
        for delivery in [await anext(first) for _ in range(3)]:
            await delivery.nack()
        await first.aclose()
        num_in_hand = 0
        most_in_hand = 0
        seen: set[int] = set()
        stop = asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            nonlocal num_in_hand, most_in_hand
            assert delivery.delivery_count == 2
            num_in_hand += 1
            most_in_hand = max(most_in_hand, num_in_hand)
            await asyncio.sleep(0.2)
            num_in_hand -= 1
            seen.add(epoch(delivery))
            if len(seen) == 3:
                stop.set()

        await consume(bus, [HEALTH], handle, group="readers", concurrency=3, stop=stop)
    assert (most_in_hand, seen) == (1, {0, 1, 2})


async def test_error_that_on_error_raises_ends_the_consuming(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    def refuse(_: Delivery, error: Exception) -> None:
        raise error

    async def handle(_: Delivery) -> None:
        raise KeyError("a bug")

    async with connect(make_url()) as bus:
        await publish(bus, health(0))
        with pytest.raises(KeyError, match="a bug"):
            await consume(bus, [HEALTH], handle, group="readers", concurrency=2, on_error=refuse)
        again = await anext(bus.subscribe([HEALTH], group="readers", consumer="next"))
        assert again.delivery_count == 2


async def test_drain_finishes_what_was_fetched_and_leaves_the_rest_untried(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(30)))
        seen: list[int] = []
        stop = asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            seen.append(epoch(delivery))
            stop.set()

        await consume(bus, [HEALTH], handle, group="readers", prefetch=10, stop=stop)
        assert seen == list(range(len(seen)))
        assert len(seen) in (1, 10)  # in memory nothing is fetched ahead
        rest = await anext(bus.subscribe([HEALTH], group="readers", consumer="next"))
        assert (epoch(rest), rest.delivery_count) == (len(seen), 1)


@PREFETCHES
async def test_drain_gives_back_uncounted_what_takes_too_long(
    make_url: MakeUrl, connect: Connect, health: Health, prefetch: int
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(3)))
        stop = asyncio.Event()

        async def hang(_: Delivery) -> None:
            stop.set()
            await asyncio.Event().wait()

        await consume(
            bus, [HEALTH], hang, group="readers", prefetch=prefetch, stop=stop, grace_seconds=0.1
        )
        rest = bus.subscribe([HEALTH], group="readers", consumer="next", prefetch=prefetch)
        found = [await anext(rest) for _ in range(3)]
        assert {epoch(d): d.delivery_count for d in found} == {0: 1, 1: 1, 2: 1}


async def test_drain_gives_nothing_to_others_that_is_still_in_hand(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, *map(health, range(2)))
        seen: list[int] = []
        stop, others_stop = asyncio.Event(), asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            seen.append(epoch(delivery))
            if len(seen) == 2:
                stop.set()
            await asyncio.sleep(0.3)

        consuming = asyncio.create_task(
            consume(bus, [HEALTH], handle, group="readers", concurrency=3, stop=stop)
        )
        await stop.wait()
        others = asyncio.create_task(
            consume(bus, [HEALTH], handle, group="readers", consumer="other", stop=others_stop)
        )
        await consuming
        others_stop.set()
        await others
    assert sorted(seen) == [0, 1]


async def test_idle_consumer_ends_at_once_when_told_to_stop(
    make_url: MakeUrl, connect: Connect
) -> None:
    async with connect(make_url()) as bus:
        stop = asyncio.Event()
        told: list[Delivery] = []
        consuming = asyncio.create_task(
            consume(bus, [HEALTH], told.append, group="readers", stop=stop, grace_seconds=1000.0)
        )
        await asyncio.sleep(0.1)
        stop.set()
        await consuming
    assert told == []


@pytest.mark.parametrize("concurrency", [0, -1])
async def test_impossible_concurrency_is_refused(
    make_url: MakeUrl, connect: Connect, concurrency: int
) -> None:
    async with connect(make_url()) as bus:
        with pytest.raises(ConfigError, match="expected 1 or more"):
            await consume(bus, [HEALTH], print, group="readers", concurrency=concurrency)


def test_retries_wait_longer_and_longer_up_to_a_limit() -> None:
    retry = Retry(first_seconds=1.0, longest_seconds=10.0)
    assert [retry.delay_seconds(n) for n in range(1, 7)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert retry.delay_seconds(1_000_000) == 10.0
    with pytest.raises(ConfigError, match="first_seconds <= longest_seconds"):
        Retry(first_seconds=2.0, longest_seconds=1.0)
