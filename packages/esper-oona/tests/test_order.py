"""Messages of one key in their order, on every backend: with retries, several consumers, and kills."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from threading import Event, Thread
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from esper.contracts import (
    BackendUnavailableError,
    Bus,
    ConfigError,
    Delivery,
    KasminaCommand,
    MessageError,
    Payload,
    Retry,
    SeedState,
    TopicNames,
    consume,
)
from esper.oona import redis_exclusive
from esper.oona.redis_script import run_script

pytestmark = pytest.mark.long

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]

COMMANDS = TopicNames.CONTROL_KASMINA_COMMANDS
SOON = Retry(first_seconds=0.05, longest_seconds=0.1, away_seconds=0.05)


def seed_of(payload: Payload) -> tuple[int, int]:
    return cast("KasminaCommand", payload).seed_id


def command(seed: int, epoch: int) -> KasminaCommand:
    return KasminaCommand(seed_id=(seed, 0), target=SeedState.CULLED, epoch=epoch, reason="tests")


def place(delivery: Delivery) -> tuple[int, int]:
    """Return the seed and the epoch of a command."""
    payload = cast("KasminaCommand", delivery.payload())
    return payload.seed_id[0], payload.epoch


async def publish(bus: Bus, *, seeds: int, epochs: int) -> None:
    await bus.create_group([COMMANDS], group="seeds")
    await bus.publish_many(
        [command(seed, epoch) for epoch in range(epochs) for seed in range(seeds)],
        sender_id="tests",
        trace_id="run-1",
    )


class Handled:
    """What was handled, by seed; sets the event when there is enough."""

    def __init__(self, enough: int) -> None:
        self.stop = asyncio.Event()
        self.epochs: defaultdict[int, list[int]] = defaultdict(list)
        self._enough = enough

    def note(self, delivery: Delivery) -> None:
        seed, epoch = place(delivery)
        self.epochs[seed].append(epoch)
        if sum(map(len, self.epochs.values())) >= self._enough:
            self.stop.set()


async def test_keys_go_on_beside_each_other_and_each_in_its_order(
    make_url: MakeUrl, connect: Connect
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, seeds=4, epochs=10)
        handled = Handled(40)
        in_hand: set[int] = set()
        most_in_hand = 0

        async def handle(delivery: Delivery) -> None:
            nonlocal most_in_hand
            seed, _ = place(delivery)
            assert seed not in in_hand
            in_hand.add(seed)
            most_in_hand = max(most_in_hand, len(in_hand))
            await asyncio.sleep(0.005)
            in_hand.remove(seed)
            handled.note(delivery)

        await consume(
            bus,
            [COMMANDS],
            handle,
            group="seeds",
            key=seed_of,
            concurrency=3,
            prefetch=10,
            stop=handled.stop,
        )
        assert most_in_hand == 3
        assert handled.epochs == {seed: list(range(10)) for seed in range(4)}
        assert await bus.dead_letters() == []


async def test_message_that_fails_holds_up_its_key_and_no_other(
    make_url: MakeUrl, connect: Connect
) -> None:
    async with connect(make_url(max_deliveries=3)) as bus:
        await publish(bus, seeds=3, epochs=4)
        handled = Handled(11)
        tries: list[tuple[int, int]] = []
        others_done = asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            seed, epoch = place(delivery)
            if seed == 1 and epoch == 1:
                tries.append((delivery.delivery_count, delivery.attempts_left))
                raise ValueError("no")
            if (
                seed == 2
                and epoch == 1
                and len(handled.epochs[2]) == 1
                and not others_done.is_set()
            ):
                others_done.set()
                raise BackendUnavailableError("away for once")
            handled.note(delivery)

        await consume(
            bus,
            [COMMANDS],
            handle,
            group="seeds",
            key=seed_of,
            concurrency=2,
            prefetch=4,
            retry=SOON,
            stop=handled.stop,
        )
        [letter] = await bus.dead_letters()
    assert tries == [(1, 2), (2, 1), (3, 0)]
    assert handled.epochs == {0: [0, 1, 2, 3], 1: [0, 2, 3], 2: [0, 1, 2, 3]}
    assert letter.reason == "failed 3 times, the last time with ValueError('no')"
    assert letter.delivery_count == 3


async def test_message_error_sets_a_message_aside_and_its_key_goes_on(
    make_url: MakeUrl, connect: Connect
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, seeds=1, epochs=3)
        handled = Handled(2)

        async def handle(delivery: Delivery) -> None:
            if place(delivery) == (0, 0):
                raise MessageError("not this one")
            handled.note(delivery)

        await consume(bus, [COMMANDS], handle, group="seeds", key=seed_of, stop=handled.stop)
        [letter] = await bus.dead_letters()
    assert handled.epochs == {0: [1, 2]}
    assert letter.reason == "not this one"


async def test_message_without_a_key_is_set_aside(make_url: MakeUrl, connect: Connect) -> None:
    def broken(payload: Payload) -> int:
        return {1: 1}[cast("KasminaCommand", payload).epoch]

    async with connect(make_url()) as bus:
        await publish(bus, seeds=1, epochs=2)
        handled = Handled(1)
        await consume(bus, [COMMANDS], handled.note, group="seeds", key=broken, stop=handled.stop)
        [letter] = await bus.dead_letters()
    assert handled.epochs == {0: [1]}
    assert letter.reason == "it has no key to be ordered by: KeyError(0)"


async def test_only_one_consumer_is_active_and_the_next_goes_on_in_order(
    make_url: MakeUrl, connect: Connect
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, seeds=2, epochs=20)
        handled = Handled(40)
        by: list[str] = []
        stops = {name: asyncio.Event() for name in ("one", "two")}

        def consumer(name: str) -> asyncio.Task[None]:
            async def handle(delivery: Delivery) -> None:
                by.append(name)
                handled.note(delivery)
                if len(by) == 10:
                    stops[name].set()
                await asyncio.sleep(0.001)

            return asyncio.create_task(
                consume(
                    bus,
                    [COMMANDS],
                    handle,
                    group="seeds",
                    consumer=name,
                    key=seed_of,
                    prefetch=4,
                    max_waiting=4,
                    stop=stops[name],
                )
            )

        consumers = [consumer(name) for name in stops]
        await handled.stop.wait()
        for stop in stops.values():
            stop.set()
        await asyncio.gather(*consumers)
    switches = [i for i in range(1, len(by)) if by[i] != by[i - 1]]
    assert len(switches) == 1
    assert handled.epochs == {seed: list(range(20)) for seed in range(2)}


async def test_what_only_waited_is_not_counted_as_tried(
    make_url: MakeUrl, connect: Connect
) -> None:
    async with connect(make_url(max_deliveries=2)) as bus:
        await publish(bus, seeds=1, epochs=5)
        for _ in range(4):
            began, stop = asyncio.Event(), asyncio.Event()

            async def hang(_: Delivery, began: asyncio.Event = began) -> None:
                began.set()
                await asyncio.Event().wait()

            consuming = asyncio.create_task(
                consume(
                    bus,
                    [COMMANDS],
                    hang,
                    group="seeds",
                    key=seed_of,
                    prefetch=5,
                    stop=stop,
                    grace_seconds=0.0,
                )
            )
            await began.wait()
            stop.set()
            await consuming
        handled = Handled(5)
        await consume(bus, [COMMANDS], handled.note, group="seeds", key=seed_of, stop=handled.stop)
        assert handled.epochs == {0: [0, 1, 2, 3, 4]}
        assert await bus.dead_letters() == []


async def test_keys_that_wait_for_too_much_hold_up_the_rest(
    make_url: MakeUrl, connect: Connect
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, seeds=1, epochs=4)
        await bus.publish(command(1, 0), sender_id="tests", trace_id="run-1")
        handled = Handled(5)
        order: list[int] = []

        async def handle(delivery: Delivery) -> None:
            order.append(place(delivery)[0])
            await asyncio.sleep(0.02)
            handled.note(delivery)

        await consume(
            bus,
            [COMMANDS],
            handle,
            group="seeds",
            key=seed_of,
            concurrency=2,
            max_waiting=2,
            stop=handled.stop,
        )
        assert order.index(1) >= 3
        with pytest.raises(ConfigError, match="max_waiting 0; expected 1 or more"):
            await consume(bus, [COMMANDS], print, group="seeds", key=seed_of, max_waiting=0)


async def test_requeued_letter_reaches_an_ordered_consumer(
    make_url: MakeUrl, connect: Connect
) -> None:
    async with connect(make_url(2.0)) as bus:
        await publish(bus, seeds=1, epochs=2)
        handled = Handled(2)
        is_second = False

        async def handle(delivery: Delivery) -> None:
            nonlocal is_second
            if place(delivery) == (0, 0) and not is_second:
                is_second = True
                raise MessageError("come again")
            handled.note(delivery)
            if len(handled.epochs[0]) == 1:
                [letter] = await bus.dead_letters()
                await bus.requeue(letter.letter_id)

        await consume(bus, [COMMANDS], handle, group="seeds", key=seed_of, stop=handled.stop)
    assert handled.epochs == {0: [1, 0]}


_CONSUMER = """
import asyncio, os, sys
from esper.contracts import TopicNames, consume
from esper.oona import open_redis_bus

