"""Settings: which source wins, what they compose, and that secrets stay secret."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from esper.contracts import ConfigError, Settings, load_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    path = tmp_path / ".env"
    path.write_text("POSTGRES_USER=from_file\nPOSTGRES_PASSWORD=file_secret\nOTHERS_KEY=1\n")
    return path


def test_the_defaults_are_those_of_the_compose_file() -> None:
    settings = load_settings(None)
    assert settings.redis_url.get_secret_value() == "redis://localhost:6379/0"
    assert settings.s3_endpoint_url == "http://localhost:9000"
    assert (settings.postgres_user, settings.postgres_db) == ("esper_admin", "urza_db")


def test_the_environment_beats_the_file_and_the_file_beats_the_defaults(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(env_file).postgres_user == "from_file"
    monkeypatch.setenv("POSTGRES_USER", "from_environment")
    settings = load_settings(env_file)
    assert settings.postgres_user == "from_environment"
    assert settings.postgres_db == "urza_db"
    expected = "postgresql+psycopg://from_environment:file_secret@localhost:5432/urza_db"
    assert settings.library_url() == expected


def test_a_missing_file_is_no_error(tmp_path: Path) -> None:
    assert load_settings(tmp_path / "absent").postgres_user == "esper_admin"


def test_database_url_overrides_what_the_others_compose(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///library.db")
    assert load_settings(env_file).library_url() == "sqlite:///library.db"


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_user_and_password_survive_the_url(user: str, password: str) -> None:
    settings = Settings.model_construct(
        postgres_user=user,
        postgres_password=SecretStr(password),
        postgres_host="db",
        postgres_port=5433,
        postgres_db="urza_db",
        database_url=None,
    )
    parts = urlsplit(settings.library_url())
    assert (unquote(parts.username or ""), unquote(parts.password or "")) == (user, password)
    assert (parts.hostname, parts.port, parts.path) == ("db", 5433, "/urza_db")


def test_a_missing_password_says_what_to_set() -> None:
    with pytest.raises(
        ConfigError, match=r"POSTGRES_PASSWORD and DATABASE_URL are both unset. Copy .env.example"
    ):
        load_settings(None).library_url()


def test_no_secret_is_shown(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("REDIS_URL", "redis://:hunter3@h/0")
    monkeypatch.setenv("MINIO_ROOT_PASSWORD", "hunter4")
    shown = f"{load_settings(env_file)!r} {load_settings(env_file)}"
    for secret in ("hunter2", "hunter3", "hunter4", "file_secret"):
        assert secret not in shown


def test_every_bad_variable_is_named_and_no_value_is_quoted(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_PORT", "hunter2")
    monkeypatch.setenv("S3_ENDPOINT_URL", "ftp://hunter3")
    with pytest.raises(ConfigError, match=r"POSTGRES_PORT: .*; S3_ENDPOINT_URL: ") as caught:
        load_settings(env_file)
    assert "hunter" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("asked", "filled"),
    [
        ("redis://localhost:6379/3", "redis://:hidden@localhost:6379/3"),
        ("redis://localhost/3", "redis://:hidden@localhost/3"),
        (
            "postgresql+psycopg://me@db.example:5432/urza",
            "postgresql+psycopg://me:s%40t@db.example:5432/urza",
        ),
        ("postgresql://db.example/urza", "postgresql://me:s%40t@db.example/urza"),
    ],
)
def test_a_password_is_filled_in_for_the_configured_server(
    asked: str, filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hidden@localhost:6379/0")
    monkeypatch.setenv("POSTGRES_HOST", "db.example")
    monkeypatch.setenv("POSTGRES_USER", "me")
    monkeypatch.setenv("POSTGRES_PASSWORD", "s@t")
    assert load_settings(None).with_password(asked) == filled


@pytest.mark.parametrize(
    "url",
    [
        "memory://",
        "sqlite:///library.db",
        "redis://elsewhere:6379/0",
        "redis://localhost:6380/0",
        "redis://other@localhost:6379/0",
        "redis://:own@localhost:6379/0",
        "rediss://localhost:6379/0",
        "redis://localhost:port/0",
    ],
)
def test_a_password_is_given_to_no_other_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hidden@localhost:6379/0")
    assert load_settings(None).with_password(url) == url
