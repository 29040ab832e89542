"""The record: every change is an event on a chain, in the same transaction, and nothing alters it."""

from collections.abc import Callable, Collection, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from esper.contracts import (
    BLUEPRINT_MOVES,
    KERNEL_MOVES,
    LIBRARY_CHAIN,
    ArtifactIntegrityError,
    BlueprintIR,
    BlueprintStatus,
    ChainError,
    CompiledKernelArtifact,
    Endorsement,
    FieldReport,
    IllegalTransitionError,
    KernelRejectedError,
    KernelStatus,
    NotFoundError,
    ValidationReport,
    run_chain,
)
from esper.urza import audit
from esper.urza.engine import make_engine, parse_url, translated
from esper.urza.library import SqlLibrary
from esper.urza.schema import blueprints, events, kernels

pytestmark = pytest.mark.long

type MakeIR = Callable[..., BlueprintIR]
type MakeKernel = Callable[..., tuple[CompiledKernelArtifact, bytes]]
type MakeReport = Callable[..., ValidationReport]
type MakeEndorsement = Callable[..., Endorsement]


@pytest.fixture
def kernel(library: SqlLibrary, make_ir: MakeIR, make_kernel: MakeKernel) -> CompiledKernelArtifact:
    library.submit_blueprint(make_ir())
    return library.register_kernel(*make_kernel(make_ir()))


@pytest.fixture
def engine(library_url: str, library: SqlLibrary) -> Generator[sa.Engine]:
    """A way to the library's database around the library."""
    made = make_engine(parse_url(library_url))
    yield made
    made.dispose()


def _kinds(library: SqlLibrary, chain: str = LIBRARY_CHAIN) -> list[str]:
    return [event.kind for event in library.events(chain)]


def test_every_change_is_recorded_once(
    library: SqlLibrary,
    kernel: CompiledKernelArtifact,
    make_ir: MakeIR,
    make_kernel: MakeKernel,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    report = make_report(kernel.kernel_id)
    for _ in range(2):
        library.submit_blueprint(make_ir())
        library.register_kernel(*make_kernel(make_ir()))
        library.record_validation(report, make_endorsement(kernel))
    library.record_validation(report, make_endorsement(kernel, "b"))
    key_id = library.validator_keys()[0].key_id
    library.revoke_validator(key_id)
    library.revoke_validator(key_id)
    for _ in range(2):
        library.archive_kernel(kernel.kernel_id)
        library.archive_blueprint(kernel.blueprint_id)
    assert _kinds(library) == [
        "validator_enrolled",
        "validator_enrolled",
        "blueprint_submitted",
        "kernels_registered",
        "kernel_judged",
        "kernel_judged",
        "validator_revoked",
        "kernel_archived",
        "blueprint_archived",
    ]


def test_outcomes_are_on_the_chain_of_their_run(
    library: SqlLibrary, make_outcome: Callable[..., FieldReport]
) -> None:
    outcome = make_outcome(run_id="run-1")
    library.record_field_report(outcome)
    library.record_field_report(outcome)
    library.record_field_report(make_outcome(run_id="run-2"))
    assert library.chains() == [LIBRARY_CHAIN, "run:run-1", "run:run-2"]
    (event,) = library.events(run_chain("run-1"))
    assert event.data["report_id"] == outcome.report_id
    assert list(library.events("run:run-3")) == []


def test_writers_at_once_make_one_chain(
    library: SqlLibrary, engine: sa.Engine, make_ir: MakeIR
) -> None:
    def _submit(number: int) -> None:
        library.submit_blueprint(make_ir(f"design_{number}"))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(_submit, range(40)))
    with engine.connect() as connection:
        walked = list(audit.verified(connection, LIBRARY_CHAIN))
    assert [event.seq for event in walked] == list(range(42))
    assert walked == list(library.events())
    assert list(library.events(since=40)) == walked[40:]