async def main(url, deadly_epoch):
    async def handle(delivery):
        payload = delivery.payload()
        print(payload.seed_id[0], payload.epoch, flush=True)
        if payload.epoch == deadly_epoch and payload.seed_id[0] == 0:
            os._exit(1)
        await asyncio.sleep(0.01)

    bus = open_redis_bus(url)
    await bus.open()
    await consume(
        bus, [TopicNames.CONTROL_KASMINA_COMMANDS], handle, group="seeds",
        key=lambda payload: payload.seed_id, concurrency=2, prefetch=10,
    )

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
"""Says what it handles; one message may end the process."""


async def start(url: str, deadly_epoch: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _CONSUMER,
        url,
        str(deadly_epoch),
        stdout=subprocess.PIPE,
        env=os.environ,
    )


async def said(process: asyncio.subprocess.Process) -> tuple[int, int] | None:
    """Return the seed and the epoch that the process handles next; None when it has ended."""
    assert process.stdout is not None
    words = (await process.stdout.readline()).split()
    return (int(words[0]), int(words[1])) if words else None


def is_in_order(epochs: list[int]) -> bool:
    """Tell whether each epoch comes after the one before it, where some may come once more."""
    return all(later <= max(epochs[:i]) + 1 for i, later in enumerate(epochs) if i)


