"""What cannot be opened says so: where, why and what to do, and never a secret."""

import errno
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from minio import Minio

from esper.contracts import (
    ArtifactStore,
    BackendUnavailableError,
    Blueprint,
    BlueprintIR,
    ConfigError,
    EsperError,
)
from esper.contracts.registry import artifact_store_factory, library_factory
from esper.testkit.postgres import PostgresServer, start_postgres
from esper.testkit.s3 import S3Server
from esper.urza import open_file_store, open_library, open_s3_store
from esper.urza.s3_store import S3Store

_SECRET = "hunter2-must-not-appear"


@pytest.fixture
def files(tmp_path: Path) -> ArtifactStore:
    """A folder that can be written."""
    return open_file_store((tmp_path / "artifacts").as_uri())


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port that refuses connections as long as the test runs: bound, but nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _told(attempt: Callable[[], object], kind: type[EsperError] = BackendUnavailableError) -> str:
    """Return the message of the failure, after a look for secrets in all that led to it."""
    with pytest.raises(kind) as caught:
        attempt()
    for error in _chain(caught.value):
        assert _SECRET not in str(error)
        assert _SECRET not in repr(error)
    return str(caught.value)


def test_a_dead_database_server_is_named(files: ArtifactStore, dead_port: int) -> None:
    url = f"postgresql://esper:{_SECRET}@127.0.0.1:{dead_port}/urza_db"
    told = _told(open_library(url, files).open)
    assert f"PostgreSQL 127.0.0.1:{dead_port}/urza_db" in told
    assert "check that the server runs" in told


def test_an_unknown_database_host_is_named(files: ArtifactStore) -> None:
    told = _told(open_library(f"postgresql://esper:{_SECRET}@no.such.invalid/db", files).open)
    assert "PostgreSQL no.such.invalid:5432/db" in told


def test_a_wrong_database_password_is_told_without_it(
    files: ArtifactStore, postgres_server: PostgresServer
) -> None:
    place = f"{postgres_server.host}:{postgres_server.port}/postgres"
    for user in (postgres_server.user, "nobody_knows"):
        url = f"postgresql+psycopg://{user}:{_SECRET}@{place}"
        told = _told(open_library(url, files).open)
        assert f"PostgreSQL {place}" in told
        assert "check the user and password in DATABASE_URL or POSTGRES_*" in told


def test_a_missing_database_is_told(files: ArtifactStore, postgres_server: PostgresServer) -> None:
    told = _told(open_library(postgres_server.url("never_made"), files).open)
    assert "create the database first, for example `createdb never_made`" in told
    assert postgres_server.password not in told


def test_a_library_outlives_an_outage_of_its_server(
    files: ArtifactStore, make_ir: Callable[..., BlueprintIR]
) -> None:
    with start_postgres() as server:
        library = open_library(server.create_database(), files)
        library.open()
        filed = library.submit_blueprint(make_ir())
        server.stop()
        _told(library.list_blueprints)
        server.start()
        assert library.list_blueprints() == [filed]
        library.close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite:////no/such/folder/library.db", "there is no folder /no/such/folder"),
        ("sqlite:////proc", "is not available"),
    ],
)
def test_a_file_that_cannot_be_made_is_named(files: ArtifactStore, url: str, told: str) -> None:
    message = _told(open_library(url, files).open)
    assert url.removeprefix("sqlite:///") in message
    assert told in message


