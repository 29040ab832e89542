"""One suite for the library port, over every database and every artifact store."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from esper.contracts import (
    ArtifactIntegrityError,
    BackendUnavailableError,
    BlueprintIR,
    BlueprintStatus,
    CompiledKernelArtifact,
    Endorsement,
    FieldReport,
    IllegalTransitionError,
    KernelQuery,
    KernelStatus,
    NotFoundError,
    SeedState,
    SiteKind,
    ValidationReport,
)
from esper.urza.engine import make_engine, parse_url
from esper.urza.library import SqlLibrary

type MakeIR = Callable[..., BlueprintIR]
type MakeKernel = Callable[..., tuple[CompiledKernelArtifact, bytes]]
type MakeReport = Callable[..., ValidationReport]
type MakeEndorsement = Callable[..., Endorsement]
type MakeOutcome = Callable[..., FieldReport]
type Tamper = Callable[[str, bytes | None], None]

NOWHERE = "0" * 64


@pytest.fixture
def kernel(library: SqlLibrary, make_ir: MakeIR, make_kernel: MakeKernel) -> CompiledKernelArtifact:
    """A registered kernel with one tag."""
    ir = make_ir()
    library.submit_blueprint(ir)
    return library.register_kernel(*make_kernel(ir, tags=("narrow",)))


def _run_sql(url: str, statement: str, *, unguarded: str | None = None) -> None:
    """Run a statement behind the library's back; `unguarded` names the guard that is got around."""
    engine = make_engine(parse_url(url))
    try:
        with engine.begin() as connection:
            if unguarded is not None and connection.dialect.name == "postgresql":
                connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
            elif unguarded is not None:
                connection.execute(sa.text(f"DROP TRIGGER {unguarded}"))
            connection.execute(sa.text(statement))
    finally:
        engine.dispose()


def test_a_blueprint_comes_back_and_the_same_design_twice_is_one(
    library: SqlLibrary, make_ir: MakeIR
) -> None:
    filed = library.submit_blueprint(make_ir())
    assert filed.ir == make_ir()
    assert filed.status is BlueprintStatus.SUBMITTED
    assert filed.created_at.utcoffset() == timedelta(0)
    assert library.submit_blueprint(make_ir()) == filed
    assert library.get_blueprint(filed.blueprint_id) == filed


def test_blueprints_are_listed_by_id(library: SqlLibrary, make_ir: MakeIR) -> None:
    filed = [library.submit_blueprint(make_ir(f"design_{n}")) for n in range(5)]
    filed.append(library.submit_blueprint(make_ir("conv", SiteKind.CHANNELS_2D)))
    assert list(library.list_blueprints()) == sorted(filed, key=lambda one: one.blueprint_id)


def test_a_kernel_comes_back_with_its_bytes(
    library: SqlLibrary, make_ir: MakeIR, make_kernel: MakeKernel
) -> None:
    ir = make_ir()
    blueprint = library.submit_blueprint(ir)
    kernel, blob = make_kernel(ir, tags=("narrow", "cheap"))
    assert library.register_kernel(kernel, blob) == kernel
    assert library.get_kernel(kernel.kernel_id) == kernel
    assert library.read_artifact(kernel.kernel_id) == blob
    assert library.get_blueprint(blueprint.blueprint_id).status is BlueprintStatus.COMPILED


