"""A library in one file: every backend exports the same bytes and takes them in again, bit for bit."""

import tarfile
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from esper.contracts import (
    ArtifactIntegrityError,
    BackendUnavailableError,
    BlueprintIR,
    CompiledKernelArtifact,
    ConfigError,
    Endorsement,
    FieldReport,
    IllegalTransitionError,
    KernelQuery,
    KernelSignature,
    KernelStatus,
    NotFoundError,
    SiteKind,
    UntrustedKeyError,
    ValidationReport,
    sha256_hex,
)
from esper.testkit.postgres import PostgresServer
from esper.testkit.s3 import S3Server
from esper.urza import keyring, open_file_store, open_library, open_s3_store, upgrade
from esper.urza.engine import make_engine, parse_url
from esper.urza.exporting import export_library, seal_library
from esper.urza.importing import import_library
from esper.urza.library import SqlLibrary
from esper.urza.offline import verify_manifest
from esper.urza.schema import metadata
from esper.urza.signing import SigningKey

KEY = SigningKey(private=Ed25519PrivateKey.from_private_bytes(b"1" * 32))
NEXT = SigningKey(private=Ed25519PrivateKey.from_private_bytes(b"2" * 32))

type MakeTarget = Callable[[str, str], SqlLibrary]


@pytest.fixture
def stocked(
    library: SqlLibrary,
    make_ir: Callable[..., BlueprintIR],
    make_kernel: Callable[..., tuple[CompiledKernelArtifact, bytes]],
    make_report: Callable[..., ValidationReport],
    make_endorsement: Callable[..., Endorsement],
    make_outcome: Callable[..., FieldReport],
) -> SqlLibrary:
    """A library with everything that there can be in one."""
    for name in ("residual", "other", "waiting"):
        library.submit_blueprint(make_ir(name))
    many = [make_kernel(make_ir(), number, tags=("own", "été")) for number in range(6)]
    kernels = [kernel for kernel, _ in many]
    library.register_kernels(many)
    library.register_kernel(*make_kernel(make_ir("other")))
    for number, validator in ((0, "a"), (1, "b"), (2, "a"), (5, "b")):
        report = make_report(kernels[number].kernel_id, tags=("fast",), latency_us=0.1 + number)
        library.record_validation(report, make_endorsement(kernels[number], validator))
    for _ in range(2):  # judged twice: the second report is the latest
        library.record_validation(make_report(kernels[3].kernel_id, passed=False), None)
    library.archive_kernel(kernels[2].kernel_id)
    library.archive_kernel(kernels[5].kernel_id)
    library.archive_blueprint(make_ir("other").content_hash())
    library.revoke_validator(make_endorsement(kernels[1], "b").key_id)
    for run in ("run-1", "Lauf ä", "Run-0", "run-1"):
        library.record_field_report(make_outcome(run_id=run))
    keyring.enroll_key(library, KEY.public_key, name="the library")
    keyring.rotate_key(library, KEY, NEXT, name="next")
    return library