def test_a_file_that_is_no_database_is_left_alone(files: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / "diary.txt"
    file.write_text("Dear diary, " * 100)
    assert "use another name" in _told(open_library(f"sqlite:///{file}", files).open)
    assert file.read_text() == "Dear diary, " * 100


def test_a_locked_file_is_told(
    files: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.urza.engine._LOCK_SECONDS", 0.1)
    with closing(sqlite3.connect(tmp_path / "library.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        told = _told(open_library(f"sqlite:///{tmp_path}/library.db", files).open)
    assert "another process holds it" in told


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (f"postgresql://esper:{_SECRET}@host:port/db", "malformed"),
        (f"mysql://esper:{_SECRET}@host/db", "has scheme 'mysql'"),
        (f"postgresql+asyncpg://esper:{_SECRET}@host/db", "has scheme 'postgresql\\+asyncpg'"),
        ("library.db", "malformed"),
        ("sqlite://library.db", "names a host, 'library.db'"),
    ],
)
def test_a_wrong_library_url_is_told(files: ArtifactStore, url: str, told: str) -> None:
    message = _told(lambda: open_library(url, files), ConfigError)
    assert told.replace("\\", "") in message
    assert "expected sqlite:///relative.db" in message


def test_relative_sqlite_urls_count_from_the_current_folder(
    files: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    library = open_library("sqlite:///library.db", files)
    library.open()
    library.close()
    assert (tmp_path / "library.db").is_file()


def test_a_library_in_memory_serves_many_threads(
    files: ArtifactStore, make_ir: Callable[..., BlueprintIR]
) -> None:
    library = open_library("sqlite://", files)
    library.open()
    number = count()

    def _submit(_: int) -> Blueprint:
        filed = library.submit_blueprint(make_ir(f"design_{next(number)}"))
        return library.get_blueprint(filed.blueprint_id)

    with ThreadPoolExecutor(8) as threads:
        filed = list(threads.map(_submit, range(40)))
    assert list(library.list_blueprints()) == sorted(filed, key=lambda one: one.blueprint_id)
    library.close()


def test_a_store_that_fails_leaves_the_library_closed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    library = open_library("sqlite://", open_file_store((tmp_path / "file" / "a").as_uri()))
    assert "cannot be made and written" in _told(library.open)
    assert "call open() first" in _told(library.list_blueprints)


@pytest.mark.parametrize("folder", ["/proc/artifacts", "/dev/null/artifacts"])
def test_a_folder_that_cannot_be_written_is_named(folder: str) -> None:
    told = _told(open_file_store(f"file://{folder}").open)
    assert f"the artifact folder {folder} cannot be made and written" in told
    assert "choose another" in told


def test_a_full_disk_is_told_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_file_store((tmp_path / "artifacts").as_uri())
    store.open()

    def _fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("esper.urza.file_store.os.fsync", _fail)
    assert "cannot be written: No space left on device" in _told(lambda: store.put(b"too much"))
    assert [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()] == []


def test_file_urls_are_absolute_relative_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_file_store("file:kept/here").url == (tmp_path / "kept" / "here").as_uri()
    spaced = (tmp_path / "with space & #1").as_uri()
    assert open_file_store(spaced).url == spaced
    for url in ("file://host/folder", "file:", "file:///folder?x=1", "file:///folder#1"):
        assert "expected file:///absolute/folder" in _told(
            lambda u=url: open_file_store(u), ConfigError
        )


def test_a_dead_s3_endpoint_is_told_within_seconds(
    dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIO_ROOT_USER", "esper")
    monkeypatch.setenv("MINIO_ROOT_PASSWORD", _SECRET)
    started = time.monotonic()
    told = _told(open_s3_store(f"s3://bucket?endpoint=http://127.0.0.1:{dead_port}").open)
    assert time.monotonic() - started < 5
    assert f"at http://127.0.0.1:{dead_port} cannot be reached: " in told
    assert "Connection refused" in told


def test_wrong_s3_credentials_are_told_without_them(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in (s3_server.access_key, "nobody-knows"):
        monkeypatch.setenv("MINIO_ROOT_USER", user)
        monkeypatch.setenv("MINIO_ROOT_PASSWORD", _SECRET)
        told = _told(open_s3_store(s3_server.url("bucket")).open)
        assert "check MINIO_ROOT_USER and MINIO_ROOT_PASSWORD" in told


def test_missing_s3_credentials_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINIO_ROOT_USER", raising=False)
    told = _told(open_s3_store("s3://bucket").open, ConfigError)
    assert "set MINIO_ROOT_USER and MINIO_ROOT_PASSWORD" in told


def test_the_s3_endpoint_comes_from_the_settings_by_default(
    s3_credentials: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", s3_credentials.endpoint)
    store = open_s3_store("s3://from-settings")
    store.open()
    assert store.get(store.put(b"there")) == b"there"
    store.close()
    assert "call open() first" in _told(lambda: store.put(b"gone"))


def test_an_endpoint_that_is_no_server_is_told(s3_credentials: S3Server) -> None:
    told = _told(open_s3_store("s3://bucket?endpoint=http://host:99999").open, ConfigError)
    assert "at http://host:99999 cannot be used" in told


def test_openers_of_one_missing_bucket_all_succeed(s3_credentials: S3Server) -> None:
    stores = [open_s3_store(s3_credentials.url("made-by-many")) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(S3Store.open, stores))
    for store in stores:
        assert store.get(store.put(b"shared")) == b"shared"
        store.close()


def test_a_bucket_removed_meanwhile_is_told(s3_credentials: S3Server) -> None:
    store = open_s3_store(s3_credentials.url("short-lived"))
    store.open()
    Minio(
        urlsplit(s3_credentials.endpoint).netloc,
        access_key=s3_credentials.access_key,
        secret_key=s3_credentials.secret_key,
        secure=False,
        region="us-east-1",
    ).remove_bucket("short-lived")
    assert "refused: NoSuchBucket" in _told(lambda: store.put(b"lost"))
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3://No_Such_Name",
        "s3://ab",
        "s3://bucket/folder",
        "s3://bucket?endpoint=ftp://host",
        "s3://bucket?endpoint=http://",
        "s3://bucket?zone=eu",
        f"s3://user:{_SECRET}@bucket",
        f"s3://bucket?endpoint=http://user:{_SECRET}@host",
    ],
)
def test_a_wrong_s3_url_is_told(url: str) -> None:
    assert "expected s3://bucket" in _told(lambda: open_s3_store(url), ConfigError)


def test_the_registry_finds_every_backend() -> None:
    for url in ("sqlite://", "postgresql+psycopg://host/db"):
        assert library_factory(url) is open_library
    assert artifact_store_factory("file:///folder") is open_file_store
    assert artifact_store_factory("s3://bucket") is open_s3_store
