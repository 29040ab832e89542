"""Bus URLs: what they may say, and errors that never quote a password."""

import pytest

from esper.contracts import ConfigError
from esper.contracts.registry import bus_factory
from esper.oona import RedisBus, open_memory_bus, open_redis_bus
from esper.oona.options import MemoryOptions, RedisOptions


def test_memory_url_names_a_broker() -> None:
    assert MemoryOptions.from_url("memory://") == MemoryOptions(name="", reclaim_after_seconds=60.0)
    assert MemoryOptions.from_url("memory://Run-1?reclaim_after_seconds=0.5") == MemoryOptions(
        name="Run-1", reclaim_after_seconds=0.5
    )


def test_redis_url_has_defaults() -> None:
    options = RedisOptions.from_url("redis://localhost")
    assert (options.address, options.db, options.prefix) == ("localhost:6379", 0, "esper")
    assert (options.username, options.password, options.tls) == (None, None, None)
    assert options.reclaim_after_seconds == 60.0


def test_redis_url_gives_every_option() -> None:
    url = "rediss://me:p%40ss@host:7000/3?prefix=lab&reclaim_after_seconds=5&ssl_ca_certs=/ca.pem"
    options = RedisOptions.from_url(url)
    assert (options.address, options.db, options.prefix) == ("host:7000", 3, "lab")
    assert (options.username, options.password) == ("me", "p@ss")
    assert options.tls == {"ssl_ca_certs": "/ca.pem"}
    assert options.reclaim_after_seconds == 5.0
    assert "p@ss" not in repr(options)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host", "scheme 'redis'; expected memory://"),
        ("memory://name/path", "more than a name"),
        ("memory://name?prefix=x", "unknown bus parameter 'prefix'.*knows max_deliveries"),
        ("memory://?reclaim_after_seconds=soon", "is 'soon'; expected seconds"),
        ("memory://?reclaim_after_seconds=0", "is '0'; expected seconds"),
        ("memory://?reclaim_after_seconds=nan", "is 'nan'; expected seconds"),
        ("memory://?reclaim_after_seconds", "malformed query"),
    ],
)
def test_bad_memory_url_is_refused(url: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        open_memory_bus(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://", r"scheme 'memory'; expected redis\[s\]://"),
        ("redis://", "malformed"),
        ("redis://:hunter2@host:port", "no valid host and port"),
        ("redis://:hun/ter2@host", "no valid host and port|malformed"),
        ("redis://:hun#ter2@host", "no valid host and port|malformed"),
        ("redis://:hun[ter2@host", "malformed"),
        ("redis://:hunter2@host/zero", "malformed"),
        ("redis://host?prefix=", "prefix is empty"),
        ("redis://host?retries=3", "unknown bus parameter 'retries'.*prefix, reclaim_after"),
        ("redis://host?ssl_ca_certs=/ca.pem", "unknown bus parameter 'ssl_ca_certs'"),
        ("redis://host?reclaim_after_seconds=-1", "is '-1'; expected seconds"),
        ("redis://host?max_deliveries=0", "is '0'; expected a number from 1"),
        ("redis://host?max_deliveries=many", "is 'many'; expected a number from 1"),
    ],
)
def test_bad_redis_url_is_refused_without_showing_the_password(url: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        open_redis_bus(url)
    assert "ter2" not in str(caught.value)


def test_sentinel_url_names_sentinels_and_a_service() -> None:
    url = "rediss+sentinel://me:p%2Css@one,two:7000,three/my%20service/3?sentinel_password=hunter2"
    options = RedisOptions.from_url(url)
    assert options.layout == "sentinel"
    assert options.nodes == (("one", 26379), ("two", 7000), ("three", 26379))
    assert (options.service, options.db) == ("my service", 3)
    assert (options.username, options.password) == ("me", "p,ss")
    assert (options.sentinel_username, options.sentinel_password) == (None, "hunter2")
    assert (options.tls, options.prefix) == ({}, "esper")
    assert options.address == "one:26379,two:7000,three:26379"
    assert "hunter2" not in repr(options)


def test_cluster_url_names_nodes_and_puts_all_keys_into_one_slot() -> None:
    options = RedisOptions.from_url("redis+cluster://one:7000,two/0?prefix=lab")
    assert options.layout == "cluster"
    assert options.nodes == (("one", 7000), ("two", 6379))
    assert options.prefix == "{lab}"
    assert (options.tls, options.password) == (None, None)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+sentinel://:hunter2@one", "malformed; expected .*sentinel.*/service"),
        ("redis+sentinel://:hunter2@one/service/zero", "malformed"),
        ("redis+sentinel://:hunter2@one,,two/service", "no valid host and port"),
        ("redis+sentinel://:hunter2@one:0/service", "no valid host and port"),
        ("redis+sentinel://:hunter2@one:99999/service", "no valid host and port"),
        ("redis+cluster://:hunter2@one/3", "malformed; expected .*cluster"),
        ("redis+cluster://:hunter2@one?sentinel_password=x", "unknown bus parameter 'sentinel_p"),
        ("redis+cluster://:hunter2@one?prefix={x}", "without braces"),
        ("redis+sentinel://:hunter2@one/s?ssl_ca_certs=/ca.pem", "unknown bus parameter 'ssl_ca"),
        ("redis://:hunter2@one,two", "no valid host and port"),
        ("redis+magic://:hunter2@one", r"scheme 'redis\+magic'; expected .*cluster://"),
    ],
)
def test_bad_group_url_is_refused_without_showing_the_password(url: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        open_redis_bus(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://host/service",
        "rediss+sentinel://host/service",
        "redis+cluster://host",
        "rediss+cluster://host",
    ],
)
def test_every_form_is_found_by_its_scheme(url: str) -> None:
    assert isinstance(bus_factory(url)(url), RedisBus)
