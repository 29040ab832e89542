"""A password never shows: not in logs, not in errors or what led to them, not in any `repr`."""

import asyncio
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esper.contracts import BackendUnavailableError, EsperError, HealthSignal, TopicNames
from esper.contracts.registry import bus_factory
from esper.oona.options import RedisOptions
from esper.oona.redis_client import connect as connect_driver
from esper.oona.redis_consumer import RedisConsumer
from esper.oona.redis_keeper import RedisKeeper
from esper.oona.redis_producer import RedisProducer
from esper.oona.traffic import Traffic
from esper.testkit.redis import start_redis
from esper.testkit.redis_groups import client_of

type Health = Callable[[int], HealthSignal]

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
PASSWORD, ENCODED = "hunter2-p@ss/w?rd", "hunter2-p%40ss%2Fw%3Frd"
SECRETS = (PASSWORD, ENCODED, "hunter2")
ADDRESSES = (
    "redis://me:{}@127.0.0.1:1/0",
    "rediss://:{}@127.0.0.1:1?ssl_cert_reqs=none",
    "redis+sentinel://me:{0}@127.0.0.1:1,127.0.0.1:2/service?sentinel_password={0}",
    "redis+cluster://me:{}@127.0.0.1:1,127.0.0.1:2",
    "rediss+cluster://me:{}@127.0.0.1:1,127.0.0.1:2?ssl_cert_reqs=none",
)


def told_by(error: BaseException) -> str:
    """Return everything that an error tells, with all that led to it, shown or not."""
    texts = ["".join(traceback.format_exception(error))]
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is not None:
            texts += [str(link), repr(link), repr(link.args), repr(vars(link))]
            chain += [link.__cause__, link.__context__]
    return "\n".join(texts)


def assert_kept(*texts: str) -> None:
    for text in texts:
        for secret in SECRETS:
            assert secret not in text


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2-p@ss/w?rd@host",
        "redis://:hunter2/@host",
        "redis://:ab?hunter2=x@host",
        "redis://me:1?hunter2=x@host",
        "redis://:ab#hunter2@host",
        "redis://:hunter2℀@host",
        "redis://:[hunter2@host",
        "redis://:hunter2@host:port",
        "redis://:hunter2@host/x",
        "redis://:hunter2@host?prefix=",
        "redis://:hunter2@host?unknown=1",
        "redis://:hunter2@host?hunter2",
        "redis+sentinel://host/service?sentinel_password=hunter2&broken",
        "redis+sentinel://:hunter2@host",
        "redis+cluster://:hunter2@host/7",
        "redis+other://:hunter2@host",
        "amqp://:hunter2@host",
        "//:hunter2@host",
        "hunter2@host",
        "memory://:hunter2@name",
        "memory://name?hunter2",
    ],
)
def test_mistyped_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(EsperError) as caught:
        bus_factory(url)(url)
    assert_kept(told_by(caught.value))


@pytest.mark.parametrize("form", ADDRESSES)
async def test_no_object_shows_the_password(form: str) -> None:
    options = RedisOptions.from_url(form.format(ENCODED))
    assert options.password == PASSWORD
    client: Any = connect_driver(options)
    pool = client.connection_pool
    objects: list[object] = [
        options,
        client,
        pool,
        pool.make_connection(),
        client.pipeline(transaction=False),
        bus_factory("redis://")(form.format(ENCODED)),
        RedisProducer(options),
        RedisConsumer(
            client,
            options,
            [HEALTH],
            keeper=RedisKeeper(options),
            group="readers",
            consumer="one",
            prefetch=1,
            exclusive=False,
            traffic=Traffic(),
            is_open=lambda: True,
        ),
    ]
    for each in objects:
        assert_kept(repr(each), str(each), repr([each]))
    await client.aclose()


@pytest.mark.parametrize("form", ADDRESSES)
async def test_server_that_is_away_is_told_without_the_password(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bus = bus_factory("redis://")(form.format(ENCODED))
    with pytest.raises(BackendUnavailableError) as caught:
        await bus.open()
    assert_kept(told_by(caught.value), capsys.readouterr().err)


async def test_nothing_that_goes_wrong_with_a_server_shows_the_password(
    tmp_path: Path,
    health: Health,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One life: wrong password, trouble in use, an outage, a password that no longer counts."""
    for module in ("redis_streams", "redis_client"):
        monkeypatch.setattr(f"esper.oona.{module}.PATIENCE_SECONDS", 0.3)
    errors: list[BaseException] = []

    async def fails(call: Any) -> None:
        with pytest.raises(EsperError) as caught:
            await call
        errors.append(caught.value)

    words = {"sender_id": "tests", "trace_id": "run-1"}
    with start_redis(tmp_path, password=PASSWORD) as server:
        place = f"{server.host}:{server.port}"
        await fails(bus_factory("redis://")(f"redis://:wrong-hunter2@{place}").open())
        await fails(bus_factory("redis://")(f"redis://hunter2:{ENCODED}@{place}").open())
        await fails(bus_factory("redis://")(f"redis+cluster://:{ENCODED}@{place}").open())
        bus = bus_factory("redis://")(f"redis://:{ENCODED}@{place}")
        await bus.open()
        reader = bus.subscribe([HEALTH], group="readers", consumer="one")
        reading = asyncio.ensure_future(anext(reader))
        await bus.create_group([HEALTH], group="readers")
        with client_of(server) as raw:
            raw.set("esper:control.kasmina.commands", "no stream")
            await fails(bus.create_group([TopicNames.CONTROL_KASMINA_COMMANDS], group="readers"))
            raw.config_set("maxmemory", 1)
            await fails(bus.publish(health(0), **words))
            raw.config_set("maxmemory", 0)
        server.stop()
        await fails(bus.publish(health(1), **words))
        await fails(bus.create_group([HEALTH], group="others"))
        server.password = "another"
        server.start()
        await fails(bus.create_group([HEALTH], group="others"))
        await fails(reading)
        await fails(bus.publish(health(2), **words))
        await bus.close()
        logged = capsys.readouterr().err
        assert "messages wait for the bus" in logged
        assert_kept(logged, *map(told_by, errors))
