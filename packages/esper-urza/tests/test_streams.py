"""Streams in and out of every store: verified, atomic, in little memory."""

import random
import tracemalloc
from collections.abc import Callable, Generator, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.contracts import ArtifactIntegrityError, ArtifactStore, NotFoundError, sha256_hex

type Tamper = Callable[[str, bytes | None], None]

_MIB = 2**20


@pytest.fixture
def store(make_store: Callable[[], ArtifactStore]) -> Generator[ArtifactStore]:
    """An open store without artifacts."""
    made = make_store()
    made.open()
    yield made
    made.close()


def _names(store: ArtifactStore) -> list[str]:
    return [found.sha256 for found in store.list()] + [draft.name for draft in store.drafts()]


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(chunks=st.lists(st.binary(max_size=500), max_size=8))
def test_chunks_of_any_length_come_back_as_one(store: ArtifactStore, chunks: list[bytes]) -> None:
    blob = b"".join(chunks)
    stored = store.put_stream(chunks)
    assert (stored.sha256, stored.size_bytes) == (sha256_hex(blob), len(blob))
    assert store.put_stream(chunks, sha256=stored.sha256).sha256 == stored.sha256
    assert store.get(stored.sha256) == blob
    with store.stream(stored.sha256) as streamed:
        assert b"".join(streamed) == blob


def test_an_artifact_of_many_chunks_and_parts_comes_back(store: ArtifactStore) -> None:
    chunks = [random.Random(n).randbytes(3 * _MIB + n) for n in range(11)]
    stored = store.put_stream(iter(chunks))
    with store.stream(stored.sha256) as streamed:
        assert b"".join(streamed) == b"".join(chunks)
    assert store.get(stored.sha256) == b"".join(chunks)
    assert _names(store) == [stored.sha256]


def test_a_buffer_that_is_used_again_and_again_is_stored_as_it_was(store: ArtifactStore) -> None:
    buffer = bytearray(_MIB)

    def refilled() -> Iterator[bytes]:
        for n in range(6):
            buffer[:] = bytes([n]) * _MIB
            yield buffer  # pyright: ignore[reportReturnType]  # what callers do all the same

    stored = store.put_stream(refilled())
    assert store.get(stored.sha256) == b"".join(bytes([n]) * _MIB for n in range(6))


def test_an_upload_with_another_hash_is_refused_and_leaves_nothing(store: ArtifactStore) -> None:
    expected, actual = sha256_hex(b"this"), sha256_hex(b"that")
    with pytest.raises(ArtifactIntegrityError, match=f"expected sha256 {expected}, .*{actual}"):
        store.put_stream([b"that"], sha256=expected)
    with pytest.raises(ArtifactIntegrityError, match="no bytes hash to 'ABC'"):
        store.put_stream([b"that"], sha256="ABC")
    assert _names(store) == []


def test_an_upload_whose_source_fails_leaves_nothing(store: ArtifactStore) -> None:
    def failing() -> Iterator[bytes]:
        yield b"x" * 2 * _MIB
        raise OSError("the sender went away")

    with pytest.raises(OSError, match=r"^the sender went away$"):
        store.put_stream(failing())
    assert _names(store) == []


def test_a_stream_over_damaged_bytes_is_refused(store: ArtifactStore, tamper: Tamper) -> None:
    sha256 = store.put_stream([b"blocks"]).sha256
    tamper(sha256, b"blocky")
    with pytest.raises(ArtifactIntegrityError, match="was changed or damaged"):
        store.put_stream([b"blocks"])
    tamper(sha256, None)
    store.put_stream([b"blocks"])
    assert store.get(sha256) == b"blocks"


@pytest.mark.parametrize("size", [10, _MIB, 3 * _MIB + 5])
def test_who_reads_damaged_bytes_learns_of_it_before_the_last_of_them(
    store: ArtifactStore, tamper: Tamper, size: int
) -> None:
    blob = random.Random(size).randbytes(size)
    sha256 = store.put(blob)
    tamper(sha256, blob[:-1] + bytes([blob[-1] ^ 1]))
    received: list[bytes] = []
    with store.stream(sha256) as chunks:
        with pytest.raises(ArtifactIntegrityError, match=sha256):
            received.extend(chunks)
        assert sum(map(len, received)) < size
        assert next(chunks, None) is None


def test_the_stream_of_missing_bytes_is_refused_on_entering(store: ArtifactStore) -> None:
    with pytest.raises(NotFoundError, match="is not in"), store.stream("0" * 64):
        pass


def test_a_stream_that_is_left_early_harms_nothing(store: ArtifactStore) -> None:
    blob = random.Random(0).randbytes(5 * _MIB)
    sha256 = store.put(blob)

    def leave() -> None:
        with store.stream(sha256) as chunks:
            next(chunks)
            raise OSError("the reader's own")

    for _ in range(3):
        with store.stream(sha256) as chunks:
            next(chunks)
        with pytest.raises(OSError, match=r"^the reader's own$"):
            leave()
    assert store.get(sha256) == blob


def test_memory_is_bounded_whatever_the_size(store: ArtifactStore) -> None:
    num_chunks, sha256 = 96, sha256_hex(bytes(96 * _MIB))
    tracemalloc.start()
    store.put_stream(bytes(_MIB) for _ in range(num_chunks))
    assert tracemalloc.get_traced_memory()[1] < 90 * _MIB  # S3: five parts of 16 MiB
    tracemalloc.reset_peak()
    with store.stream(sha256) as chunks:
        assert sum(len(chunk) for chunk in chunks) == num_chunks * _MIB
    assert tracemalloc.get_traced_memory()[1] < 16 * _MIB
    tracemalloc.reset_peak()
    assert len(store.get(sha256)) == num_chunks * _MIB
    assert tracemalloc.get_traced_memory()[1] < 1.25 * num_chunks * _MIB
    tracemalloc.stop()