async def test_order_holds_when_the_active_process_is_killed(
    redis_url: MakeUrl, connect: Connect
) -> None:
    async with connect(redis_url()) as bus:
        await publish(bus, seeds=3, epochs=30)
        epochs: defaultdict[int, list[int]] = defaultdict(list)
        first = await start(redis_url(), -1)
        second = await start(redis_url(), -1)
        active, waiting = first, second
        lines = {p: asyncio.ensure_future(said(p)) for p in (first, second)}
        await asyncio.wait(lines.values(), return_when=asyncio.FIRST_COMPLETED)
        if lines[second].done():
            active, waiting = second, first
        found = await lines[active]
        for _ in range(20):
            assert found is not None
            epochs[found[0]].append(found[1])
            found = await said(active)
        assert not lines[waiting].done()
        active.send_signal(signal.SIGKILL)
        while found is not None:
            epochs[found[0]].append(found[1])
            found = await said(active)
        found = await lines[waiting]
        while found is not None and any(epochs[s][-1:] != [29] for s in range(3)):
            epochs[found[0]].append(found[1])
            if any(epochs[s][-1:] != [29] for s in range(3)):
                found = await said(waiting)
        waiting.kill()
        await asyncio.gather(first.wait(), second.wait())
    for seed in range(3):
        assert set(epochs[seed]) == set(range(30))
        again = [e for i, e in enumerate(epochs[seed]) if e in epochs[seed][:i]]
        assert len(again) <= 10  # what was in hand, or acknowledged a moment ago: the prefetch
        assert is_in_order(epochs[seed])


async def test_order_holds_when_the_answer_to_a_reading_is_lost(
    redis_url: MakeUrl, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, num_lost = run_script, 0

    async def ask_badly(*arguments: Any) -> object:
        nonlocal num_lost
        answer = await ask(*arguments)
        if answer and arguments[1] == redis_exclusive._READ and num_lost < 3:  # pyright: ignore[reportPrivateUsage]
            num_lost += 1
            raise RedisConnectionError("the answer was lost")
        return answer

    monkeypatch.setattr(redis_exclusive, "run_script", ask_badly)
    async with connect(redis_url()) as bus:
        await publish(bus, seeds=2, epochs=10)
        handled = Handled(20)

        async def handle(delivery: Delivery) -> None:
            handled.note(delivery)

        await consume(
            bus,
            [COMMANDS],
            handle,
            group="seeds",
            key=seed_of,
            prefetch=4,
            retry=SOON,
            stop=handled.stop,
        )
    assert num_lost == 3
    assert handled.epochs == {seed: list(range(10)) for seed in range(2)}


async def test_a_leader_that_stands_still_too_long_settles_nothing_more(
    redis_url: MakeUrl, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.oona.redis_lease.LEASE_SECONDS", 0.5)
    url = redis_url()
    frozen, thawed = Event(), Event()
    tried: list[bool] = []

    async def lead() -> None:
        async with connect(url) as bus:
            leading = bus.subscribe([COMMANDS], group="seeds", consumer="one", exclusive=True)
            delivery = await anext(leading)
            assert await delivery.attempt()
            frozen.set()
            thawed.wait()  # its whole event loop stands still
            tried.append(await delivery.attempt())

    async with connect(url) as bus:
        await publish(bus, seeds=1, epochs=3)
        leader = Thread(target=asyncio.run, args=(lead(),))
        leader.start()
        await asyncio.to_thread(frozen.wait)
        handled = Handled(3)

        async def handle(delivery: Delivery) -> None:
            handled.note(delivery)

        await consume(
            bus, [COMMANDS], handle, group="seeds", key=seed_of, stop=handled.stop, retry=SOON
        )
        thawed.set()
        await asyncio.to_thread(leader.join)
    assert handled.epochs == {0: [0, 1, 2]}
    assert tried == [False]
