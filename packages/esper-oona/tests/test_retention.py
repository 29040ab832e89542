"""What a topic keeps, on every backend: nothing goes unacknowledged unless told, and then it is counted."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from random import Random
from typing import cast

import pytest

from esper.contracts import (
    Bus,
    ConfigError,
    GroupLosses,
    HealthSignal,
    Payload,
    SystemStatePacket,
    TopicNames,
)
from esper.oona.options import MemoryOptions
from esper.oona.retention import DEFAULT_RETENTION, Retention

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
EPOCHS = TopicNames.SYSTEM_EVENTS_EPOCH


def epoch_event(epoch: int) -> SystemStatePacket:
    return SystemStatePacket(
        run_id="run", epoch=epoch, step=epoch, val_loss=0.5, learning_rate=0.1, num_parameters=7
    )


async def publish(bus: Bus, *payloads: Payload) -> None:
    await bus.publish_many(payloads, sender_id="tests", trace_id="run-1")


async def read(bus: Bus, topic: TopicNames, number: int, *, group: str = "readers") -> list[int]:
    """Take and acknowledge so many messages; return their epochs."""
    seen: list[int] = []
    async with aclosing(bus.subscribe([topic], group=group, consumer="one", prefetch=10)) as found:
        while len(seen) < number:
            delivery = await anext(found)
            await delivery.ack()
            seen.append(cast("HealthSignal | SystemStatePacket", delivery.payload()).epoch)
    return seen


async def test_topic_beyond_its_length_keeps_what_a_group_has_not_acknowledged(
    make_url: MakeUrl, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    async with connect(make_url(0.4) + "&retain=10") as bus:
        await bus.create_group([EPOCHS], group="readers")
        await bus.create_group([EPOCHS], group="others")
        await publish(bus, *map(epoch_event, range(25)))
        assert await read(bus, EPOCHS, 25) == list(range(25))
        await publish(bus, *map(epoch_event, range(25, 30)))
        while "a group holds up a topic" not in (said := capsys.readouterr().err):
            await asyncio.sleep(0.02)
        assert '"group": "others"' in said or '"group": "readers"' in said
        assert await read(bus, EPOCHS, 30, group="others") == list(range(30))
        assert not bus.lost
        assert {losses.num_lost for losses in await bus.group_losses()} == {0}


async def test_topic_that_may_drop_keeps_its_newest_and_counts_the_rest_for_each_group(
    make_url: MakeUrl, connect: Connect, health: Health, capsys: pytest.CaptureFixture[str]
) -> None:
    async with connect(make_url() + "&retain.telemetry.seed.health=10") as bus:
        await bus.create_group([HEALTH], group="never")
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, *map(health, range(4)))
        assert await read(bus, HEALTH, 4) == [0, 1, 2, 3]
        await publish(bus, *map(health, range(4, 25)))
        while bus.lost != {HEALTH: 15 + 11}:
            await asyncio.sleep(0.01)
        assert await read(bus, HEALTH, 10) == list(range(15, 25))
        assert await bus.group_losses() == [
            GroupLosses(topic=HEALTH, group=group, num_lost=number, num_recreated=0)
            for group, number in (("never", 15), ("readers", 11))
        ]
    assert "data loss on the bus" in capsys.readouterr().err


async def test_telemetry_that_is_too_old_goes_and_is_counted(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(0.4) + "&retain.telemetry.seed.health=0.2s") as bus:
        await bus.create_group([HEALTH], group="never")
        await publish(bus, *map(health, range(5)))
        await asyncio.sleep(0.25)  # until they are old
        reading = asyncio.create_task(read(bus, HEALTH, 1))  # a bus tends what is in use
        while not bus.lost:
            await asyncio.sleep(0.02)
            await publish(bus, epoch_event(0))
        assert bus.lost == {HEALTH: 5}
        await publish(bus, health(5))
        assert await reading == [5]


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_two_groups_do_each_gets_everything(
    make_url: MakeUrl, connect: Connect, seed: int
) -> None:
    chance = Random(seed)
    async with connect(make_url(0.4) + "&retain=3") as bus:
        begins_at = {"steady": 0, "late": chance.randrange(1, 20)}
        first: dict[str, int] = {}
        seen: dict[str, list[int]] = {"steady": [], "late": []}
        num_published = 0
        for step in range(30):
            for group in (group for group, begin in begins_at.items() if begin == step):
                await bus.create_group([EPOCHS], group=group)
                first[group] = num_published
            number = chance.randrange(4)
            await publish(bus, *map(epoch_event, range(num_published, num_published + number)))
            num_published += number
            for group in first:
                num_waiting = num_published - first[group] - len(seen[group])
                number = chance.randrange(num_waiting + 1)
                seen[group] += await read(bus, EPOCHS, number, group=group)
        for group, begin in first.items():
            number = num_published - begin - len(seen[group])
            seen[group] += await read(bus, EPOCHS, number, group=group)
            assert sorted(seen[group]) == list(range(begin, num_published))
        assert not bus.lost


def test_only_telemetry_may_drop_by_default() -> None:
    assert [topic for topic, policy in DEFAULT_RETENTION.items() if policy.may_drop] == [HEALTH]
    assert MemoryOptions.from_url("memory://").retention == DEFAULT_RETENTION


def test_parameters_of_all_topics_and_of_one_add_up() -> None:
    url = "memory://?retain=500,2h&retain.system.events.epoch=drop,1.5d"
    retention = MemoryOptions.from_url(url).retention
    assert retention[EPOCHS] == Retention(max_length=500, max_age_seconds=129_600.0, may_drop=True)
    assert retention[HEALTH] == Retention(max_length=500, max_age_seconds=7200.0, may_drop=True)
    commands = retention[TopicNames.CONTROL_KASMINA_COMMANDS]
    assert commands == Retention(max_length=500, max_age_seconds=7200.0, may_drop=False)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("retain=", "retain has ''; expected words with commas"),
        ("retain=0", "retain has '0'; expected words"),
        ("retain=soon", "retain has 'soon'; expected words"),
        ("retain=7d,8d", "expected each kind of word once"),
        ("retain=keep,drop", "expected each kind of word once"),
        ("retain=0s", "expected an age from 0.001s"),
        ("retain=99999d", "expected an age from"),
        ("retain.telemetry=5", "unknown bus parameter 'retain.telemetry'.*retain.telemetry.seed"),
    ],
)
def test_bad_retention_is_refused(query: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        MemoryOptions.from_url(f"memory://?{query}")