@pytest.fixture(scope="session")
def second_postgresql(postgres_server: PostgresServer) -> Generator[sa.Engine]:
    """Another migrated database, to import into."""
    engine = make_engine(parse_url(postgres_server.create_database()))
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def make_target(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[MakeTarget]:
    """Makes open libraries without records, on any database and store."""
    made: list[SqlLibrary] = []

    def _make(database: str, store: str) -> SqlLibrary:
        name = f"target-{len(made)}"
        if store == "file":
            artifacts = open_file_store((tmp_path / name).as_uri())
        else:
            server: S3Server = request.getfixturevalue("s3_credentials")
            artifacts = open_s3_store(server.url(f"{name}-{id(made)}"))
        url = f"sqlite:///{tmp_path}/{name}.db"
        if database == "postgresql":
            engine: sa.Engine = request.getfixturevalue("second_postgresql")
            with engine.begin() as connection:
                connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
                connection.execute(sa.text(f"TRUNCATE {', '.join(metadata.tables)}"))
            url = engine.url.render_as_string(hide_password=False)
        library = open_library(url, artifacts)
        library.open()
        made.append(library)
        return library

    yield _make
    for library in made:
        library.close()


def _say_the_same(one: SqlLibrary, other: SqlLibrary) -> None:
    assert one.list_blueprints() == other.list_blueprints()
    assert one.validator_keys() == other.validator_keys()
    everything = KernelQuery(status=None)
    # As text: NaN is not equal to itself.
    ours, theirs = one.query(everything), other.query(everything)
    assert [each.model_dump_json() for each in ours] == [each.model_dump_json() for each in theirs]
    for query in (KernelQuery(required_tags=frozenset({"fast"})), KernelQuery(text="été")):
        assert [k.kernel_id for k in one.query(query)] == [k.kernel_id for k in other.query(query)]
    for chain in one.chains():
        assert list(one.events(chain)) == list(other.events(chain))
    assert sorted(one.chains()) == sorted(other.chains())


def test_an_export_comes_back_the_same_on_every_database_and_store(
    stocked: SqlLibrary, make_target: MakeTarget, tmp_path: Path
) -> None:
    first = tmp_path / "first.tar"
    exported = export_library(stocked, first, key=NEXT)
    assert exported.size_bytes == first.stat().st_size
    assert exported.manifest.num_artifacts == 7
    for database in ("sqlite", "postgresql"):
        for store in ("file", "s3"):
            target = make_target(database, store)
            done = import_library(target, first, trusted=[KEY.public_key])
            assert done.path == (KEY.key_id, NEXT.key_id)
            _say_the_same(stocked, target)
            again = tmp_path / f"{database}-{store}.tar"
            export_library(target, again, key=NEXT)
            assert again.read_bytes() == first.read_bytes()
            kernel = target.query(KernelQuery())[0]
            assert target.read_artifact(kernel.kernel_id)
            target.archive_kernel(kernel.kernel_id)  # its chain goes on where it ended


def test_kernels_that_widen_a_layer_come_back_too(
    stocked: SqlLibrary,
    make_target: MakeTarget,
    make_ir: Callable[..., BlueprintIR],
    tmp_path: Path,
) -> None:
    blueprint = stocked.submit_blueprint(make_ir("wider").model_copy(update={"widens": True}))
    blob = b"wider"
    kernel = CompiledKernelArtifact(
        kernel_id=sha256_hex(blob),
        blueprint_id=blueprint.blueprint_id,
        blueprint_name="wider",
        signature=KernelSignature(kind=SiteKind.FEATURES, features=8, inputs=5),
        size_bytes=len(blob),
        num_parameters=8,
    )
    stocked.register_kernel(kernel, blob)
    export_library(stocked, tmp_path / "first.tar", key=NEXT)
    target = make_target("sqlite", "file")
    import_library(target, tmp_path / "first.tar", trusted=[KEY.public_key])
    _say_the_same(stocked, target)
    assert target.get_kernel(kernel.kernel_id).signature.inputs == 5
    (found,) = target.query(KernelQuery(signature=kernel.signature, status=None))
    assert found.kernel_id == kernel.kernel_id


@pytest.fixture
def source(
    tmp_path: Path,
    make_ir: Callable[..., BlueprintIR],
    make_kernel: Callable[..., tuple[CompiledKernelArtifact, bytes]],
) -> Generator[SqlLibrary]:
    """A small library on SQLite, for what does not depend on the backend."""
    artifacts = open_file_store((tmp_path / "source").as_uri())
    library = open_library(f"sqlite:///{tmp_path}/source.db", artifacts)
    library.open()
    library.submit_blueprint(make_ir())
    library.register_kernels([make_kernel(make_ir(), number) for number in range(3)])
    keyring.enroll_key(library, KEY.public_key, name="the library")
    yield library
    library.close()


def test_the_file_is_a_tar_archive_of_plain_members(source: SqlLibrary, tmp_path: Path) -> None:
    path = tmp_path / "library.tar"
    export_library(source, path, key=KEY)
    with tarfile.open(path) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path / "out", filter="data")
    assert names[:3] == ["manifest.json", "blueprints.jsonl", "validator_keys.jsonl"]
    assert names[8:] == [f"artifacts/{k.kernel_id}" for k in source.query(KernelQuery(status=None))]
    verified = verify_manifest(
        tmp_path / "out/manifest.json",
        trusted=[KEY.public_key],
        record=tmp_path / "out/library.jsonl",
    )
    assert verified.record_checked


def test_who_vouches_for_a_file_is_asked_only_if_somebody_wants_to_know(
    source: SqlLibrary, make_target: MakeTarget, tmp_path: Path
) -> None:
    path = tmp_path / "unsigned.tar"
    assert export_library(source, path).signed.signature is None
    target = make_target("sqlite", "file")
    with pytest.raises(UntrustedKeyError, match="nobody signed this manifest of library"):
        import_library(target, path, trusted=[KEY.public_key])
    assert target.chains() == []
    assert import_library(target, path).path == ()
    with pytest.raises(UntrustedKeyError, match="is not on the library's record"):
        export_library(source, tmp_path / "other.tar", key=NEXT)
    assert not (tmp_path / "other.tar").exists()


