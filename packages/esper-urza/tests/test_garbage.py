"""Garbage collection removes old orphans and drafts, and never what is referenced, young or put again."""

import io
import threading
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from esper.contracts import (
    ArtifactStore,
    BackendUnavailableError,
    ConfigError,
    Draft,
    NotFoundError,
    sha256_hex,
    utc_now,
)
from esper.urza.file_store import FileStore
from esper.urza.garbage import collect
from esper.urza.s3_store import S3Store

_HOUR = timedelta(hours=1)


@pytest.fixture
def store(make_store: Callable[[], ArtifactStore]) -> Generator[ArtifactStore]:
    """An open store without artifacts."""
    made = make_store()
    made.open()
    yield made
    made.close()


def _nothing(_: str) -> bool:
    return False


def _stored(store: ArtifactStore) -> list[str]:
    return [found.sha256 for found in store.list()]


def _begin_upload(store: ArtifactStore) -> None:
    """Leave what an upload leaves that is killed half-way."""
    if isinstance(store, FileStore):
        (Path(urlsplit(store.url).path) / ".draft-0123").write_bytes(b"half")
        return
    assert isinstance(store, S3Store)
    connection = store._connection  # pyright: ignore[reportPrivateUsage]
    sha256 = "a" * 64
    connection.client._create_multipart_upload(  # pyright: ignore[reportPrivateUsage]
        connection.bucket, f"{sha256[:2]}/{sha256[2:]}", {}
    )


def test_the_list_tells_hashes_sizes_and_times(store: ArtifactStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)  # S3 tells whole seconds
    blobs = [b"x" * n for n in range(12)]
    hashes = sorted(store.put(blob) for blob in blobs)
    found = list(store.list())
    assert [one.sha256 for one in found] == hashes
    assert {one.sha256: one.size_bytes for one in found} == {
        sha256_hex(blob): len(blob) for blob in blobs
    }
    assert all(before <= one.modified_at <= datetime.now(UTC) for one in found)


def test_a_deleted_artifact_is_gone(store: ArtifactStore) -> None:
    sha256 = store.put(b"short-lived")
    assert store.delete(sha256)
    assert not store.delete(sha256)
    assert not store.delete(sha256, if_unmodified_since=utc_now())
    with pytest.raises(NotFoundError):
        store.get(sha256)


def test_old_orphans_are_removed_and_the_rest_stays(store: ArtifactStore) -> None:
    orphan, referenced = store.put(b"orphan"), store.put(b"referenced")

    def collected(*, later: timedelta, dry_run: bool = False) -> tuple[int, int, int, int]:
        done = collect(
            store,
            lambda sha256: sha256 == referenced,
            older_than=_HOUR,
            now=utc_now() + later,
            dry_run=dry_run,
        )
        assert done.referenced.size_bytes == len(b"referenced")
        return len(done.removed), done.freed_bytes, done.young.number, done.referenced.number

    assert collected(later=timedelta(minutes=50)) == (0, 0, 1, 1)
    assert collected(later=2 * _HOUR, dry_run=True) == (1, 6, 0, 1)
    assert _stored(store) == sorted([orphan, referenced])
    assert collected(later=2 * _HOUR) == (1, 6, 0, 1)
    assert _stored(store) == [referenced]
    assert store.put(b"orphan") == orphan
    assert store.get(orphan) == b"orphan"


def test_a_negative_grace_period_is_refused(store: ArtifactStore) -> None:
    with pytest.raises(ConfigError, match="expected zero or more"):
        collect(store, _nothing, older_than=-_HOUR)


def test_what_an_interrupted_upload_left_is_removed_once_it_is_old(store: ArtifactStore) -> None:
    _begin_upload(store)
    assert _stored(store) == []
    done = collect(store, _nothing, older_than=_HOUR)
    assert (done.removed_drafts, done.young_drafts.number) == ((), 1)
    later = utc_now() + 2 * _HOUR
    assert len(collect(store, _nothing, older_than=_HOUR, now=later, dry_run=True).removed_drafts)
    (draft,) = collect(store, _nothing, older_than=_HOUR, now=later).removed_drafts
    assert list(store.drafts()) == []
    assert not store.discard(draft)


def test_a_draft_is_never_taken_for_something_else(store: ArtifactStore) -> None:
    sha256 = store.put(b"here to stay")
    for name in (sha256, f"{sha256[:2]}/{sha256[2:]}", f"../{sha256[:2]}/{sha256[2:]}", ""):
        assert not store.discard(Draft(name=name, size_bytes=0, modified_at=utc_now()))
    assert store.get(sha256) == b"here to stay"


@pytest.mark.parametrize("how", ["put", "put_stream"])
def test_a_writer_that_comes_to_an_old_orphan_renews_it(
    store: ArtifactStore, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is done between the collector's look at the list and its deletion."""
    sha256 = store.put(b"orphan")
    (listed,) = store.list()
    a_moment_later = listed.modified_at + timedelta(milliseconds=1)

    def rescued(_: str) -> bool:
        threading.Event().wait(1.1)  # S3 tells whole seconds
        put = store.put(b"orphan") if how == "put" else store.put_stream([b"orphan"]).sha256
        assert put == sha256
        return False  # the row is still on its way

    done = collect(store, rescued, older_than=timedelta(), now=a_moment_later)
    assert (done.removed, done.young.number) == ((), 1)
    assert store.get(sha256) == b"orphan"


def test_no_put_relies_on_what_is_being_deleted(
    store: ArtifactStore, make_store: Callable[[], ArtifactStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer begins between the collector's last look at the age and the deletion."""
    sha256 = store.put(b"contended")
    others, begun = make_store(), threading.Event()
    others.open()

    def put() -> None:
        begun.set()
        others.put(b"contended")

    writer = threading.Thread(target=put)

    def hesitating[**P, T](remove: Callable[P, T]) -> Callable[P, T]:
        def _remove(*args: P.args, **kwargs: P.kwargs) -> T:
            if not begun.is_set():
                writer.start()
                writer.join(0.5)  # it gets as far as it can
            return remove(*args, **kwargs)

        return _remove

    monkeypatch.setattr(Path, "unlink", hesitating(Path.unlink))
    monkeypatch.setattr(S3Store, "_remove", hesitating(S3Store._remove))  # pyright: ignore[reportPrivateUsage]
    assert store.delete(sha256, if_unmodified_since=utc_now() + timedelta(seconds=5))
    writer.join(30)
    assert store.get(sha256) == b"contended"
    assert list(store.drafts()) == []
    others.close()


def test_a_deletion_that_was_killed_is_told_to_writers_until_its_marker_is_old(
    make_store: Callable[[], ArtifactStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    store.open()
    if not isinstance(store, S3Store):
        return  # a folder's lock ends with its process
    monkeypatch.setattr("esper.urza.s3_condemned._WAIT_SECONDS", 0.2)
    connection = store._connection  # pyright: ignore[reportPrivateUsage]
    sha256 = sha256_hex(b"condemned")
    connection.client.put_object(connection.bucket, f".condemned/{sha256}/marker", io.BytesIO(), 0)
    with pytest.raises(BackendUnavailableError, match=r"delete the object \.condemned/"):
        store.put(b"condemned")
    with monkeypatch.context() as later:
        later.setattr("esper.urza.s3_condemned._HOLDS", timedelta())
        assert store.get(store.put(b"condemned")) == b"condemned"
    collect(store, lambda _: True, older_than=_HOUR, now=utc_now() + 2 * _HOUR)
    assert list(store.drafts()) == []
    store.put(b"condemned")
    store.close()
