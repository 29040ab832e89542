"""The suite of the port `Bus`, run against every backend."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, cast

import pytest

from esper.contracts import (
    BackendUnavailableError,
    Bus,
    ConfigError,
    Delivery,
    HealthSignal,
    MessageError,
    Payload,
    TopicNames,
    topic_of,
)

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH


async def publish(bus: Bus, payload: Payload) -> None:
    await bus.publish(payload, sender_id="tests", trace_id="run-1")


async def take(deliveries: AsyncIterator[Delivery], count: int) -> list[Delivery]:
    """Take and acknowledge the next messages."""
    taken: list[Delivery] = []
    while len(taken) < count:
        delivery = await anext(deliveries)
        await delivery.ack()
        taken.append(delivery)
    return taken


async def take_until(deliveries: AsyncIterator[Delivery], epoch: int) -> None:
    while epochs(await take(deliveries, 1)) != [epoch]:
        pass


def epochs(deliveries: list[Delivery]) -> list[int]:
    return [cast("HealthSignal", delivery.payload()).epoch for delivery in deliveries]


async def close(deliveries: AsyncIterator[Delivery]) -> None:
    await cast("Any", deliveries).aclose()


@pytest.mark.parametrize("topic", TopicNames)
async def test_payload_comes_back_as_it_was_on_its_topic(
    make_url: MakeUrl, connect: Connect, samples: dict[TopicNames, Payload], topic: TopicNames
) -> None:
    payload = samples[topic]
    assert topic_of(payload) is topic
    async with connect(make_url()) as bus:
        await bus.create_group([topic], group="readers")
        sent = await bus.publish(payload, sender_id="tests", trace_id="run-1")
        [delivery] = await take(bus.subscribe([topic], group="readers", consumer="one"), 1)
    assert delivery.message.event_id == sent
    assert delivery.message.topic is topic
    assert delivery.message.sender_id == "tests"
    assert delivery.message.trace_id == "run-1"
    assert delivery.payload() == payload
    assert delivery.delivery_count == 1


async def test_each_group_sees_every_message(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        for group in ("readers", "writers"):
            await bus.create_group([HEALTH], group=group)
        for epoch in range(5):
            await publish(bus, health(epoch))
        for group in ("readers", "writers"):
            taken = await take(bus.subscribe([HEALTH], group=group, consumer="one"), 5)
            assert epochs(taken) == [0, 1, 2, 3, 4]


async def test_consumers_of_one_group_share_the_messages(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as first, connect(make_url()) as second:
        await first.create_group([HEALTH], group="readers")
        for epoch in range(4):
            await publish(first, health(epoch))
        one = first.subscribe([HEALTH], group="readers", consumer="one")
        two = second.subscribe([HEALTH], group="readers", consumer="two")
        busy = await anext(one)
        assert epochs([busy]) == [0]
        assert epochs(await take(two, 2)) == [1, 2]
        await busy.ack()
        assert epochs(await take(one, 1)) == [3]


async def test_messages_of_a_closed_consumer_go_to_another_at_once(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        for epoch in range(3):
            await publish(bus, health(epoch))
        dying = bus.subscribe([HEALTH], group="readers", consumer="one")
        held = [await anext(dying), await anext(dying)]
        await held[0].ack()
        await close(dying)
        taken = await take(bus.subscribe([HEALTH], group="readers", consumer="two"), 2)
    assert epochs(taken) == [1, 2]
    assert taken[0].message == held[1].message
    assert [delivery.delivery_count for delivery in taken] == [2, 1]


async def test_messages_of_a_closed_client_go_to_another_at_once(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, health(0))
        async with connect(make_url()) as dying:
            held = dying.subscribe([HEALTH], group="readers", consumer="one")
            await anext(held)
        [delivery] = await take(bus.subscribe([HEALTH], group="readers", consumer="two"), 1)
        assert delivery.delivery_count == 2
        assert await anext(held, None) is None


async def test_messages_of_a_silent_consumer_go_to_another_in_time(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(0.2)) as bus:
        await bus.create_group([HEALTH], group="readers")
        waiting = bus.subscribe([HEALTH], group="readers", consumer="two")
        waits = asyncio.ensure_future(anext(waiting))
        silent = bus.subscribe([HEALTH], group="readers", consumer="one")
        await publish(bus, health(7))
        first = await waits
        again = await anext(silent)
        assert again.message == first.message
        assert (first.delivery_count, again.delivery_count) == (1, 2)


async def test_late_acknowledgement_counts_whoever_holds_the_message(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(0.2)) as bus:
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, health(0))
        first = await anext(bus.subscribe([HEALTH], group="readers", consumer="one"))
        others = bus.subscribe([HEALTH], group="readers", consumer="two")
        await anext(others)
        await first.ack()
        await first.ack()
        await publish(bus, health(1))
        await close(others)
        rest = bus.subscribe([HEALTH], group="readers", consumer="three")
        assert epochs(await take(rest, 1)) == [1]


async def test_acknowledged_messages_do_not_come_again(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(0.05)) as bus:
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, health(0))
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        await take(reader, 1)
        for epoch in range(1, 4):  # the reader waits longer than the reclaim time for each
            send = partial(bus.publish_nowait, health(epoch), sender_id="tests", trace_id="run-1")
            asyncio.get_running_loop().call_later(0.1, send)
            assert epochs(await take(reader, 1)) == [epoch]


async def test_messages_of_one_topic_keep_their_order(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        for epoch in range(0, 250, 2):
            bus.publish_nowait(health(epoch), sender_id="tests", trace_id="run-1")
            if epoch % 50 == 0:
                await publish(bus, health(epoch + 1))
            else:
                bus.publish_nowait(health(epoch + 1), sender_id="tests", trace_id="run-1")
        taken = await take(bus.subscribe([HEALTH], group="readers", consumer="one"), 250)
    assert epochs(taken) == list(range(250))


async def test_one_consumer_reads_many_topics_in_order_of_publication(
    make_url: MakeUrl, connect: Connect, samples: dict[TopicNames, Payload]
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group(samples, group="readers")
        for payload in samples.values():
            await publish(bus, payload)
        taken = await take(bus.subscribe(samples, group="readers", consumer="one"), len(samples))
    assert {delivery.message.topic for delivery in taken} == set(TopicNames)
    assert [delivery.payload() for delivery in taken] == [
        samples[delivery.message.topic] for delivery in taken
    ]


async def test_publish_nowait_from_other_threads_reaches_a_waiting_consumer(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    def publish_some(bus: Bus, first: int) -> None:
        for epoch in range(first, first + 50):
            bus.publish_nowait(health(epoch), sender_id="tests", trace_id="run-1")

    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        waits = asyncio.ensure_future(take(reader, 100))
        threads = [threading.Thread(target=publish_some, args=(bus, n)) for n in (0, 1000)]
        for thread in threads:
            thread.start()
        taken = epochs(await waits)
        for thread in threads:
            thread.join()
        assert [epoch for epoch in taken if epoch < 1000] == list(range(50))
        assert [epoch for epoch in taken if epoch >= 1000] == list(range(1000, 1050))
        assert not bus.lost


async def test_group_gets_what_was_published_since_it_was_created_and_nothing_older(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await publish(bus, health(0))
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, health(1))
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, health(2))
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        assert epochs(await take(reader, 2)) == [1, 2]


async def test_removed_group_forgets_what_it_had_not_read(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.remove_group([HEALTH], group="readers")
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, health(0))
        await bus.remove_group([HEALTH], group="readers")
        await bus.remove_group([HEALTH], group="readers")
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, health(1))
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        assert epochs(await take(reader, 1)) == [1]


async def test_group_that_vanishes_under_a_consumer_is_created_anew(
    make_url: MakeUrl, connect: Connect, health: Health, capsys: pytest.CaptureFixture[str]
) -> None:
    async with connect(make_url(1.0)) as bus:
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        for epoch in (1, 2):
            waits = asyncio.ensure_future(take_until(reader, epoch))
            while not waits.done():  # until the group is there, nobody listens
                await publish(bus, health(epoch))
                await asyncio.sleep(0.01)
            await waits
            await bus.remove_group([HEALTH], group="readers")
    assert "consumer group vanished" in capsys.readouterr().err


async def test_flush_tells_that_everything_was_sent(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        for epoch in range(300):
            bus.publish_nowait(health(epoch), sender_id="tests", trace_id="run-1")
        assert await bus.flush(10.0)
        assert await bus.flush(10.0)
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        assert epochs(await take(reader, 300)) == list(range(300))


async def test_closing_sends_what_is_queued(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as reading:
        await reading.create_group([HEALTH], group="readers")
        async with connect(make_url()) as bus:
            for epoch in range(300):
                bus.publish_nowait(health(epoch), sender_id="tests", trace_id="run-1")
        assert not bus.lost
        reader = reading.subscribe([HEALTH], group="readers", consumer="one")
        assert epochs(await take(reader, 300)) == list(range(300))


async def test_closing_ends_the_iterators(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, health(0))
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        await take(reader, 1)
        waits = asyncio.ensure_future(anext(reader, None))
        done, _ = await asyncio.wait([waits], timeout=0.05)
        assert not done
        await bus.close()
        assert await waits is None


async def test_closed_client_refuses_and_counts(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.open()
        await bus.close()
        await bus.close()
        with pytest.raises(BackendUnavailableError, match=r"not open; await open\(\)"):
            await publish(bus, health(0))
        with pytest.raises(BackendUnavailableError, match="not open"):
            await bus.create_group([HEALTH], group="readers")
        bus.publish_nowait(health(0), sender_id="tests", trace_id="run-1")
        bus.publish_nowait(health(1), sender_id="tests", trace_id="run-1")
        assert bus.lost == {HEALTH: 2}
        await bus.open()
        await publish(bus, health(0))


async def test_what_no_topic_carries_is_refused(
    make_url: MakeUrl, connect: Connect, samples: dict[TopicNames, Payload]
) -> None:
    packet: Any = {"not": "a payload"}
    async with connect(make_url()) as bus:
        with pytest.raises(MessageError, match="no topic carries a dict"):
            await publish(bus, packet)
        with pytest.raises(MessageError, match="no topic carries a dict"):
            bus.publish_nowait(packet, sender_id="tests", trace_id="run-1")


async def test_subscription_to_nothing_is_refused(make_url: MakeUrl, connect: Connect) -> None:
    async with connect(make_url()) as bus:
        with pytest.raises(ConfigError, match="'one' subscribes to no topics"):
            await anext(bus.subscribe([], group="readers", consumer="one"))


async def test_cancelled_consumer_leaves_the_client_usable(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        for epoch in range(10):
            reader = bus.subscribe([HEALTH], group="readers", consumer="one")
            waits = asyncio.ensure_future(anext(reader))
            await asyncio.sleep(0.001 * epoch)
            waits.cancel()
            await asyncio.wait([waits])
            await publish(bus, health(epoch))
            again = bus.subscribe([HEALTH], group="readers", consumer="one")
            assert epochs(await take(again, 1)) == [epoch]
            await close(again)
