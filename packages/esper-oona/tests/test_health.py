"""What a bus says about itself, the same on every backend: lengths, lags, what is in flight, letters."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path

import pytest

from esper.contracts import Bus, GroupHealth, HealthSignal, Payload, TopicNames
from esper.contracts.registry import bus_factory
from esper.oona.options import RedisOptions
from esper.oona.redis_client import connect as connect_redis
from esper.testkit.redis import start_redis

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
REPORTS = TopicNames.INNOVATION_FIELD_REPORTS


async def _publish(bus: Bus, payloads: list[Payload]) -> None:
    await bus.publish_many(payloads, sender_id="test", trace_id="run")


async def _group(bus: Bus, group: str) -> GroupHealth:
    [topic] = (await bus.health()).topics
    [found] = [each for each in topic.groups if each.group == group]
    return found


async def test_a_bus_without_topics_is_reachable_and_empty(
    make_url: MakeUrl, connect: Connect
) -> None:
    async with connect(make_url()) as bus:
        state = await bus.health()
    assert (state.is_reachable, state.problem) == (True, None)
    assert (state.topics, state.num_dead_letters, state.num_queued) == ((), 0, 0)
    assert state.server in ("memory", "redis", "valkey")
    assert state.version is not None
    assert state.version[0].isdigit()
    assert state.round_trip_seconds is not None


async def test_what_no_consumer_was_handed_is_the_lag_and_what_is_in_hand_is_in_flight(
    make_url: MakeUrl, connect: Connect, health: Callable[[int], HealthSignal]
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="slow")
        await bus.create_group([HEALTH], group="idle")
        await _publish(bus, [health(epoch) for epoch in range(5)])
        async with aclosing(bus.subscribe([HEALTH], group="slow", consumer="one")) as deliveries:
            first = await anext(deliveries)
            await first.ack()
            await anext(deliveries)
            state = await bus.health()
            [topic] = state.topics
            idle, slow = topic.groups
            assert (topic.topic, topic.length) == (HEALTH, 5)
            assert (idle.group, idle.lag, idle.num_in_flight) == ("idle", 5, 0)
            assert idle.oldest_in_flight_seconds is None
            assert (slow.group, slow.lag, slow.num_in_flight) == ("slow", 3, 1)
            assert slow.is_lag_exact
            assert slow.oldest_in_flight_seconds is not None
            assert [(c.name, c.num_in_flight) for c in slow.consumers] == [("one", 1)]
            assert topic.oldest_seconds is not None
            assert topic.newest_seconds is not None
            assert topic.oldest_seconds >= topic.newest_seconds
        json = state.model_dump_json()
        assert type(state).model_validate_json(json) == state


async def test_a_message_in_its_second_try_counts_as_redelivered(
    make_url: MakeUrl, connect: Connect, health: Callable[[int], HealthSignal]
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([HEALTH], group="tries")
        await _publish(bus, [health(0)])
        async with aclosing(bus.subscribe([HEALTH], group="tries", consumer="one")) as deliveries:
            await (await anext(deliveries)).nack()
            found = await _group(bus, "tries")
            assert (found.lag, found.num_in_flight) == (0, 1)  # it was handed out, once
            again = await anext(deliveries)
            assert again.delivery_count == 2
            found = await _group(bus, "tries")
            assert (found.num_in_flight, found.num_redelivered) == (1, 1)
            await again.ack()
            found = await _group(bus, "tries")
            assert (found.num_in_flight, found.num_redelivered) == (0, 0)


async def test_dead_letters_are_counted_for_their_group(
    make_url: MakeUrl, connect: Connect, health: Callable[[int], HealthSignal]
) -> None:
    async with connect(make_url()) as bus:
        for group in ("fails", "works"):
            await bus.create_group([HEALTH], group=group)
        await _publish(bus, [health(0), health(1)])
        async with aclosing(bus.subscribe([HEALTH], group="fails", consumer="one")) as deliveries:
            for _ in range(2):
                await (await anext(deliveries)).dead_letter("no good")
        state = await bus.health()
        assert state.num_dead_letters == 2
        assert (await _group(bus, "fails")).num_dead_letters == 2
        assert (await _group(bus, "works")).num_dead_letters == 0


async def test_what_a_group_lost_is_told_for_it(
    make_url: MakeUrl, connect: Connect, health: Callable[[int], HealthSignal]
) -> None:
    async with connect(f"{make_url()}&retain=2,drop") as bus:
        await bus.create_group([HEALTH], group="slow")
        await _publish(bus, [health(epoch) for epoch in range(5)])
        while not (found := await _group(bus, "slow")).num_lost:  # a server is tended in between
            await asyncio.sleep(0.01)
        assert (found.num_lost, found.lag) == (3, 2)


async def test_health_is_answered_in_another_thread_while_the_bus_is_open(
    make_url: MakeUrl, connect: Connect, samples: dict[TopicNames, Payload]
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([REPORTS], group="archive")
        await _publish(bus, [samples[REPORTS]])
        state = await asyncio.to_thread(lambda: asyncio.run(bus.health()))
    assert [(topic.topic, topic.length) for topic in state.topics] == [(REPORTS, 1)]


async def test_messages_that_were_published_while_closed_are_among_the_lost(
    make_url: MakeUrl, health: Callable[[int], HealthSignal]
) -> None:
    url = make_url()
    bus = bus_factory(url)(url)
    bus.publish_nowait(health(0), sender_id="test", trace_id="run")
    assert (await bus.health()).lost == {HEALTH: 1}


async def test_a_memory_bus_that_is_not_open_says_so(memory_url: MakeUrl) -> None:
    url = memory_url()
    state = await bus_factory(url)(url).health()
    assert (state.is_reachable, state.topics) == (False, ())
    assert state.problem is not None
    assert "is not open; await open() first" in state.problem


async def test_a_dead_server_is_an_answer_and_no_error(tmp_path: Path) -> None:
    url = "redis://:geheim@127.0.0.1:1/0"
    state = await bus_factory(url)(url).health()
    assert (state.is_reachable, state.topics, state.server) == (False, (), None)
    assert state.problem is not None
    assert "no Redis server answers at 127.0.0.1:1" in state.problem
    assert "geheim" not in state.model_dump_json()


async def test_a_server_that_stands_still_is_an_answer_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.oona.redis_health._PATIENCE_SECONDS", 0.2)
    with start_redis(tmp_path) as server:
        bus = bus_factory(server.url)(server.url)
        server.freeze()
        try:
            state = await bus.health()
        finally:
            server.thaw()
        assert not state.is_reachable
        assert state.problem is not None
        assert "no answer" in state.problem
        assert (await bus.health()).is_reachable


async def test_a_wrong_password_is_named_as_such(tmp_path: Path) -> None:
    with start_redis(tmp_path, password="geheim") as server:
        url = server.url.replace("geheim", "falsch")
        state = await bus_factory(url)(url).health()
    assert not state.is_reachable
    assert state.problem is not None
    assert "refuses the credentials" in state.problem
    assert "falsch" not in state.problem


async def test_the_lag_is_counted_where_the_server_has_lost_count(
    redis_url: MakeUrl,
    connect: Connect,
    health: Callable[[int], HealthSignal],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deleting an entry in the middle makes Redis 7 and later forget the lag; 6.2 never knows it."""
    url = redis_url()
    options = RedisOptions.from_url(url)
    async with connect(url) as bus:
        await bus.create_group([HEALTH], group="behind")
        await _publish(bus, [health(epoch) for epoch in range(6)])
        client = connect_redis(options)
        key = f"{options.prefix}:{HEALTH.value}"
        entries = await client.xrange(key, count=6)
        await client.eval("return redis.call('XDEL', KEYS[1], ARGV[1])", 1, key, entries[3][0])
        await client.aclose()
        found = await _group(bus, "behind")
        assert (found.lag, found.is_lag_exact) == (5, True)
        monkeypatch.setattr("esper.oona.redis_health._COUNTED", 3)
        found = await _group(bus, "behind")
        assert (found.lag, found.is_lag_exact) == (3, False)


async def test_size_and_many_letters_are_known_on_a_real_server(
    redis_url: MakeUrl,
    connect: Connect,
    health: Callable[[int], HealthSignal],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("esper.oona.redis_health._LOOKED_AT", 2)  # so that they are read in parts
    async with connect(redis_url()) as bus:
        await bus.create_group([HEALTH], group="fails")
        await _publish(bus, [health(epoch) for epoch in range(5)])
        async with aclosing(bus.subscribe([HEALTH], group="fails", consumer="one")) as deliveries:
            for _ in range(5):
                await (await anext(deliveries)).dead_letter("no good")
        state = await bus.health()
    assert state.num_dead_letters == 5
    assert state.topics[0].groups[0].num_dead_letters == 5
    assert state.topics[0].size_bytes is not None
    assert state.topics[0].size_bytes > 500
