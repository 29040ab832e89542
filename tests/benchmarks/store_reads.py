"""How fast verified reads are, beside SHA-256 alone and the unverified read, in one run.

    uv run python tests/benchmarks/store_reads.py

Each round measures all of them one after another; the table has the medians of the rounds and of the
ratios to the slower of the two. The ratios count; the absolute figures are the machine's. What the machine
lets anybody reach is measured too: the unverified read while another thread hashes as many bytes. On two
cores that an S3 server shares, it is less than the slower of the two alone.
"""

import argparse
import hashlib
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from minio import Minio

from esper.contracts import ArtifactStore
from esper.testkit.s3 import S3Server, start_s3
from esper.urza import open_file_store, open_s3_store

_CHUNK = 2**20

type Rates = dict[str, float]
"""MB per second, by what was measured."""


def _rate(blob: bytes, read: Callable[[], object]) -> float:
    begun = time.perf_counter()
    read()
    return len(blob) / (time.perf_counter() - begun) / 1e6


def _streamed(store: ArtifactStore, sha256: str) -> None:
    with store.stream(sha256) as chunks:
        for _ in chunks:
            pass


def _file_chunks(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(_CHUNK):
            pass


def _object(server: S3Server, key: str, *, whole: bool) -> None:
    client = Minio(
        urlsplit(server.endpoint).netloc,
        access_key=server.access_key,
        secret_key=server.secret_key,
        secure=False,
        region="us-east-1",
    )
    response: Any = client.get_object("reads", key)
    while response.read(None if whole else _CHUNK):
        pass
    response.release_conn()


def _beside_a_hash(blob: bytes, read: Callable[[], object]) -> float:
    """Measure a read while a thread hashes as many bytes; both must end."""

    def both() -> None:
        thread = threading.Thread(target=hashlib.sha256, args=(blob,))
        thread.start()
        read()
        thread.join()

    return _rate(blob, both)


def _round(blob: bytes, folder: Path, stores: list[ArtifactStore], server: S3Server) -> Rates:
    sha256 = hashlib.sha256(blob).hexdigest()
    key = f"{sha256[:2]}/{sha256[2:]}"
    files, objects = stores
    reads: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "file get": ((folder / key).read_bytes, lambda: files.get(sha256)),
        "file stream": (lambda: _file_chunks(folder / key), lambda: _streamed(files, sha256)),
        "s3 get": (lambda: _object(server, key, whole=True), lambda: objects.get(sha256)),
        "s3 stream": (
            lambda: _object(server, key, whole=False),
            lambda: _streamed(objects, sha256),
        ),
    }
    rates = {"sha256": _rate(blob, lambda: hashlib.sha256(blob))}
    for name, (raw, verified) in reads.items():
        rates[f"{name}, raw"] = _rate(blob, raw)
        rates[f"{name}, raw beside a hash"] = _beside_a_hash(blob, raw)
        rates[name] = _rate(blob, verified)
    return rates


def _print_table(rounds: list[Rates], num_bytes: int) -> None:
    print(
        f"{platform.platform()}, {os.cpu_count()} cores; {num_bytes / 2**20:.0f} MiB; medians of "
        f"{len(rounds)} rounds, MB/s"
    )
    for measure in rounds[0]:
        line = f"{measure:28}{statistics.median(one[measure] for one in rounds):10,.0f}"
        if f"{measure}, raw" in rounds[0]:
            ratios = [one[measure] / min(one["sha256"], one[f"{measure}, raw"]) for one in rounds]
            beside = [one[measure] / one[f"{measure}, raw beside a hash"] for one in rounds]
            line += (
                f"   {statistics.median(ratios):.2f} of the slower of sha256 and raw, "
                f"{statistics.median(beside):.2f} of raw beside a hash"
            )
        print(line)


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=128, help="size of the artifact")
    parser.add_argument("--rounds", type=int, default=9, help="how often all are measured")
    arguments = parser.parse_args()
    blob = random.Random(0).randbytes(2**20) * arguments.mib
    with tempfile.TemporaryDirectory() as name, start_s3(Path(name)) as server:
        folder = Path(name) / "artifacts"
        os.environ["MINIO_ROOT_USER"] = server.access_key
        os.environ["MINIO_ROOT_PASSWORD"] = server.secret_key
        stores: list[ArtifactStore] = [
            open_file_store(folder.as_uri()),
            open_s3_store(server.url("reads")),
        ]
        for store in stores:
            store.open()
            store.put(blob)
        rounds = [_round(blob, folder, stores, server) for _ in range(arguments.rounds)]
        for store in stores:
            store.close()
    _print_table(rounds, len(blob))


if __name__ == "__main__":
    main()
