"""What only a real server can do: be away, refuse, hold what is no message."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from esper.contracts import (
    BackendUnavailableError,
    Bus,
    Delivery,
    HealthSignal,
    KeyTakenError,
    Payload,
    TopicNames,
)
from esper.oona import open_redis_bus
from esper.oona.envelope import enclose
from esper.oona.options import RedisOptions
from esper.oona.redis_nodes import make_pool
from esper.testkit.redis import RedisServer, start_redis

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
COMMANDS = TopicNames.CONTROL_KASMINA_COMMANDS


def raw_client(url: str) -> Any:
    return Redis.from_url(url.partition("?")[0])  # pyright: ignore[reportUnknownMemberType]


def stream_key(url: str, topic: TopicNames) -> str:
    prefix = url.partition("prefix=")[2].partition("&")[0]
    return f"{prefix}:{topic.value}"


def publish(bus: Bus, payload: Payload) -> None:
    bus.publish_nowait(payload, sender_id="tests", trace_id="run-1")


async def read_until(deliveries: AsyncIterator[Delivery], epoch: int) -> list[int]:
    """Take and acknowledge health signals up to the one of `epoch`; return their epochs."""
    seen: list[int] = []
    while not seen or seen[-1] != epoch:
        delivery = await anext(deliveries)
        await delivery.ack()
        seen.append(cast("HealthSignal", delivery.payload()).epoch)
    return seen


async def test_dead_server_is_named_with_what_to_do() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        bus = open_redis_bus(f"redis://:very-secret@127.0.0.1:{port}/0")
        with pytest.raises(BackendUnavailableError) as caught:
            await bus.open()
    message = str(caught.value)
    assert f"no Redis server answers at 127.0.0.1:{port}" in message
    assert "docker compose" in message
    assert "memory://" in message
    assert "very-secret" not in message


@pytest.mark.parametrize("credentials", ["", ":very-wrong@", "nobody:very-wrong@"])
async def test_wrong_password_is_named_as_such(tmp_path: Path, credentials: str) -> None:
    with start_redis(tmp_path, password="open-sesame") as server:
        bus = open_redis_bus(f"redis://{credentials}{server.host}:{server.port}")
        with pytest.raises(BackendUnavailableError, match="refuses the credentials") as caught:
            await bus.open()
        assert f"{server.host}:{server.port}" in str(caught.value)
        assert "very-wrong" not in str(caught.value)
        right = open_redis_bus(server.url)
        await right.open()
        await right.close()


@pytest.mark.parametrize(
    "form", ["rediss://{}", "rediss+sentinel://{}/service", "rediss+cluster://{}"]
)
async def test_rediss_speaks_tls(form: str) -> None:
    first_bytes: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first_bytes.append(await reader.read(1))
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        bus = open_redis_bus(f"{form.format(f'127.0.0.1:{port}')}?ssl_cert_reqs=none")
        with pytest.raises(
            BackendUnavailableError, match=r"no Redis server answers|no TLS connection"
        ):
            await bus.open()
    assert first_bytes == [b"\x16"]  # a TLS handshake record (RFC 8446, section 5.1)


async def test_database_that_does_not_exist_is_refused(redis_server: RedisServer) -> None:
    bus = open_redis_bus(f"redis://{redis_server.host}:{redis_server.port}/999")
    with pytest.raises(BackendUnavailableError, match=r"refused a command: .*out of range"):
        await bus.open()


async def test_outage_loses_nothing_that_was_queued_and_the_consumer_goes_on(
    tmp_path: Path, connect: Connect, health: Health
) -> None:
    with start_redis(tmp_path) as server:
        async with connect(server.url) as bus:
            await bus.create_group([HEALTH], group="readers")
            reader = bus.subscribe([HEALTH], group="readers", consumer="one")
            waits = asyncio.ensure_future(read_until(reader, 299))
            for epoch in range(100):
                publish(bus, health(epoch))
            assert await bus.flush(10.0)
            server.stop()
            for epoch in range(100, 200):
                publish(bus, health(epoch))
            assert not await bus.flush(0.1)
            server.start()
            for epoch in range(200, 300):
                publish(bus, health(epoch))
            seen = await waits
            assert sorted(set(seen)) == list(range(300))
            assert not bus.lost


async def test_publish_and_ack_wait_out_a_short_outage(
    tmp_path: Path, connect: Connect, health: Health
) -> None:
    with start_redis(tmp_path) as server:
        async with connect(server.url) as bus:
            await bus.create_group([HEALTH], group="readers")
            await bus.publish(health(0), sender_id="tests", trace_id="run-1")
            reader = bus.subscribe([HEALTH], group="readers", consumer="one")
            delivery = await anext(reader)
            server.stop()
            asyncio.get_running_loop().call_later(0.1, server.start)
            await delivery.ack()
            server.stop()
            asyncio.get_running_loop().call_later(0.1, server.start)
            await bus.publish(health(1), sender_id="tests", trace_id="run-1")
            assert await read_until(reader, 1) == [1]


async def test_closing_without_a_server_is_quick_and_counts_what_is_lost(
    tmp_path: Path,
    connect: Connect,
    health: Health,
    samples: dict[TopicNames, Payload],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("esper.oona.redis_streams._CLOSE_SECONDS", 0.3)
    with start_redis(tmp_path) as server:
        async with connect(server.url) as bus:
            server.stop()
            for epoch in range(150):
                publish(bus, health(epoch))
            publish(bus, samples[COMMANDS])
            async with asyncio.timeout(3.0):
                await bus.close()
            assert bus.lost == {HEALTH: 150, COMMANDS: 1}


async def test_server_that_lost_its_data_gets_its_groups_back(
    redis_url: MakeUrl,
    connect: Connect,
    health: Health,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = redis_url()
    async with connect(url) as bus, raw_client(url) as raw:
        await bus.create_group([HEALTH], group="readers")
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        publish(bus, health(0))
        assert await read_until(reader, 0) == [0]
        await raw.delete(stream_key(url, HEALTH))
        publish(bus, health(1))
        publish(bus, health(2))
        assert await bus.flush(10.0)
        assert await read_until(reader, 2) == [1, 2]
    assert "consumer group vanished" in capsys.readouterr().err


async def test_entries_that_are_no_messages_go_to_the_dead_letters(
    redis_url: MakeUrl,
    connect: Connect,
    health: Health,
    samples: dict[TopicNames, Payload],
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = redis_url()
    async with connect(url) as bus, raw_client(url) as raw:
        await bus.create_group(TopicNames, group="readers")
        command = enclose(samples[COMMANDS], sender_id="tests", trace_id="run-1").data
        bad_entries: list[dict[str, str | bytes]] = [
            {"other": "field"},
            {"message": b"\xff not json"},
            {"message": '{"topic": "system.events.epoch"}'},
            {"message": command},  # on the wrong topic
        ]
        for fields in bad_entries:
            await raw.xadd(stream_key(url, HEALTH), fields)
        publish(bus, health(0))
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        assert await read_until(reader, 0) == [0]
        dead = stream_key(url, HEALTH).partition(":")[0] + ":dead-letters"
        letters = [fields for _, fields in await raw.xrange(dead)]
        pending = await raw.xpending(stream_key(url, HEALTH), "readers")
    reasons = [letter[b"reason"].decode() for letter in letters]
    assert len(reasons) == 4
    assert "has no field 'message'" in reasons[0]
    assert "no envelope" in reasons[1]
    assert "no envelope" in reasons[2]
    assert "belongs on control.kasmina.commands" in reasons[3]
    assert letters[3][b"message"] == command
    assert pending["pending"] == 0
    assert capsys.readouterr().err.count("went to the dead letters") == 4


async def test_full_server_makes_the_outbox_wait(
    tmp_path: Path, connect: Connect, health: Health
) -> None:
    with start_redis(tmp_path) as server:
        async with connect(server.url) as bus, raw_client(server.url) as raw:
            await bus.create_group([HEALTH], group="readers")
            await raw.config_set("maxmemory", "1")
            publish(bus, health(0))
            assert not await bus.flush(0.2)
            await raw.config_set("maxmemory", "0")
            assert await bus.flush(10.0)
            assert not bus.lost
            reader = bus.subscribe([HEALTH], group="readers", consumer="one")
            assert await read_until(reader, 0) == [0]


async def test_what_could_not_be_sent_is_sent_by_the_next_process_if_there_is_a_journal(
    tmp_path: Path, connect: Connect, health: Health, samples: dict[TopicNames, Payload]
) -> None:
    data, journal = tmp_path / "data", tmp_path / "journal"
    data.mkdir()
    with start_redis(data) as server:
        url = f"{server.url}?journal={journal}"
        async with connect(url) as bus:
            await bus.create_group([HEALTH, COMMANDS], group="readers")
            server.stop()
            publish(bus, samples[COMMANDS])
            publish(bus, health(0))
        assert bus.lost == {HEALTH: 1}
        server.start()
        async with connect(url) as heir:
            delivery = await anext(heir.subscribe([COMMANDS], group="readers", consumer="one"))
            assert delivery.payload() == samples[COMMANDS]
    assert list(journal.iterdir()) == []


async def test_refused_message_is_counted_and_holds_up_no_other(
    redis_url: MakeUrl, connect: Connect, health: Health, samples: dict[TopicNames, Payload]
) -> None:
    url = redis_url()
    async with connect(url) as bus, raw_client(url) as raw:
        await bus.create_group([HEALTH], group="readers")
        await raw.set(stream_key(url, COMMANDS), "not a stream")
        publish(bus, samples[COMMANDS])
        publish(bus, health(0))
        assert await bus.flush(10.0)
        assert bus.lost == {COMMANDS: 1}
        with pytest.raises(KeyTakenError, match=r"no stream under a key .*WRONGTYPE.*prefix="):
            await bus.publish(samples[COMMANDS], sender_id="tests", trace_id="run-1")
        with pytest.raises(KeyTakenError, match=r"no stream under a key .*WRONGTYPE.*prefix="):
            await anext(bus.subscribe([COMMANDS], group="readers", consumer="one"))
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        assert await read_until(reader, 0) == [0]


async def test_message_trimmed_while_in_hand_does_not_stop_the_group(
    redis_url: MakeUrl, connect: Connect, health: Health
) -> None:
    url = redis_url(0.1)
    async with connect(url) as bus, raw_client(url) as raw:
        await bus.create_group([HEALTH], group="readers")
        publish(bus, health(0))
        await anext(bus.subscribe([HEALTH], group="readers", consumer="one"))
        await raw.xtrim(stream_key(url, HEALTH), maxlen=0, approximate=False)
        publish(bus, health(1))
        reader = bus.subscribe([HEALTH], group="readers", consumer="two")
        assert await read_until(reader, 1) == [1]
        assert bus.lost == {HEALTH: 1}


async def test_messages_trimmed_before_the_group_read_them_are_counted_once(
    redis_url: MakeUrl, connect: Connect, health: Health
) -> None:
    url = redis_url(0.4)  # looks for them every 0.1 s
    async with connect(url) as bus, raw_client(url) as raw:
        await bus.create_group([HEALTH], group="readers")
        publish(bus, health(0))
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        assert await read_until(reader, 0) == [0]
        for epoch in range(1, 11):
            publish(bus, health(epoch))
        assert await bus.flush(10.0)
        await raw.xtrim(stream_key(url, HEALTH), maxlen=3, approximate=False)
        await asyncio.sleep(0.12)  # until the reader is due to look again
        assert await read_until(reader, 10) == [8, 9, 10]
        counts_entries = (await raw.info("server"))["redis_version"] >= "7"
        expected = {HEALTH: 7} if counts_entries else {}
        assert bus.lost == expected
        await reader.aclose()
    assert bus.lost == expected


async def test_letters_of_the_first_format_are_read_and_requeued_and_foreign_ones_left_alone(
    redis_url: MakeUrl, connect: Connect, health: Health
) -> None:
    url = redis_url()
    async with connect(url) as bus, raw_client(url) as raw:
        await bus.create_group([HEALTH], group="readers")
        publish(bus, health(5))
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        delivery = await anext(reader)
        await delivery.ack()
        [(entry_id, fields)] = await raw.xrange(stream_key(url, HEALTH))
        prefix = stream_key(url, HEALTH).partition(":")[0]
        await raw.xadd(f"{prefix}:dead-letters", {"neither": "ours"})
        old = {"key": stream_key(url, HEALTH), "group": "readers", "entry_id": entry_id}
        letter_id = await raw.xadd(
            f"{prefix}:dead-letters", {**old, "reason": "ugly", "message": fields[b"message"]}
        )
        [letter] = await bus.dead_letters()
        assert (letter.topic, letter.group, letter.reason) == (HEALTH, "readers", "ugly")
        assert letter.letter_id == letter_id.decode()
        await bus.requeue(letter.letter_id)
        assert await read_until(reader, 5) == [5]


async def test_entries_that_waited_too_long_in_a_consumer_are_left_to_others(
    redis_url: MakeUrl, connect: Connect, samples: dict[TopicNames, Payload]
) -> None:
    async with connect(redis_url(0.2)) as bus:
        await bus.create_group(TopicNames, group="readers")
        for payload in samples.values():
            publish(bus, payload)
        assert await bus.flush(10.0)
        slow = bus.subscribe(TopicNames, group="readers", consumer="slow")
        first = await anext(slow)
        quick = bus.subscribe(TopicNames, group="readers", consumer="quick")
        others: list[Delivery] = []
        for _ in samples:  # the slow one read one of each topic
            others.append(await anext(quick))
            await others[-1].ack()
        publish(bus, samples[COMMANDS])
        after = await anext(slow)
    assert {delivery.message.topic for delivery in others} == set(TopicNames)
    counts = {delivery.message.event_id: delivery.delivery_count for delivery in others}
    assert counts.pop(first.message.event_id) == 2
    assert set(counts.values()) == {1}  # what the slow one did not reach was not tried
    assert first.message.event_id in {delivery.message.event_id for delivery in others}
    assert after.message.event_id not in {delivery.message.event_id for delivery in others}


_POISON = """
import asyncio, os, sys
from esper.contracts import TopicNames
from esper.oona import open_redis_bus

