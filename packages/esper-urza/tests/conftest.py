"""Backends as parameters and records as factories, for every suite of this package."""

import io
import os
import sys
from collections.abc import Callable, Generator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from minio import Minio

from esper.contracts import (
    ArtifactStore,
    BlueprintIR,
    CheckResult,
    CompiledKernelArtifact,
    Endorsement,
    FieldReport,
    KernelSignature,
    OperatorNode,
    SeedState,
    SiteKind,
    ValidationReport,
    sha256_hex,
)
from esper.testkit.postgres import PostgresServer
from esper.testkit.s3 import S3Server
from esper.urza import open_file_store, open_library, open_s3_store, upgrade
from esper.urza.engine import make_engine, parse_url
from esper.urza.library import SqlLibrary
from esper.urza.schema import metadata

sys.path.insert(0, str(Path(__file__).parent))  # which pytest's importlib mode does not

_buckets = count()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[str]:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/library.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture(scope="session")
def shared_postgresql(postgres_server: PostgresServer) -> Generator[sa.Engine]:
    """One migrated database for all tests: making a fresh one takes longer than most of them."""
    engine = make_engine(parse_url(postgres_server.create_database()))
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def library_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without records."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/library.db"
    engine: sa.Engine = request.getfixturevalue("shared_postgresql")
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))  # no guards
        connection.execute(sa.text(f"TRUNCATE {', '.join(metadata.tables)}"))
    return engine.url.render_as_string(hide_password=False)


@pytest.fixture
def s3_credentials(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with its credentials in the environment."""
    monkeypatch.setenv("MINIO_ROOT_USER", s3_server.access_key)
    monkeypatch.setenv("MINIO_ROOT_PASSWORD", s3_server.secret_key)
    return s3_server


@pytest.fixture(params=["file", "s3"])
def artifacts_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a folder or bucket that does not exist yet."""
    if request.param == "file":
        return (tmp_path / "artifacts").as_uri()
    server: S3Server = request.getfixturevalue("s3_credentials")
    return server.url(f"bucket-{next(_buckets)}")


@pytest.fixture
def make_store(artifacts_url: str) -> Callable[[], ArtifactStore]:
    """Makes stores over one folder or bucket, not yet open."""
    return lambda: (
        open_s3_store(artifacts_url)
        if artifacts_url.startswith("s3:")
        else open_file_store(artifacts_url)
    )


@pytest.fixture
def tamper(artifacts_url: str) -> Callable[[str, bytes | None], None]:
    """Replaces the bytes stored under a hash behind the store's back; None removes them."""

    def _tamper(sha256: str, blob: bytes | None) -> None:
        key, parts = f"{sha256[:2]}/{sha256[2:]}", urlsplit(artifacts_url)
        if parts.scheme == "file":
            path = Path(parts.path) / key
            path.unlink() if blob is None else path.write_bytes(blob)
            return
        endpoint = urlsplit(parse_qs(parts.query)["endpoint"][0])
        client = Minio(
            endpoint.netloc,
            access_key=os.environ["MINIO_ROOT_USER"],
            secret_key=os.environ["MINIO_ROOT_PASSWORD"],
            secure=endpoint.scheme == "https",
            region="us-east-1",
        )
        if blob is None:
            client.remove_object(parts.netloc, key)
        else:
            client.put_object(parts.netloc, key, io.BytesIO(blob), len(blob))

    return _tamper


@pytest.fixture
def make_library(
    library_url: str, make_store: Callable[[], ArtifactStore]
) -> Callable[[], SqlLibrary]:
    """Makes libraries over one database and one store, not yet open."""
    return lambda: open_library(library_url, make_store())


def private_key(validator: str) -> Ed25519PrivateKey:
    """Return the key of the validator that is called by this hexadecimal digit."""
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(validator * 64))


@pytest.fixture
def public_key() -> Callable[[str], bytes]:
    """Gives the public keys of validators that are called by one hexadecimal digit."""
    return lambda validator: private_key(validator).public_key().public_bytes_raw()


