"""Publishing on every backend: many at once, in order; over Redis each lands once."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import pytest

from esper.contracts import Bus, HealthSignal, MessageError, Payload, TopicNames, handling
from esper.oona.envelope import Envelope, enclose
from esper.oona.options import RedisOptions
from esper.oona.outbox_queue import Entry
from esper.oona.redis_client import connect as connect_driver
from esper.oona.redis_letters import stream_key
from esper.oona.redis_producer import RedisProducer

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH


def _enclosed(payload: Payload) -> Envelope:
    return enclose(payload, sender_id="tests", trace_id="run-1")


async def take(bus: Bus, count: int) -> list[int]:
    reader = bus.subscribe([HEALTH], group="readers", consumer="one", prefetch=100)
    epochs: list[int] = []
    while len(epochs) < count:
        delivery = await anext(reader)
        await delivery.ack()
        epochs.append(cast("HealthSignal", delivery.payload()).epoch)
    return epochs


async def test_many_messages_arrive_in_order(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        ids = await bus.publish_many(
            [health(epoch) for epoch in range(1000)], sender_id="tests", trace_id="run-1"
        )
        assert len(set(ids)) == 1000
        assert await bus.publish_many([], sender_id="tests", trace_id="run-1") == []
        assert await take(bus, 1000) == list(range(1000))


async def test_concurrent_publishes_all_arrive(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        sends = [bus.publish(health(n), sender_id="tests", trace_id="r") for n in range(3000)]
        assert len(set(await asyncio.gather(*sends))) == 3000
        assert sorted(await take(bus, 3000)) == list(range(3000))


async def test_one_bad_payload_of_many_sends_none(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        payloads: Sequence[Any] = [health(0), {"no": "payload"}]
        with pytest.raises(MessageError, match="no topic carries a dict"):
            await bus.publish_many(payloads, sender_id="tests", trace_id="run-1")
        await bus.publish(health(1), sender_id="tests", trace_id="run-1")
        assert await take(bus, 1) == [1]


async def test_batch_that_is_sent_again_lands_once(redis_url: MakeUrl, health: Health) -> None:
    options = RedisOptions.from_url(redis_url())
    client = connect_driver(options)
    producer = RedisProducer(options)
    batch = [Entry(n, _enclosed(health(n))) for n in range(5)]
    for _ in range(3):  # as after a lost answer
        outcome = await producer.append(client, batch)
        assert (outcome.again, outcome.refused) == ([], [])
    await producer.append(client, list(batch))
    found = await client.xrange(stream_key(options, HEALTH), count=100)
    assert [cast("dict[bytes, bytes]", fields)[b"message"] for _, fields in found] == [
        *(entry.envelope.data for entry in batch),
        *(entry.envelope.data for entry in batch),
    ]
    await client.aclose()


async def test_refusal_is_remembered_when_a_batch_is_sent_again(
    redis_url: MakeUrl, samples: dict[TopicNames, Payload]
) -> None:
    options = RedisOptions.from_url(redis_url())
    client: Any = connect_driver(options)
    await client.set(stream_key(options, HEALTH), "no stream")
    producer = RedisProducer(options)
    topics = (TopicNames.SYSTEM_EVENTS_EPOCH, HEALTH)
    batch = [Entry(n, _enclosed(samples[topic])) for n, topic in enumerate(topics, 1)]
    for _ in range(2):
        outcome = await producer.append(client, batch)
        [(entry, error)] = outcome.refused
        assert entry is batch[1]
        assert "WRONGTYPE" in str(error)
    await client.delete(stream_key(options, HEALTH))
    assert (await producer.append(client, [batch[1]])).refused == []
    await client.aclose()


async def test_messages_inherit_the_trace_of_the_message_in_hand(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        await bus.publish(health(0), sender_id="tests", trace_id="run-1")
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        delivery = await anext(reader)
        with handling(delivery.message):
            await bus.publish(health(1), sender_id="tests")
            await bus.publish_many([health(2), health(3)], sender_id="tests")
            bus.publish_nowait(health(4), sender_id="tests")
        await bus.publish_many([health(5), health(6)], sender_id="tests")  # nothing caused these
        await delivery.ack()
        traces: list[str] = []
        for _ in range(6):
            delivery = await anext(reader)
            traces.append(delivery.message.trace_id)
            await delivery.ack()
        assert traces[:4] == ["run-1"] * 4
        assert traces[4] == traces[5] != "run-1"