def test_signing_an_export_is_recorded_on_demand(source: SqlLibrary, tmp_path: Path) -> None:
    before = [event.kind for event in source.events()]
    export_library(source, tmp_path / "one.tar", key=KEY)
    assert [event.kind for event in source.events()] == before
    export_library(source, tmp_path / "two.tar", key=KEY, is_recorded=True)
    assert [event.kind for event in source.events()] == [*before, "manifest_signed"]
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_a_library_is_signed_without_being_written(source: SqlLibrary, tmp_path: Path) -> None:
    exported = export_library(source, tmp_path / "one.tar", key=KEY)
    assert seal_library(source, KEY, is_recorded=False) == exported.signed
    assert seal_library(source, KEY) == exported.signed
    assert [event.kind for event in source.events()][-1] == "manifest_signed"
    with pytest.raises(UntrustedKeyError, match="is not on the library's record"):
        seal_library(source, NEXT)


def test_a_library_with_records_takes_no_other(
    source: SqlLibrary, make_target: MakeTarget, tmp_path: Path
) -> None:
    path = tmp_path / "library.tar"
    export_library(source, path)
    target = make_target("sqlite", "file")
    import_library(target, path)
    before = list(target.events())
    for library in (source, target):
        with pytest.raises(IllegalTransitionError, match="is not empty: it has blueprints"):
            import_library(library, path)
    assert list(target.events()) == before


def test_every_step_says_how_far_it_is_and_ends_where_it_said(
    stocked: SqlLibrary, make_target: MakeTarget, tmp_path: Path
) -> None:
    last: dict[str, tuple[int, int | None]] = {}

    def tell(step: str, done: int, total: int | None) -> None:
        assert done >= last.get(step, (0, None))[0]
        last[step] = (done, total)

    export_library(stocked, tmp_path / "library.tar", tell=tell)
    assert {"kernels.jsonl", "artifacts"} <= last.keys()
    assert all(done == total for done, total in last.values())
    last = {}
    import_library(make_target("sqlite", "file"), tmp_path / "library.tar", tell=tell)
    assert {"verify kernels.jsonl", "artifacts", "write kernels", "compare kernels"} <= last.keys()
    assert all(done == total for done, total in last.values())


def test_an_empty_library_is_a_library_too(make_target: MakeTarget, tmp_path: Path) -> None:
    export_library(make_target("sqlite", "file"), tmp_path / "empty.tar")
    target = make_target("sqlite", "file")
    assert import_library(target, tmp_path / "empty.tar").manifest.chains == ()
    assert target.chains() == []


def test_a_refused_export_leaves_no_file(
    source: SqlLibrary, make_ir: Callable[..., BlueprintIR], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "taken.tar").touch()
    with pytest.raises(ConfigError, match="never replaces a file"):
        export_library(source, folder / "taken.tar")
    with pytest.raises(BackendUnavailableError, match="cannot be written: No such file"):
        export_library(source, tmp_path / "missing" / "library.tar")
    kernel_id = source.query(KernelQuery(status=None))[1].kernel_id
    stored = tmp_path / "source" / kernel_id[:2] / kernel_id[2:]
    blob = stored.read_bytes()
    stored.write_bytes(blob[:-1] + b"?")
    with pytest.raises(ArtifactIntegrityError, match="was changed or damaged"):
        export_library(source, folder / "library.tar")
    stored.unlink()
    with pytest.raises(NotFoundError, match=kernel_id):
        export_library(source, folder / "library.tar")
    assert [each.name for each in folder.iterdir()] == ["taken.tar"]


def test_the_statuses_of_an_imported_library_are_guarded_as_ever(
    stocked: SqlLibrary, make_target: MakeTarget, tmp_path: Path
) -> None:
    export_library(stocked, tmp_path / "library.tar")
    target = make_target("postgresql", "file")
    import_library(target, tmp_path / "library.tar")
    statuses = {each.status for each in target.query(KernelQuery(status=None))}
    assert statuses == set(KernelStatus)
    archived = target.query(KernelQuery(status=KernelStatus.ARCHIVED))[0]
    with pytest.raises(IllegalTransitionError), target.transaction() as connection:
        connection.execute(
            sa.text("UPDATE kernels SET status = 'COMPILED' WHERE kernel_id = :id"),
            {"id": archived.kernel_id},
        )