@pytest.fixture
def enroll() -> Callable[[SqlLibrary], None]:
    """Enrolls the validators "a" and "b"."""

    def _enroll(library: SqlLibrary) -> None:
        for validator in "ab":
            public_key = private_key(validator).public_key().public_bytes_raw()
            library.enroll_validator(public_key, name=f"crucible {validator}")

    return _enroll


@pytest.fixture
def library(
    make_library: Callable[[], SqlLibrary], enroll: Callable[[SqlLibrary], None]
) -> Generator[SqlLibrary]:
    """An open library with two validators and no other records."""
    made = make_library()
    made.open()
    enroll(made)
    yield made
    made.close()


@pytest.fixture
def make_ir() -> Callable[..., BlueprintIR]:
    """Makes small designs that differ by name."""

    def _make(name: str = "residual", kind: SiteKind = SiteKind.FEATURES) -> BlueprintIR:
        if kind is SiteKind.FEATURES:
            node = OperatorNode(name="out", op="linear", inputs=("input",), params={"out": "D"})
        else:
            node = OperatorNode(name="out", op="conv2d", inputs=("input",), params={"out": "D"})
        return BlueprintIR(name=name, kind=kind, nodes=(node,))

    return _make


@pytest.fixture
def make_kernel() -> Callable[..., tuple[CompiledKernelArtifact, bytes]]:
    """Makes kernels with their bytes; `number` sets them apart, the rest are fields."""

    def _make(
        ir: BlueprintIR, number: int = 0, *, features: int = 8, **fields: Any
    ) -> tuple[CompiledKernelArtifact, bytes]:
        blob = f"{ir.content_hash()}, {features} features, kernel {number}".encode()
        kernel = CompiledKernelArtifact(
            kernel_id=sha256_hex(blob),
            blueprint_id=ir.content_hash(),
            blueprint_name=ir.name,
            signature=KernelSignature(kind=ir.kind, features=features),
            size_bytes=len(blob),
            num_parameters=fields.pop("num_parameters", 100 + number),
            **fields,
        )
        return kernel, blob

    return _make


@pytest.fixture
def make_report() -> Callable[..., ValidationReport]:
    """Makes reports about a kernel."""

    def _make(kernel_id: str, *, passed: bool = True, **fields: Any) -> ValidationReport:
        check = CheckResult(
            name="identity_at_birth",
            passed=passed,
            value=0.0 if passed else float("nan"),
            limit=1e-6,
            detail="largest change at alpha=1",
        )
        defaults: dict[str, Any] = {
            "validator_id": "urabrask",
            "checks": (check,),
            "probe_shape": (32, 8),
            "latency_us": 12.5,
            "memory_bytes": 4096,
            "num_parameters": 72,
            "flops": 4096,
        }
        return ValidationReport(kernel_id=kernel_id, passed=passed, **(defaults | fields))

    return _make


@pytest.fixture
def make_endorsement() -> Callable[..., Endorsement]:
    """Makes endorsements of kernels, by validators that are called by one hexadecimal digit."""

    def _make(kernel: CompiledKernelArtifact, validator: str = "a") -> Endorsement:
        key = private_key(validator)
        return Endorsement(
            key_id=sha256_hex(key.public_key().public_bytes_raw()),
            signature=key.sign(kernel.statement()).hex(),
        )

    return _make


@pytest.fixture
def make_outcome() -> Callable[..., FieldReport]:
    """Makes field reports."""

    def _make(**fields: Any) -> FieldReport:
        defaults: dict[str, Any] = {
            "run_id": "run-1",
            "seed_id": (0, 0),
            "site": "layers.0",
            "kernel_id": "1" * 64,
            "blueprint_id": "2" * 64,
            "blueprint_name": "residual",
            "outcome": SeedState.FOSSILIZED,
            "reason": "helped",
            "epoch_started": 2,
            "epoch_ended": 7,
            "parameters_added": 72,
            "loss_before": 0.75,
            "loss_with": float("nan"),
            "accuracy_with": 0.5,
        }
        return FieldReport(**(defaults | fields))

    return _make