def test_a_refused_change_leaves_no_event(
    library: SqlLibrary, make_ir: MakeIR, make_kernel: MakeKernel
) -> None:
    library.submit_blueprint(make_ir())
    before = _kinds(library)
    kernel, blob = make_kernel(make_ir())
    larger = kernel.model_copy(update={"size_bytes": len(blob) + 1})
    with pytest.raises(ArtifactIntegrityError):
        library.register_kernels([make_kernel(make_ir(), 1), (larger, blob)])
    assert _kinds(library) == before
    with pytest.raises(NotFoundError):
        library.get_kernel(make_kernel(make_ir(), 1)[0].kernel_id)


def test_many_kernels_are_registered_together_and_again(
    library: SqlLibrary, make_ir: MakeIR, make_kernel: MakeKernel, artifacts_url: str
) -> None:
    library.submit_blueprint(make_ir())
    # More than one statement asks for, wherever that does not take half a minute.
    count = 20 if artifacts_url.startswith("s3:") else 700
    many = [make_kernel(make_ir(), number) for number in range(count)]
    registered = library.register_kernels([*many, many[0]])
    assert registered == [kernel for kernel, _ in [*many, many[0]]]
    assert library.register_kernels(many) == registered[:-1]
    assert library.register_kernels([]) == []
    assert _kinds(library)[-1] == "kernels_registered"
    assert _kinds(library).count("kernels_registered") == 1


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        (
            "UPDATE events SET line = replace(line, 'name', 'nama') WHERE seq = 1",
            "event 1 of chain",
        ),
        ("DELETE FROM events WHERE seq = 1", "event 1 of chain 'library' is missing"),
        ("UPDATE events SET line = line || ' ' WHERE seq = 2", "event 2 of chain"),
        ("UPDATE events SET seq = seq + 100 WHERE seq = 2", "event 2 of chain"),
    ],
)
def test_a_chain_that_was_altered_around_the_guards_is_found_out(
    engine: sa.Engine, kernel: CompiledKernelArtifact, statement: str, told: str
) -> None:
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        else:
            connection.execute(sa.text("DROP TRIGGER events_keep"))
            connection.execute(sa.text("DROP TRIGGER events_stay"))
        connection.execute(sa.text(statement))
    with engine.connect() as connection, pytest.raises(ChainError, match=told):
        list(audit.verified(connection, LIBRARY_CHAIN))


def test_a_chain_cut_at_its_end_is_found_out_by_who_noted_its_head(
    library: SqlLibrary, engine: sa.Engine, kernel: CompiledKernelArtifact
) -> None:
    *_, before, last = library.events()
    with engine.connect() as connection:
        assert list(audit.verified(connection, LIBRARY_CHAIN, head=last.hash))[-1] == last
        with pytest.raises(ChainError, match=f"expected {before.hash}"):
            list(audit.verified(connection, LIBRARY_CHAIN, head=before.hash))


