"""Sentinel and Cluster with real servers: the bus finds the one that takes writes, and follows it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import cast

import pytest

from esper.contracts import (
    AccessRefusedError,
    BackendUnavailableError,
    Bus,
    Delivery,
    HealthSignal,
    TopicNames,
)
from esper.oona import open_redis_bus
from esper.testkit.redis_groups import (
    Cluster,
    SentinelTrio,
    client_of,
    start_cluster,
    start_sentinel,
)

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
KEY = "{esper}:telemetry.seed.health"
LONG = 60.0
"""A failover takes seconds, on a busy machine many."""


@pytest.fixture
def trio(tmp_path: Path, binary: str) -> Iterator[SentinelTrio]:
    try:
        with start_sentinel(
            tmp_path, password="pw", sentinel_password="spw", binary=binary
        ) as trio:
            yield trio
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def cluster(tmp_path: Path, binary: str) -> Iterator[Cluster]:
    with start_cluster(tmp_path, password="pw", binary=binary) as cluster:
        yield cluster


def publish(bus: Bus, *signals: HealthSignal) -> None:
    for signal in signals:
        bus.publish_nowait(signal, sender_id="tests", trace_id="run-1")


async def read_until(deliveries: AsyncIterator[Delivery], epoch: int) -> list[int]:
    """Take and acknowledge health signals up to the one of `epoch`; return their epochs."""
    seen: list[int] = []
    while not seen or seen[-1] != epoch:
        delivery = await anext(deliveries)
        await delivery.ack()
        seen.append(cast("HealthSignal", delivery.payload()).epoch)
    return seen


async def test_bus_follows_a_failover_to_the_new_master(
    trio: SentinelTrio, connect: Connect, health: Health
) -> None:
    old, new = trio.servers
    async with connect(trio.url) as bus:
        await bus.create_group([HEALTH], group="readers")
        reader = bus.subscribe([HEALTH], group="readers", consumer="one", prefetch=10)
        waits = asyncio.ensure_future(read_until(reader, 199))
        publish(bus, *map(health, range(100)))
        assert await bus.flush(LONG)
        await asyncio.to_thread(_replicate, trio)
        old.stop()
        publish(bus, *map(health, range(100, 199)))
        await asyncio.to_thread(trio.wait_for_master, new)
        assert await bus.flush(LONG)
        await bus.publish(health(199), sender_id="tests", trace_id="run-1")
        assert sorted(set(await waits)) == list(range(200))
        assert not bus.lost


def _replicate(trio: SentinelTrio) -> None:
    """Wait until the replica has what the master has: a failover keeps only that."""
    with client_of(trio.servers[0]) as client:
        assert client.wait(1, 10_000) == 1


async def test_master_that_is_demoted_while_it_lives_is_left(
    trio: SentinelTrio, connect: Connect, health: Health
) -> None:
    async with connect(trio.url) as bus:
        await bus.create_group([HEALTH], group="readers")
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        publish(bus, health(0))
        assert await read_until(reader, 0) == [0]
        await asyncio.to_thread(trio.fail_over)
        publish(bus, health(1))
        assert await read_until(reader, 1) == [1]
        with client_of(trio.servers[1]) as client:  # not only in the one that was demoted
            assert client.xlen("esper:telemetry.seed.health") >= 2


async def test_sentinel_problems_are_named(trio: SentinelTrio) -> None:
    url, address = trio.url, f"{trio.sentinel.host}:{trio.sentinel.port}"
    with pytest.raises(BackendUnavailableError, match=rf"{address} says: knows no service 'none'"):
        await open_redis_bus(url.replace("/esper-tests", "/none")).open()
    for wrong in (url.replace("spw", "very-wrong"), url.replace(":pw@", ":very-wrong@")):
        with pytest.raises(AccessRefusedError, match="refuses the credentials") as caught:
            await open_redis_bus(wrong).open()
        assert "very-wrong" not in str(caught.value)
    server = trio.servers[0]
    plain = f"redis+sentinel://{server.host}:{server.port}/esper-tests?sentinel_password=pw"
    with pytest.raises(BackendUnavailableError, match="unknown command"):
        await open_redis_bus(plain).open()
    other = f"redis+sentinel://:pw@127.0.0.1:1,{address}/esper-tests?sentinel_password=spw"
    bus = open_redis_bus(other)  # nobody listens at the first; the second knows
    await bus.open()
    await bus.close()


async def test_cluster_carries_the_whole_bus(
    cluster: Cluster, connect: Connect, health: Health
) -> None:
    async with connect(cluster.url) as bus:
        await bus.create_group(TopicNames, group="readers")
        reader = bus.subscribe(TopicNames, group="readers", consumer="one", prefetch=10)
        await bus.publish_many(list(map(health, range(500))), sender_id="tests", trace_id="run-1")
        delivery = await anext(reader)
        await delivery.dead_letter("it is ugly")
        [letter] = await bus.dead_letters()
        await bus.requeue(letter.letter_id)
        seen = await read_until(reader, 499)
        assert sorted(seen) == list(range(500))
        assert await bus.dead_letters() == []
        waits = asyncio.ensure_future(anext(reader))
        await asyncio.wait({waits}, timeout=0.1)
        await bus.close()  # ends the read that blocks
        with pytest.raises(StopAsyncIteration):
            await waits


async def test_bus_follows_its_slot_to_another_node(
    cluster: Cluster, connect: Connect, health: Health
) -> None:
    async with connect(cluster.url) as bus:
        await bus.create_group([HEALTH], group="readers")
        reader = bus.subscribe([HEALTH], group="readers", consumer="one", prefetch=10)
        for round_trip, target in enumerate(cluster.masters):
            first = 100 * round_trip
            waits = asyncio.ensure_future(read_until(reader, first + 99))
            publish(bus, *map(health, range(first, first + 50)))
            if await asyncio.to_thread(cluster.owner, KEY) is not target:
                await asyncio.to_thread(cluster.move_slot, KEY, target)
            publish(bus, *map(health, range(first + 50, first + 100)))
            assert sorted(set(await waits)) == list(range(first, first + 100))
        assert not bus.lost


@pytest.mark.long
async def test_bus_follows_a_failover_in_a_cluster(
    tmp_path: Path, connect: Connect, health: Health
) -> None:
    with start_cluster(tmp_path, with_replicas=True) as cluster:
        async with connect(cluster.url) as bus:
            await bus.create_group([HEALTH], group="readers")
            reader = bus.subscribe([HEALTH], group="readers", consumer="one", prefetch=10)
            waits = asyncio.ensure_future(read_until(reader, 99))
            publish(bus, *map(health, range(50)))
            assert await bus.flush(LONG)
            owner = await asyncio.to_thread(cluster.owner, KEY)
            with client_of(owner) as client:
                assert client.wait(1, 10_000) == 1
            owner.stop()
            publish(bus, *map(health, range(50, 100)))
            assert sorted(set(await waits)) == list(range(100))
            assert not bus.lost


async def test_cluster_and_single_server_are_told_apart(cluster: Cluster, health: Health) -> None:
    first = cluster.masters[0]
    owns = (await asyncio.to_thread(cluster.owner, "esper:telemetry.seed.health")) is first
    node = cluster.masters[1] if owns else first
    bus = open_redis_bus(f"redis://:pw@{node.host}:{node.port}")
    await bus.open()
    with pytest.raises(
        BackendUnavailableError, match=r"belongs to a cluster: write redis\+cluster"
    ):
        await bus.create_group([HEALTH], group="readers")
    await bus.close()


async def test_single_server_says_that_it_is_no_cluster(redis_url: Callable[[], str]) -> None:
    url = redis_url().replace("redis://", "redis+cluster://")
    with pytest.raises(BackendUnavailableError, match=r"cluster support disabled.*write redis://"):
        await open_redis_bus(url).open()
