"""A client is open in one event loop or not at all, and can be opened again."""

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from esper.contracts import (
    BackendUnavailableError,
    ConfigError,
    Payload,
    TopicNames,
    parse_message,
)
from esper.oona import open_redis_bus

type MakeUrl = Callable[..., str]

COMMANDS = TopicNames.CONTROL_KASMINA_COMMANDS


async def test_a_client_that_could_not_open_its_journal_is_not_open(
    tmp_path: Path, redis_url: MakeUrl, samples: dict[TopicNames, Payload]
) -> None:
    blocked = tmp_path / "journal"
    blocked.write_text("in the way")
    bus = open_redis_bus(f"{redis_url()}&journal={blocked}")
    for _ in range(2):
        with pytest.raises(ConfigError, match="cannot be used"):
            await bus.open()
    with pytest.raises(BackendUnavailableError, match="not open"):
        await bus.publish(samples[COMMANDS], sender_id="tests")
    blocked.unlink()
    await bus.open()
    await bus.publish(samples[COMMANDS], sender_id="tests")
    await bus.close()


# What the first loop left open is reported where it is collected: here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_whose_event_loop_ended_goes_on_in_another(
    redis_url: MakeUrl, samples: dict[TopicNames, Payload]
) -> None:
    bus = open_redis_bus(redis_url())

    async def use_it() -> str:
        await bus.open()
        return await bus.publish(samples[COMMANDS], sender_id="tests")

    async def read_all() -> list[str]:
        await bus.open()
        records = [record async for record in bus.read([COMMANDS])]
        await bus.close()
        return [parse_message(record.data).event_id for record in records]

    published = [asyncio.run(use_it()), asyncio.run(use_it())]
    assert asyncio.run(read_all()) == published
    gc.collect()


async def test_a_client_that_is_open_elsewhere_says_so(redis_url: MakeUrl) -> None:
    bus = open_redis_bus(redis_url())
    await bus.open()

    def open_elsewhere() -> None:
        with pytest.raises(ConfigError, match="open in another event loop; close it there"):
            asyncio.run(bus.open())

    await asyncio.to_thread(open_elsewhere)
    assert await bus.flush(1.0)
    await bus.close()