@pytest.mark.parametrize("table", [blueprints, kernels], ids=str)
def test_the_database_allows_exactly_the_moves_of_the_contracts(
    library: SqlLibrary,
    engine: sa.Engine,
    kernel: CompiledKernelArtifact,
    table: sa.Table,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    library.record_validation(make_report(kernel.kernel_id), make_endorsement(kernel))
    statuses = BlueprintStatus if table is blueprints else KernelStatus
    moves: Any = BLUEPRINT_MOVES if table is blueprints else KERNEL_MOVES
    allowed: Mapping[StrEnum, Collection[StrEnum]] = moves
    for before in statuses:
        for after in statuses:
            with engine.connect() as connection:
                _without_guards(connection, partial(_set, connection, table, before))
                if after is before or after in allowed[before]:
                    _set(connection, table, after)
                else:
                    refused = pytest.raises(IllegalTransitionError, match="not move that way")
                    with refused, translated(engine.url):
                        _set(connection, table, after)
                connection.rollback()


def _set(connection: sa.Connection, table: sa.Table, status: str) -> None:
    connection.execute(sa.update(table).values(status=status))


def _without_guards(connection: sa.Connection, change: Callable[[], None]) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        change()
        connection.execute(sa.text("SET LOCAL session_replication_role = origin"))
        return
    found = sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    guards = connection.execute(found).all()
    for guard in guards:
        connection.exec_driver_sql(f"DROP TRIGGER {guard.name}")
    change()
    for guard in guards:
        connection.exec_driver_sql(guard.sql)


def test_an_archived_blueprint_takes_no_kernels(
    library: SqlLibrary, kernel: CompiledKernelArtifact, make_ir: MakeIR, make_kernel: MakeKernel
) -> None:
    assert library.archive_blueprint(kernel.blueprint_id).status is BlueprintStatus.ARCHIVED
    with pytest.raises(IllegalTransitionError, match="is ARCHIVED and takes no more kernels"):
        library.register_kernel(*make_kernel(make_ir(), 7))
    with pytest.raises(NotFoundError):
        library.archive_blueprint("0" * 64)
    with pytest.raises(NotFoundError):
        library.archive_kernel("0" * 64)


def test_an_endorsement_counts_only_with_an_enrolled_key_and_a_true_signature(
    library: SqlLibrary,
    kernel: CompiledKernelArtifact,
    make_report: MakeReport,
    make_endorsement: MakeEndorsement,
) -> None:
    report = make_report(kernel.kernel_id)
    with pytest.raises(KernelRejectedError, match="the key is not enrolled here"):
        library.record_validation(report, make_endorsement(kernel, "c"))
    other = kernel.model_copy(update={"blueprint_id": "0" * 64})
    with pytest.raises(KernelRejectedError, match="does not verify"):
        library.record_validation(report, make_endorsement(other))
    assert library.get_kernel(kernel.kernel_id) == kernel
    library.record_validation(report, make_endorsement(kernel))
    revoked = library.revoke_validator(make_endorsement(kernel).key_id)
    assert revoked.revoked_at is not None
    again = library.get_kernel(kernel.kernel_id)
    assert (again.status, again.endorsement) == (KernelStatus.COMPILED, None)
    with pytest.raises(KernelRejectedError, match="was revoked on"):
        library.record_validation(make_report(kernel.kernel_id), make_endorsement(kernel))
    with pytest.raises(IllegalTransitionError, match="was revoked on"):
        library.enroll_validator(bytes.fromhex(revoked.public_key), name="again")
    with pytest.raises(NotFoundError, match="no validator's key"):
        library.revoke_validator("0" * 64)


def test_the_database_itself_refuses_a_key_that_is_not_enrolled(
    library: SqlLibrary,
    engine: sa.Engine,
    kernel: CompiledKernelArtifact,
    make_report: MakeReport,
) -> None:
    report = make_report(kernel.kernel_id, passed=False)
    library.record_validation(report, None)
    forged = sa.update(kernels).values(
        status="VALIDATED", endorsement_key_id="0" * 64, endorsement_signature="0" * 128
    )
    refused = pytest.raises(IllegalTransitionError, match="a key that is enrolled")
    with refused, translated(engine.url), engine.begin() as connection:
        connection.execute(forged)
    assert library.get_kernel(kernel.kernel_id).status is KernelStatus.REJECTED


def test_events_follow_one_another_in_the_database_itself(
    library: SqlLibrary, engine: sa.Engine, kernel: CompiledKernelArtifact
) -> None:
    last = list(library.events())[-1]
    row = {"chain": LIBRARY_CHAIN, "kind": "made up", "hash": "1" * 64, "line": ""}
    for wrong in (
        {"seq": last.seq + 2, "previous": last.hash},
        {"seq": last.seq + 1, "previous": "0" * 64},
        {"seq": 0, "previous": "0" * 64},
    ):
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.execute(sa.insert(events).values(row | wrong))
    assert list(library.events())[-1] == last