async def main():
    bus = open_redis_bus(sys.argv[1])
    await bus.open()
    reader = bus.subscribe([TopicNames.TELEMETRY_SEED_HEALTH], group="readers", consumer="p", prefetch=8)
    async for delivery in reader:
        if delivery.payload().epoch == 3:
            os._exit(9)
        await delivery.ack()
        print(delivery.payload().epoch, flush=True)

asyncio.run(main())
"""


async def test_handler_that_kills_its_process_is_found_out_and_its_neighbours_are_not_blamed(
    redis_url: MakeUrl, connect: Connect, health: Health
) -> None:
    url = redis_url(0.2, max_deliveries=2)
    async with connect(url) as bus:
        await bus.create_group([HEALTH], group="readers")
        for epoch in range(10):
            publish(bus, health(epoch))
        assert await bus.flush(10.0)
        handled: set[int] = set()
        while True:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _POISON, url, stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            while line := await process.stdout.readline():
                handled.add(int(line))
                if len(handled) == 9:
                    break
            if len(handled) == 9:
                break
        while not (letters := await bus.dead_letters()):
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
    assert handled == set(range(10)) - {3}
    assert [b'"epoch":3' in letter.data for letter in letters] == [True]


async def test_group_that_is_destroyed_begins_anew_without_a_hole(
    redis_url: MakeUrl, connect: Connect, health: Health
) -> None:
    url = redis_url(0.4)
    async with connect(url) as bus, raw_client(url) as raw:
        await bus.create_group([HEALTH], group="readers")
        for epoch in range(20):
            publish(bus, health(epoch))
        assert await bus.flush(10.0)
        lost = bus.subscribe([HEALTH], group="readers", consumer="dead", prefetch=5)
        await anext(lost)  # 0 to 4 are in hand, unacknowledged
        reader = bus.subscribe([HEALTH], group="readers", consumer="one", prefetch=5)
        seen = [await anext(reader)]
        await raw.xgroup_destroy(stream_key(url, HEALTH), "readers")
        for delivery in seen:
            await delivery.ack()
        seen_epochs = {cast("HealthSignal", d.payload()).epoch for d in seen}
        while seen_epochs != set(range(20)):
            delivery = await anext(reader)
            await delivery.ack()
            seen_epochs.add(cast("HealthSignal", delivery.payload()).epoch)


async def test_a_hundred_and_fifty_consumers_of_one_client_all_read(
    redis_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(redis_url()) as bus:
        await bus.create_group([HEALTH], group="readers")
        readers = [
            bus.subscribe([HEALTH], group="readers", consumer=str(number)) for number in range(150)
        ]
        waits = [asyncio.ensure_future(anext(reader)) for reader in readers]
        for epoch in range(150):
            publish(bus, health(epoch))
        taken = await asyncio.gather(*waits)
        for delivery in taken:
            await delivery.ack()
    assert {cast("HealthSignal", d.payload()).epoch for d in taken} == set(range(150))


async def test_connection_that_was_lost_between_two_commands_is_an_outage(
    redis_url: MakeUrl,
) -> None:
    pool = make_pool(RedisOptions.from_url(redis_url()), max_connections=1)
    connection: Any = await pool.get_connection()
    connection._writer.transport.abort()  # as a reset does, while nobody reads
    await asyncio.sleep(0)
    with pytest.raises(RedisConnectionError, match="was lost"):
        await connection.send_command("PING")
    await pool.release(connection)
    await pool.disconnect()
