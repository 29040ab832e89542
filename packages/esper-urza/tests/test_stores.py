"""One suite for the artifact store port, over folders and the buckets of several servers.

One of them is the server that `S3_ENDPOINT_URL` names, with MINIO_ROOT_USER and MINIO_ROOT_PASSWORD.
"""

import os
import re
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.contracts import ArtifactIntegrityError, ArtifactStore, NotFoundError, sha256_hex
from esper.testkit.s3 import S3Server

type Tamper = Callable[[str, bytes | None], None]


@pytest.fixture(params=["file", "s3_server", "conditional_s3_server", "named"])
def artifacts_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The URL of a folder or bucket that does not exist yet."""
    if request.param == "file":
        return (tmp_path / "artifacts").as_uri()
    bucket = f"esper-{uuid.uuid4()}"
    if request.param == "named":
        if "S3_ENDPOINT_URL" not in os.environ:
            pytest.skip("S3_ENDPOINT_URL names no server")
        return f"s3://{bucket}?endpoint={os.environ['S3_ENDPOINT_URL']}"
    server: S3Server = request.getfixturevalue(request.param)
    monkeypatch.setenv("MINIO_ROOT_USER", server.access_key)
    monkeypatch.setenv("MINIO_ROOT_PASSWORD", server.secret_key)
    return server.url(bucket)


@pytest.fixture
def store(make_store: Callable[[], ArtifactStore]) -> Generator[ArtifactStore]:
    """An open store without artifacts."""
    made = make_store()
    made.open()
    yield made
    made.close()


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(blob=st.binary(max_size=2000))
def test_any_bytes_come_back_under_their_hash(store: ArtifactStore, blob: bytes) -> None:
    assert store.put(blob) == sha256_hex(blob)
    assert store.put(blob) == sha256_hex(blob)
    assert store.get(sha256_hex(blob)) == blob


def test_a_large_artifact_comes_back(store: ArtifactStore) -> None:
    blob = bytes(range(256)) * 40_000
    assert store.get(store.put(blob)) == blob


def test_another_store_over_the_same_place_sees_the_bytes(
    store: ArtifactStore, make_store: Callable[[], ArtifactStore]
) -> None:
    sha256 = store.put(b"shared")
    other = make_store()
    other.open()
    other.open()
    assert other.get(sha256) == b"shared"
    other.close()
    other.close()


@pytest.mark.parametrize("damage", [b"", b"blot", b"block", b"longer block"])
def test_damaged_bytes_are_never_returned_nor_accepted_as_stored(
    store: ArtifactStore, tamper: Tamper, damage: bytes
) -> None:
    sha256 = store.put(b"blocks")
    tamper(sha256, damage)
    told = f"{sha256[2:]} was changed or damaged: expected sha256 {sha256}, found "
    with pytest.raises(ArtifactIntegrityError, match=told + sha256_hex(damage)):
        store.get(sha256)
    with pytest.raises(ArtifactIntegrityError, match="delete it"):
        store.put(b"blocks")
    tamper(sha256, None)
    store.put(b"blocks")
    assert store.get(sha256) == b"blocks"


def test_missing_bytes_are_not_found(store: ArtifactStore) -> None:
    with pytest.raises(
        NotFoundError, match=f"artifact {'0' * 64} is not in {re.escape(store.url)}"
    ):
        store.get("0" * 64)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0" * 63, "A" * 64, "0" * 64 + "\n"])
def test_what_is_no_hash_names_nothing(store: ArtifactStore, name: str) -> None:
    with pytest.raises(NotFoundError, match="expected a sha256"):
        store.get(name)


def test_threads_that_store_the_same_bytes_all_succeed(store: ArtifactStore) -> None:
    blobs = [f"blob {n % 3}".encode() for n in range(24)]
    with ThreadPoolExecutor(8) as threads:
        stored = list(threads.map(store.put, blobs))
    assert stored == [sha256_hex(blob) for blob in blobs]
    assert [store.get(sha256) for sha256 in stored] == blobs
