"""The memory bus alone: clients in several threads and loops, its lifetime, its backlog."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from uuid import uuid4

from esper.contracts import Bus, HealthSignal, TopicNames
from esper.oona.broker import shared_broker

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH


def test_clients_in_two_threads_with_a_loop_each_share_a_broker(
    memory_url: MakeUrl, connect: Connect, health: Health
) -> None:
    received: list[int] = []
    ready = threading.Event()

    async def echo() -> None:
        async with connect(memory_url()) as bus:
            await bus.create_group([HEALTH], group="echo")
            ready.set()
            async for delivery in bus.subscribe([HEALTH], group="echo", consumer="one"):
                await delivery.ack()
                signal = delivery.payload()
                assert isinstance(signal, HealthSignal)
                if signal.epoch < 100:
                    await bus.publish(health(signal.epoch + 100), sender_id="echo", trace_id="run")
                if signal.epoch == 199:
                    return

    async def ask() -> None:
        async with connect(memory_url()) as bus:
            await bus.create_group([HEALTH], group="ask")
            assert await asyncio.to_thread(ready.wait, 10.0)
            replies = bus.subscribe([HEALTH], group="ask", consumer="one")
            for epoch in range(100):
                bus.publish_nowait(health(epoch), sender_id="ask", trace_id="run")
                while not received or received[-1] != epoch + 100:
                    delivery = await anext(replies)
                    await delivery.ack()
                    signal = delivery.payload()
                    assert isinstance(signal, HealthSignal)
                    received.append(signal.epoch)

    thread = threading.Thread(target=asyncio.run, args=(asyncio.wait_for(echo(), 20.0),))
    thread.start()
    asyncio.run(asyncio.wait_for(ask(), 20.0))
    thread.join()
    assert [epoch for epoch in received if epoch >= 100] == list(range(100, 200))


async def test_broker_keeps_nothing_that_nobody_will_read(
    memory_url: MakeUrl, connect: Connect, health: Health
) -> None:
    name = memory_url().removeprefix("memory://").partition("?")[0]
    with shared_broker(name) as broker:
        async with connect(memory_url()) as bus:
            await bus.publish(health(0), sender_id="tests", trace_id="run")
            assert broker.num_kept() == 0
            await bus.create_group([HEALTH], group="readers")
            await bus.create_group([HEALTH], group="others")
            await bus.publish(health(1), sender_id="tests", trace_id="run")
            assert broker.num_kept() == 2
            delivery = await anext(bus.subscribe([HEALTH], group="readers", consumer="one"))
            assert broker.num_kept() == 2
            await delivery.ack()
            assert broker.num_kept() == 1
            await bus.remove_group([HEALTH], group="others")
            assert broker.num_kept() == 0


async def test_names_are_apart_and_a_broker_ends_with_its_last_client(
    connect: Connect, health: Health
) -> None:
    url, other_url = f"memory://{uuid4().hex}", f"memory://{uuid4().hex}"
    async with connect(url) as bus, connect(other_url) as other:
        for client in (bus, other):
            await client.create_group([HEALTH], group="readers")
        await other.publish(health(1), sender_id="tests", trace_id="run")
        await bus.publish(health(2), sender_id="tests", trace_id="run")
        delivery = await anext(bus.subscribe([HEALTH], group="readers", consumer="one"))
        assert delivery.payload() == health(2)
    name = url.removeprefix("memory://")
    with shared_broker(name) as first:
        pass
    with shared_broker(name) as second:
        assert second is not first
