"""Bus URLs: what they may say, and errors that never quote a password."""

import pytest

from esper.contracts import ConfigError
from esper.oona import open_memory_bus, open_redis_bus
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
        ("redis://:hunter2@host:port", "no valid port"),
        ("redis://:hun/ter2@host", "no valid port|malformed"),
        ("redis://:hun#ter2@host", "no valid port|malformed"),
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
