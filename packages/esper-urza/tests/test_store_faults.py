"""What goes wrong with a store is a typed error, leaves no part of an artifact, and damage is always seen."""

import os
import random
import resource
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from esper.contracts import (
    AccessRefusedError,
    ArtifactIntegrityError,
    ArtifactStore,
    BackendUnavailableError,
    ServerFullError,
    sha256_hex,
)
from esper.urza import open_file_store, open_s3_store

type Tamper = Callable[[str, bytes | None], None]

_NUM_DAMAGED = 2 * int(os.environ.get("ESPER_DAMAGES", "75"))


@pytest.fixture
def store(make_store: Callable[[], ArtifactStore]) -> Generator[ArtifactStore]:
    """An open store without artifacts."""
    made = make_store()
    made.open()
    yield made
    made.close()


def _damaged(blob: bytes, other: bytes, chance: random.Random) -> bytes:
    """Return the bytes with a bit flipped, without their end, or those of another artifact."""
    place = chance.randrange(len(blob))
    flipped = blob[:place] + bytes([blob[place] ^ 1 << chance.randrange(8)]) + blob[place + 1 :]
    return chance.choice([flipped, blob[:place], other])


def test_every_flip_truncation_and_swap_is_seen_and_nothing_else(
    store: ArtifactStore, tamper: Tamper
) -> None:
    chance = random.Random(7)
    blobs = [chance.randbytes(chance.randrange(1, 3000)) for _ in range(_NUM_DAMAGED)]
    hashes = [store.put(blob) for blob in blobs]
    for n in range(0, _NUM_DAMAGED, 2):
        tamper(hashes[n], _damaged(blobs[n], blobs[n + 1], chance))
        with pytest.raises(ArtifactIntegrityError, match=hashes[n]):
            store.get(hashes[n])
        with (
            store.stream(hashes[n]) as chunks,
            pytest.raises(ArtifactIntegrityError, match=hashes[n]),
        ):
            list(chunks)
    for n in range(1, _NUM_DAMAGED, 2):
        assert store.get(hashes[n]) == blobs[n]
        with store.stream(hashes[n]) as chunks:
            assert b"".join(chunks) == blobs[n]


@contextmanager
def _files_up_to(num_bytes: int) -> Generator[None]:
    """Let this process write no further into a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_gets_no_room_leaves_nothing(tmp_path: Path) -> None:
    store = open_file_store(tmp_path.as_uri())
    store.open()
    blob = b"x" * 3_000_000
    with _files_up_to(2_500_000):
        with pytest.raises(ServerFullError, match="cannot be written"):
            store.put(blob)
        with pytest.raises(ServerFullError, match="cannot be written"):
            store.put_stream([blob[:1000], blob[1000:]])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert store.get(store.put(blob)) == blob


def test_a_folder_that_is_not_ours_to_write_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    store = open_file_store(folder.as_uri())
    store.open()
    folder.chmod(0o555)
    for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        above.chmod(0o755)
    is_root = os.geteuid() == 0
    if is_root:  # whom no mode stops
        os.seteuid(65534)
    try:
        with pytest.raises(AccessRefusedError, match="check its mode and owner"):
            store.open()
        with pytest.raises(AccessRefusedError, match="cannot be written"):
            store.put(b"kept out")
    finally:
        if is_root:
            os.seteuid(0)
    assert list(folder.iterdir()) == []


class _Server(BaseHTTPRequestHandler):
    """An S3 server that fails as it is told to."""

    status: ClassVar[int] = 200
    code: ClassVar[str] = ""
    num_requests: ClassVar[int] = 0

    def _answer(self, status: int, body: bytes = b"", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self._answer(404 if type(self).code == "AccessDenied" else 200)

    def do_GET(self) -> None:
        if type(self).code == "cut":
            self._answer(200, b"half", length=8)
            self.close_connection = True
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")

    def do_PUT(self) -> None:
        type(self).num_requests += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        code = type(self).code
        self._answer(
            type(self).status, f"<Error><Code>{code}</Code><Message>so</Message></Error>".encode()
        )

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], ArtifactStore]]:
    """Makes stores over a server that answers writes with a status and a code."""
    monkeypatch.setenv("MINIO_ROOT_USER", "esper")
    monkeypatch.setenv("MINIO_ROOT_PASSWORD", "hunter2-hunter2")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()

    def _make(status: int, code: str) -> ArtifactStore:
        _Server.status, _Server.code, _Server.num_requests = status, code, 0
        return open_s3_store(f"s3://bucket?endpoint=http://127.0.0.1:{server.server_port}")

    yield _make
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_bucket_that_we_may_not_make_is_told(
    failing: Callable[[int, str], ArtifactStore],
) -> None:
    with pytest.raises(AccessRefusedError, match=r"may not make it .*have it made"):
        failing(403, "AccessDenied").open()


@pytest.mark.parametrize(
    ("status", "code", "kind", "num_tries"),
    [
        (507, "XMinioStorageFull", ServerFullError, 1),
        (503, "SlowDown", BackendUnavailableError, 4),
        (403, "SignatureDoesNotMatch", AccessRefusedError, 1),
    ],
)
def test_a_server_that_refuses_an_upload_is_told_in_its_words(
    failing: Callable[[int, str], ArtifactStore],
    status: int,
    code: str,
    kind: type[Exception],
    num_tries: int,
) -> None:
    store = failing(status, code)
    store.open()
    with pytest.raises(kind, match=f"refused: {code}"):
        store.put(b"bytes")
    assert _Server.num_requests == num_tries
    store.close()


def test_an_answer_that_ends_early_is_never_taken_for_the_artifact(
    failing: Callable[[int, str], ArtifactStore],
) -> None:
    store = failing(200, "cut")
    store.open()
    sha256 = sha256_hex(b"half")  # not even if what came matches
    with pytest.raises(BackendUnavailableError):
        store.get(sha256)
    with store.stream(sha256) as chunks, pytest.raises(BackendUnavailableError):
        list(chunks)
    store.close()