def test_a_kernel_registered_again_stays_as_it_stands(
    library: SqlLibrary,
    kernel: CompiledKernelArtifact,
    make_ir: MakeIR,
    make_kernel: MakeKernel,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    judged = library.record_validation(make_report(kernel.kernel_id), make_endorsement(kernel))
    again = library.register_kernel(*make_kernel(make_ir(), tags=("other",)))
    assert again == judged
    assert again.status is KernelStatus.VALIDATED


def test_nobody_registers_a_kernel_as_validated(
    library: SqlLibrary,
    make_ir: MakeIR,
    make_kernel: MakeKernel,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    ir = make_ir()
    library.submit_blueprint(ir)
    kernel, blob = make_kernel(ir)
    claimed = kernel.model_copy(
        update={
            "status": KernelStatus.VALIDATED,
            "report": make_report(kernel.kernel_id),
            "endorsement": make_endorsement(kernel),
        }
    )
    assert library.register_kernel(claimed, blob) == kernel


def test_a_kernel_under_a_wrong_hash_or_size_is_refused(
    library: SqlLibrary, make_ir: MakeIR, make_kernel: MakeKernel
) -> None:
    ir = make_ir()
    library.submit_blueprint(ir)
    kernel, blob = make_kernel(ir)
    with pytest.raises(ArtifactIntegrityError, match="is not the sha256 of the bytes"):
        library.register_kernel(kernel, blob + b"!")
    larger = kernel.model_copy(update={"size_bytes": len(blob) + 1})
    with pytest.raises(ArtifactIntegrityError, match="size_bytes="):
        library.register_kernel(larger, blob)
    assert not library.query(KernelQuery(status=None))


def test_unknown_ids_are_named(
    library: SqlLibrary,
    make_ir: MakeIR,
    make_kernel: MakeKernel,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    with pytest.raises(NotFoundError, match=f"blueprint '{NOWHERE}' is not in the library"):
        library.get_blueprint(NOWHERE)
    for ask in (library.get_kernel, library.read_artifact):
        with pytest.raises(NotFoundError, match="kernel 'elsewhere' is not in the library"):
            ask("elsewhere")
    kernel, blob = make_kernel(make_ir("never_submitted"))
    with pytest.raises(NotFoundError, match=f"kernel '{NOWHERE}' is not"):
        library.record_validation(make_report(NOWHERE), make_endorsement(kernel))
    with pytest.raises(NotFoundError, match="submit it first"):
        library.register_kernel(kernel, blob)
    assert library.field_reports("never-ran") == []


def test_changed_bytes_are_detected_on_every_way_in_and_out(
    library: SqlLibrary,
    kernel: CompiledKernelArtifact,
    make_ir: MakeIR,
    make_kernel: MakeKernel,
    tamper: Tamper,
) -> None:
    _, blob = make_kernel(make_ir())
    tamper(kernel.kernel_id, bytes([blob[0] ^ 1]) + blob[1:])
    with pytest.raises(ArtifactIntegrityError, match=f"expected sha256 {kernel.kernel_id}"):
        library.read_artifact(kernel.kernel_id)
    with pytest.raises(ArtifactIntegrityError, match="delete it, and the kernel will be forged"):
        library.register_kernel(kernel, blob)


def test_lost_bytes_are_stored_again_when_the_kernel_is_registered_again(
    library: SqlLibrary,
    kernel: CompiledKernelArtifact,
    make_ir: MakeIR,
    make_kernel: MakeKernel,
    tamper: Tamper,
) -> None:
    _, blob = make_kernel(make_ir())
    tamper(kernel.kernel_id, None)
    with pytest.raises(NotFoundError, match="forge its kernel again"):
        library.read_artifact(kernel.kernel_id)
    assert library.register_kernel(kernel, blob) == kernel
    assert library.read_artifact(kernel.kernel_id) == blob


def test_the_crucibles_verdict_is_on_file_with_report_tags_and_endorsement(
    library: SqlLibrary,
    kernel: CompiledKernelArtifact,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    report = make_report(kernel.kernel_id, tags=("fast", "narrow"))
    judged = library.record_validation(report, make_endorsement(kernel))
    assert judged.status is KernelStatus.VALIDATED
    assert judged.report == report
    assert judged.endorsement == make_endorsement(kernel)
    assert judged.tags == ("narrow", "fast")
    assert library.get_kernel(kernel.kernel_id) == judged


def test_a_rejection_takes_back_endorsement_and_the_old_reports_tags(
    library: SqlLibrary,
    kernel: CompiledKernelArtifact,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    library.record_validation(
        make_report(kernel.kernel_id, tags=("fast",)), make_endorsement(kernel)
    )
    rejection = make_report(kernel.kernel_id, passed=False, tags=("unstable",))
    rejected = library.record_validation(rejection, None)
    assert rejected.status is KernelStatus.REJECTED
    assert rejected.endorsement is None
    assert rejected.tags == ("narrow", "unstable")
    assert not library.query(KernelQuery(status=None, required_tags=frozenset({"fast"})))
    back = library.record_validation(make_report(kernel.kernel_id), make_endorsement(kernel))
    assert back.status is KernelStatus.VALIDATED


def test_an_old_report_delivered_again_does_not_bring_its_verdict_back(
    library: SqlLibrary,
    kernel: CompiledKernelArtifact,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    passed = make_report(kernel.kernel_id)
    library.record_validation(passed, make_endorsement(kernel))
    rejection = make_report(kernel.kernel_id, passed=False)
    library.record_validation(rejection, None)
    after = library.record_validation(passed, make_endorsement(kernel))
    assert after.status is KernelStatus.REJECTED
    assert after.report is not None
    assert after.report.report_id == rejection.report_id


def test_the_latest_report_may_be_endorsed_anew(
    library: SqlLibrary,
    kernel: CompiledKernelArtifact,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    report = make_report(kernel.kernel_id)
    library.record_validation(report, make_endorsement(kernel, "a"))
    assert library.record_validation(report, make_endorsement(kernel, "b")).endorsement == (
        make_endorsement(kernel, "b")
    )


def test_a_verdict_without_its_endorsement_changes_nothing(
    library: SqlLibrary,
    kernel: CompiledKernelArtifact,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    with pytest.raises(IllegalTransitionError, match="only an endorsed kernel becomes VALIDATED"):
        library.record_validation(make_report(kernel.kernel_id), None)
    with pytest.raises(IllegalTransitionError, match="a REJECTED kernel has none"):
        library.record_validation(
            make_report(kernel.kernel_id, passed=False), make_endorsement(kernel)
        )
    assert library.get_kernel(kernel.kernel_id) == kernel


def test_an_archived_kernel_takes_no_verdict(
    library: SqlLibrary,
    library_url: str,
    kernel: CompiledKernelArtifact,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    _run_sql(library_url, "UPDATE kernels SET status = 'ARCHIVED'")
    with pytest.raises(IllegalTransitionError, match=f"kernel {kernel.kernel_id} is ARCHIVED"):
        library.record_validation(make_report(kernel.kernel_id), make_endorsement(kernel))
    archived = library.get_kernel(kernel.kernel_id)
    assert archived.status is KernelStatus.ARCHIVED
    assert archived.report is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE kernels SET status = 'VALIDATED'",
        "UPDATE kernels SET status = 'SPLENDID'",
        "UPDATE kernels SET report_id = 'of nobody'",
        f"UPDATE kernels SET blueprint_id = '{NOWHERE}'",
        "UPDATE kernels SET num_parameters = num_parameters + 1",
        "UPDATE kernels SET tags = '[]'",
        "UPDATE blueprints SET status = 'SUBMITTED'",
        "UPDATE blueprints SET ir = '{}'",
        "UPDATE validator_keys SET public_key = 'ab'",
        "UPDATE events SET line = ''",
        "DELETE FROM blueprints",
        "DELETE FROM kernels",
        "DELETE FROM events",
        "DELETE FROM validator_keys",
        "INSERT INTO events VALUES ('library', 99, 'made up', '00', '11', '')",
    ],
)
def test_the_database_itself_keeps_the_rules(
    library: SqlLibrary, library_url: str, kernel: CompiledKernelArtifact, statement: str
) -> None:
    with pytest.raises(IntegrityError):
        _run_sql(library_url, statement)
    assert library.get_kernel(kernel.kernel_id) == kernel


def test_a_record_edited_by_hand_is_reported(
    library: SqlLibrary, library_url: str, kernel: CompiledKernelArtifact
) -> None:
    _run_sql(library_url, "UPDATE blueprints SET ir = '{}'", unguarded="blueprints_keep")
    with pytest.raises(ArtifactIntegrityError, match=f"row of blueprint {kernel.blueprint_id}"):
        library.get_blueprint(kernel.blueprint_id)


def test_outcomes_come_back_oldest_first_and_twice_is_one(
    library: SqlLibrary, make_outcome: MakeOutcome
) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    reports = [
        make_outcome(at=start + timedelta(microseconds=n), outcome=outcome)
        for n, outcome in enumerate((SeedState.CULLED, SeedState.FOSSILIZED, SeedState.CANCELLED))
    ]
    for report in (*reversed(reports), reports[1], make_outcome(run_id="run-2")):
        library.record_field_report(report)
    found = library.field_reports("run-1")
    # As JSON, because the diverged loss in them is not equal to itself.
    assert [one.model_dump_json() for one in found] == [one.model_dump_json() for one in reports]


def test_threads_that_register_the_same_kernel_all_succeed(
    library: SqlLibrary, make_ir: MakeIR, make_kernel: MakeKernel
) -> None:
    ir = make_ir()

    def _register(_: int) -> CompiledKernelArtifact:
        library.submit_blueprint(ir)
        return library.register_kernel(*make_kernel(ir))

    with ThreadPoolExecutor(8) as threads:
        records = list(threads.map(_register, range(16)))
    assert records == [records[0]] * 16
    assert len(library.query(KernelQuery(status=None))) == 1


def test_threads_that_judge_and_read_at_once_lose_nothing(
    library: SqlLibrary,
    make_ir: MakeIR,
    make_kernel: MakeKernel,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    ir = make_ir()
    library.submit_blueprint(ir)

    def _live(number: int) -> CompiledKernelArtifact:
        kernel = library.register_kernel(*make_kernel(ir, number % 4))
        library.record_validation(
            make_report(kernel.kernel_id, tags=("t",)), make_endorsement(kernel)
        )
        library.query(KernelQuery(required_tags=frozenset({"t"})))
        return library.get_kernel(kernel.kernel_id)

    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(_live, range(24)))
    assert {one.status for one in seen} == {KernelStatus.VALIDATED}
    assert len(library.query(KernelQuery())) == 4


def test_everything_survives_close_and_open(
    library: SqlLibrary, make_library: Callable[[], SqlLibrary], kernel: CompiledKernelArtifact
) -> None:
    library.close()
    library.close()
    with pytest.raises(BackendUnavailableError, match=r"is not open; call open\(\) first"):
        library.get_kernel(kernel.kernel_id)
    second = make_library()
    for reopened in (library, second):
        reopened.open()
        reopened.open()
        assert reopened.get_kernel(kernel.kernel_id) == kernel
        assert reopened.read_artifact(kernel.kernel_id)
        reopened.close()
