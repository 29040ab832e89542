"""What goes wrong with servers and messages: a typed error that says what to do, and nothing is lost."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import cast

import pytest
from redis.exceptions import BusyLoadingError

from esper.contracts import (
    AccessRefusedError,
    BackendUnavailableError,
    Bus,
    Delivery,
    HealthSignal,
    KasminaCommand,
    MessageTooLargeError,
    ReadOnlyServerError,
    SeedState,
    ServerFullError,
    TopicNames,
    UnknownSchemeError,
)
from esper.contracts.registry import bus_factory
from esper.oona import open_redis_bus
from esper.oona.envelope import MAX_MESSAGE_BYTES
from esper.oona.options import RedisOptions
from esper.oona.redis_errors import code_of, is_passing, unavailable
from esper.testkit.redis import RedisServer, start_redis
from esper.testkit.redis_groups import client_of, wait_for

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
COMMANDS = TopicNames.CONTROL_KASMINA_COMMANDS


@pytest.fixture
def server(tmp_path: Path, binary: str) -> Iterator[RedisServer]:
    """A server of the test's own, with its files in a folder of its own."""
    folder = tmp_path / "server"
    folder.mkdir()
    settings = ["repl-diskless-sync-delay 0"]  # a replica need not wait for others
    with start_redis(folder, binary=binary, settings=settings) as server:
        yield server


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that come when an outage lasts come soon."""
    for module in ("redis_streams", "redis_client"):
        monkeypatch.setattr(f"esper.oona.{module}.PATIENCE_SECONDS", 0.5)


async def publish(bus: Bus, signal: HealthSignal) -> None:
    await bus.publish(signal, sender_id="tests", trace_id="run-1")


def publish_later(bus: Bus, *signals: HealthSignal) -> None:
    for signal in signals:
        bus.publish_nowait(signal, sender_id="tests", trace_id="run-1")


async def read_until(deliveries: AsyncIterator[Delivery], epoch: int) -> set[int]:
    """Take and acknowledge health signals up to the one of `epoch`; return their epochs."""
    seen: set[int] = set()
    while epoch not in seen:
        delivery = await anext(deliveries)
        await delivery.ack()
        seen.add(cast("HealthSignal", delivery.payload()).epoch)
    return seen


async def goes_on(
    bus: Bus, reader: AsyncIterator[Delivery], waiting: set[int], last: HealthSignal
) -> None:
    """Check that everything that waited arrives once the server takes it, without a new client."""
    assert await bus.flush(60.0)
    publish_later(bus, last)
    assert await read_until(reader, last.epoch) - {last.epoch} >= waiting
    assert not bus.lost


@pytest.mark.parametrize("url", ["amqp://me:hunter2@host", ":hunter2@host", "//me:hunter2@host"])
def test_wrong_scheme_lists_what_is_installed_and_shows_no_password(url: str) -> None:
    with pytest.raises(UnknownSchemeError, match="installed: memory, redis, rediss") as caught:
        bus_factory(url)
    assert "hunter2" not in str(caught.value)


async def test_read_only_replica_is_named_and_used_once_it_is_promoted(
    server: RedisServer, binary: str, tmp_path: Path, connect: Connect, health: Health
) -> None:
    with start_redis(
        tmp_path, binary=binary, settings=[f"replicaof {server.host} {server.port}"]
    ) as replica:
        raw = client_of(replica)
        wait_for(
            lambda: raw.info("replication")["master_link_status"] == "up", "the replica to follow"
        )
        async with connect(server.url) as bus:
            await bus.create_group([HEALTH], group="readers")
        with client_of(server) as master:
            assert master.wait(1, 10_000) == 1
        async with connect(replica.url) as bus:
            reader = bus.subscribe([HEALTH], group="readers", consumer="one")
            reading = asyncio.ensure_future(read_until(reader, 1))
            publish_later(bus, health(0), health(1))
            with pytest.raises(ReadOnlyServerError, match=r"read-only replica.*REPLICAOF NO ONE"):
                await bus.create_group([HEALTH], group="others")
            with pytest.raises(ReadOnlyServerError, match="read-only replica"):
                await publish(bus, health(2))
            raw.replicaof("NO", "ONE")
            assert await reading == {0, 1}
            await goes_on(bus, reader, set(), health(9))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process need Linux")
async def test_full_disk_is_named_and_nothing_is_lost_when_it_has_room_again(
    server: RedisServer, connect: Connect, health: Health
) -> None:
    async with connect(server.url) as bus:
        await bus.create_group([HEALTH], group="readers")
        server.fill_disk()

        async def publish_until_refused() -> None:
            while True:  # the server notices a moment after it tried to write
                await publish(bus, health(0))
                await asyncio.sleep(0.01)

        with pytest.raises(ServerFullError, match=r"cannot save to disk \(.*MISCONF.*make room"):
            await publish_until_refused()
        publish_later(bus, health(1), health(2))
        assert not await bus.flush(0.1)
        server.free_disk()
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        await goes_on(bus, reader, {0, 1, 2}, health(9))


async def test_full_memory_is_named_and_nothing_is_lost_when_there_is_more(
    server: RedisServer, connect: Connect, health: Health
) -> None:
    raw = client_of(server)
    async with connect(server.url) as bus:
        await bus.create_group([HEALTH], group="readers")
        raw.config_set("maxmemory", 1)
        with pytest.raises(ServerFullError, match=r"no memory left.*CONFIG SET maxmemory"):
            await publish(bus, health(0))
        publish_later(bus, health(1), health(2))
        raw.config_set("maxmemory", 0)
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        await goes_on(bus, reader, {1, 2}, health(9))


@pytest.mark.parametrize("command", ["eval", "set", "xadd", "xgroup", "xreadgroup"])
async def test_forbidden_command_is_named_and_nothing_is_lost_when_it_is_allowed(
    server: RedisServer, connect: Connect, health: Health, command: str
) -> None:
    raw = client_of(server)
    async with connect(server.url) as bus:
        await bus.create_group([HEALTH], group="readers")
    raw.execute_command("ACL", "SETUSER", "worker", "on", ">hunter2", "~*", "+@all", f"-{command}")
    async with connect(f"redis://worker:hunter2@{server.host}:{server.port}") as bus:

        async def use_it() -> None:
            publish_later(bus, health(0))
            await publish(bus, health(1))
            await bus.create_group([HEALTH], group="others")
            await anext(bus.subscribe([HEALTH], group="readers", consumer="one"))

        with pytest.raises(AccessRefusedError, match=r"forbids the user 'worker'.*ACL SETUSER"):
            await use_it()
        raw.execute_command("ACL", "SETUSER", "worker", f"+{command}")
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        await goes_on(bus, reader, {0}, health(9))


async def test_what_the_error_says_to_allow_is_all_that_the_bus_needs(
    server: RedisServer, connect: Connect, health: Health
) -> None:
    raw = client_of(server)
    raw.execute_command("ACL", "SETUSER", "worker", "on", ">hunter2", "+ping")
    url = f"redis://worker:hunter2@{server.host}:{server.port}?reclaim_after_seconds=1"
    async with connect(url) as bus:
        with pytest.raises(AccessRefusedError) as refused:
            await bus.create_group([HEALTH], group="readers")
        advice = str(refused.value).partition("ACL SETUSER ")[2]
        raw.execute_command("ACL", "SETUSER", *advice.split())
        await bus.create_group([HEALTH], group="readers")
        await publish(bus, health(0))
        await (await anext(taken := bus.subscribe([HEALTH], group="readers", consumer="a"))).nack(
            delay_seconds=5.0
        )
        await taken.aclose()
        await bus.replay([HEALTH], group="readers")
        await publish(bus, health(1))
        leading = bus.subscribe([HEALTH], group="readers", consumer="b", exclusive=True)
        await (await anext(leading)).dead_letter("no use")
        await leading.aclose()
        (letter,) = await bus.dead_letters()
        await bus.requeue(letter.letter_id)
        state = await bus.health()
        assert state.is_reachable
        assert len(await bus.group_losses()) == 1
        assert [record async for record in bus.read([HEALTH])]
        await bus.remove_group([HEALTH], group="readers")


async def test_password_that_changes_is_named_and_nothing_is_lost_when_it_is_right_again(
    server: RedisServer, connect: Connect, health: Health
) -> None:
    raw = client_of(server)
    async with connect(server.url) as bus:
        await bus.create_group([HEALTH], group="readers")
        raw.config_set("requirepass", "new-one")
        raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        publish_later(bus, health(0))
        with pytest.raises(AccessRefusedError, match="refuses the credentials"):
            await bus.create_group([HEALTH], group="others")
        with pytest.raises(AccessRefusedError, match="refuses the credentials"):
            await publish(bus, health(1))
        raw.config_set("requirepass", "")
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        await goes_on(bus, reader, {0}, health(9))


def command(size: int) -> KasminaCommand:
    return KasminaCommand(seed_id=(0, 0), target=SeedState.CULLED, epoch=1, reason="x" * size)


async def test_oversized_message_is_refused_before_it_is_sent(
    make_url: MakeUrl, connect: Connect
) -> None:
    async with connect(make_url()) as bus:
        await bus.create_group([COMMANDS], group="readers")
        too_large = command(MAX_MESSAGE_BYTES)
        expected = r"1,048,\d{3} bytes as JSON; the bus takes up to 1,048,576\. Send less"
        with pytest.raises(MessageTooLargeError, match=expected):
            await bus.publish(too_large, sender_id="tests", trace_id="run-1")
        with pytest.raises(MessageTooLargeError, match=expected):
            bus.publish_nowait(too_large, sender_id="tests", trace_id="run-1")
        with pytest.raises(MessageTooLargeError, match=expected):
            await bus.publish_many([command(1), too_large], sender_id="tests", trace_id="run-1")
        await bus.publish(command(MAX_MESSAGE_BYTES - 1000), sender_id="tests", trace_id="run-1")
        reader = bus.subscribe([COMMANDS], group="readers", consumer="one")
        delivery = await anext(reader)
        assert len(cast("KasminaCommand", delivery.payload()).reason) == MAX_MESSAGE_BYTES - 1000
        await delivery.ack()


async def test_oversized_name_of_a_trace_is_refused_too(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        with pytest.raises(MessageTooLargeError, match="from 'tests'"):
            bus.publish_nowait(health(0), sender_id="tests", trace_id="x" * MAX_MESSAGE_BYTES)


def test_telemetry_is_a_few_numbers_and_needs_no_measuring() -> None:
    for field in HealthSignal.model_fields.values():
        assert field.annotation in (int, float, bool, float | None)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("MISCONF Errors writing to the AOF file", "MISCONF"),
        ("-READONLY You can't write against a read only replica.", "READONLY"),
        (
            "ERR Error running script (call to f_0a): @user_script:2: -READONLY You can't write",
            "READONLY",
        ),
        ("ERR Error running script (call to f_0a): @user_script:2: @user_script: 2: -OOM x", "OOM"),
        ("The user executing the script can't run this command or subcommand", "NOPERM"),
        ("ERR ACL failure in script: User worker has no permissions to run 'set'", "NOPERM"),
        (
            "Command # 1 (XACK key readers 1-0) of pipeline caused error: ('MISCONF Errors writing',)",
            "MISCONF",
        ),
        ("no words of the server's", ""),
    ],
)
def test_refusal_is_recognized_by_its_code(text: str, code: str) -> None:
    assert code_of(text) == code


def test_server_that_still_loads_its_data_is_waited_for() -> None:
    error = BusyLoadingError("Redis is loading the dataset in memory")
    assert is_passing(error)
    told = unavailable(RedisOptions.from_url("redis://host"), error)
    assert "takes no writes at the moment (LOADING" in str(told)
    assert type(told) is BackendUnavailableError


async def test_wrong_password_at_open_says_where_it_belongs(tmp_path: Path) -> None:
    with start_redis(tmp_path, password="open-sesame") as server:
        bus = open_redis_bus(f"redis://:very-wrong@{server.host}:{server.port}")
        with pytest.raises(
            AccessRefusedError, match=r"give the right ones in the URL: redis\[s\]://"
        ):
            await bus.open()


def test_certificate_that_is_not_trusted_is_told_from_a_server_that_is_away() -> None:
    options = RedisOptions.from_url("rediss://host")
    refused = ConnectionError("Error 1: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
    assert "?ssl_ca_certs=FILE" in str(unavailable(options, refused))
    away = unavailable(options, ConnectionError("Timeout connecting to server"))
    assert "no Redis server answers with TLS at host:6379" in str(away)
