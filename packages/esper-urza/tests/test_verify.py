"""Verification: whatever is changed around the library is named, and nothing else is."""

import re
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa

from esper.contracts import (
    LIBRARY_CHAIN,
    BlueprintIR,
    ChainError,
    CompiledKernelArtifact,
    Endorsement,
    FieldReport,
    ValidationReport,
)
from esper.urza.adopting import adopt
from esper.urza.engine import make_engine, parse_url
from esper.urza.library import SqlLibrary
from esper.urza.verify import read_heads, verify

pytestmark = pytest.mark.long

type Make[Record] = Callable[..., Record]


@pytest.fixture
def filled(
    library: SqlLibrary,
    make_ir: Make[BlueprintIR],
    make_kernel: Make[tuple[CompiledKernelArtifact, bytes]],
    make_report: Make[ValidationReport],
    make_endorsement: Make[Endorsement],
    make_outcome: Make[FieldReport],
) -> SqlLibrary:
    """A library in which everything has happened: of six kernels, number 1 is VALIDATED."""
    for name in ("residual", "archived", "waiting"):
        library.submit_blueprint(make_ir(name))
    given = [make_kernel(make_ir(), number, tags=("small",)) for number in range(6)]
    registered = library.register_kernels(given)
    for kernel in registered[1:4]:
        report = make_report(kernel.kernel_id, tags=("fast",))
        library.record_validation(report, make_endorsement(kernel))
    library.record_validation(make_report(registered[2].kernel_id, passed=False), None)
    library.archive_kernel(registered[3].kernel_id)
    library.record_validation(
        make_report(registered[4].kernel_id), make_endorsement(registered[4], "b")
    )
    library.revoke_validator(make_endorsement(registered[4], "b").key_id)
    library.archive_blueprint(make_ir("archived").content_hash())
    for run in "ab":
        library.record_field_report(make_outcome(run_id=run, kernel_id=registered[1].kernel_id))
    return library


@pytest.fixture
def engine(library_url: str, filled: SqlLibrary) -> Generator[sa.Engine]:
    """A way to the library's database around the library and its guards."""
    made = make_engine(parse_url(library_url))
    yield made
    made.dispose()


def _around(engine: sa.Engine, *statements: str) -> None:
    """Change the database as its owner can, who may set its guards aside."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
            for statement in statements:
                assert connection.exec_driver_sql(statement).rowcount > 0, statement
        return
    with closing(sqlite3.connect(str(engine.url.database))) as raw:  # without foreign keys
        for (name,) in raw.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall():
            raw.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            assert raw.execute(statement).rowcount > 0, statement
        raw.commit()


def test_a_library_that_nobody_touched_is_in_order(filled: SqlLibrary) -> None:
    stages: dict[str, tuple[int, int]] = {}
    found = list(
        verify(filled, progress=lambda stage, done, total: stages.update({stage: (done, total)}))
    )
    assert found == []
    assert stages["artifacts"] == stages["kernels"] == (6, 6)
    assert stages["blueprints"] == (3, 3)
    assert all(done == total for done, total in stages.values())


_OTHER = "1" * 64

DAMAGES = {
    "UPDATE blueprints SET name = 'other' WHERE name = 'waiting'": "columns that differ",
    "UPDATE blueprints SET status = 'COMPILED' WHERE name = 'waiting'": "by the record it is SUBMITTED",
    "UPDATE blueprints SET status = 'COMPILED' WHERE name = 'archived'": "by the record it is ARCHIVED",
    "DELETE FROM blueprints WHERE name = 'waiting'": "blueprint .* its row is missing",
    f"UPDATE blueprints SET blueprint_id = '{_OTHER}' WHERE name = 'waiting'": _OTHER,
    "UPDATE kernels SET num_parameters = 7 WHERE num_parameters = 100": "changed after it was registered",
    "UPDATE kernels SET features = 9 WHERE num_parameters = 100": "changed after it was registered",
    "UPDATE kernels SET status = 'COMPILED' WHERE num_parameters = 101": "it is VALIDATED",
    "UPDATE kernels SET status = 'VALIDATED' WHERE num_parameters = 103": "it is ARCHIVED",
    "UPDATE kernels SET latency_us = 1 WHERE num_parameters = 101": "figures that differ",
    "UPDATE kernels SET search = 'gold' WHERE num_parameters = 100": "to search by",
    "UPDATE kernels SET report_id = NULL WHERE num_parameters = 104": "as its latest report",
    "DELETE FROM kernels WHERE num_parameters = 105": "kernel .* its row is missing",
    f"UPDATE kernels SET endorsement_key_id = '{_OTHER}' WHERE num_parameters = 101": "another endorsement",
    "UPDATE validation_reports SET passed = NOT passed WHERE NOT passed": "validation report .* changed",
    "DELETE FROM validation_reports WHERE NOT passed": "kernel",
    "UPDATE field_reports SET outcome = 'CULLED' WHERE run_id = 'a'": "outcome .* changed",
    "UPDATE field_reports SET run_id = 'b' WHERE run_id = 'a'": "outcome .* changed",
    "DELETE FROM field_reports WHERE run_id = 'a'": "outcome .* its row is missing",
    "UPDATE validator_keys SET revoked_at = NULL": "validator's key .* not as the record says",
    "UPDATE validator_keys SET name = 'x' WHERE revoked_at IS NULL": "not as the record says",
    "DELETE FROM validator_keys WHERE revoked_at IS NULL": "key",
    "UPDATE events SET line = replace(line, 'passed', 'Passed') WHERE kind = 'kernel_judged'": "event 6",
    "DELETE FROM events WHERE seq = 2 AND chain = 'library'": "event 2 of chain 'library' is missing",
    "DELETE FROM events WHERE chain = 'run:a'": "outcome .* has no event",
}
"""What an owner of the database may do, and what is said of it; the same on both."""


@pytest.mark.parametrize("artifacts_url", ["file"], indirect=True)
@pytest.mark.parametrize(("statement", "said"), DAMAGES.items())
def test_what_was_changed_around_the_library_is_named(
    filled: SqlLibrary, engine: sa.Engine, statement: str, said: str
) -> None:
    _around(engine, statement)
    problems = "\n".join(each.problem for each in verify(filled, artifacts=False))
    assert re.search(said, problems), problems


def test_a_report_or_tag_that_was_rewritten_is_named(filled: SqlLibrary, engine: sa.Engine) -> None:
    if engine.dialect.name == "postgresql":
        _around(engine, "UPDATE kernels SET all_tags = '{golden}' WHERE num_parameters = 100")
    else:
        _around(engine, "UPDATE kernel_tags SET tag = 'golden' WHERE tag = 'small'")
    assert "tags" in next(verify(filled, artifacts=False)).problem


def test_artifacts_that_are_changed_or_missing_are_named(
    filled: SqlLibrary, tamper: Callable[[str, bytes | None], None]
) -> None:
    changed, missing, *_ = [each for kind, each in filled.find_ids("") if kind == "kernel"]
    tamper(changed, b"something else")
    tamper(missing, None)
    found = {each.subject: each for each in verify(filled)}
    assert {each.kind for each in found.values()} == {"artifact"}
    assert "were changed" in found[changed].problem
    assert "are missing" in found[missing].problem
    assert len(found) == 2
    assert list(verify(filled, artifacts=False)) == []


def test_an_end_that_was_cut_off_is_noticed_by_who_noted_it(
    filled: SqlLibrary, engine: sa.Engine
) -> None:
    heads = {each.chain: each.hash for each in read_heads(filled)}
    assert list(heads) == [LIBRARY_CHAIN, "run:a", "run:b"]
    assert list(verify(filled, heads=heads)) == []
    _around(engine, "DELETE FROM events WHERE chain = 'run:a'", "DELETE FROM field_reports")
    found = [each for each in verify(filled, heads=heads) if each.kind == "chain"]
    assert [each.subject for each in found] == ["run:a"]
    assert heads["run:a"] in found[0].problem


def test_growth_since_a_head_was_noted_is_no_damage(
    filled: SqlLibrary, make_ir: Make[BlueprintIR]
) -> None:
    heads = {each.chain: each.hash for each in read_heads(filled)}
    filled.submit_blueprint(make_ir("later"))
    assert list(verify(filled, heads=heads)) == []


def test_records_from_before_the_record_are_adopted_once_and_guarded_from_then_on(
    filled: SqlLibrary, engine: sa.Engine
) -> None:
    with engine.connect() as connection:
        keys = [
            row.line
            for row in connection.execute(
                sa.text("SELECT line FROM events WHERE kind LIKE 'validator%' ORDER BY seq")
            )
        ]
    assert len(keys) == 3
    _around(engine, "DELETE FROM events", "DELETE FROM validator_keys WHERE revoked_at IS NOT NULL")
    unrecorded = [each for each in verify(filled) if each.is_unrecorded]
    assert len(unrecorded) == 3 + 6 + 5 + 2
    assert adopt(filled) == len(unrecorded)
    assert adopt(filled) == 0
    problems = [each.problem for each in verify(filled)]
    assert all("validator's key" in each or "not enrolled" in each for each in problems), problems
    _around(engine, "UPDATE kernels SET num_parameters = 7 WHERE num_parameters = 100")
    assert "changed after" in " ".join(each.problem for each in verify(filled, artifacts=False))


def test_nothing_is_adopted_into_a_chain_that_does_not_verify(
    filled: SqlLibrary, engine: sa.Engine
) -> None:
    _around(engine, "DELETE FROM events WHERE seq = 2 AND chain = 'library'")
    with pytest.raises(ChainError, match="event 2"):
        adopt(filled)


def test_a_writer_at_work_is_no_damage(filled: SqlLibrary, make_ir: Make[BlueprintIR]) -> None:
    written: list[Any] = []

    def write(_stage: str, _done: int, _total: int) -> None:
        if not written:
            written.append(filled.submit_blueprint(make_ir("new")))

    assert list(verify(filled, artifacts=False, progress=write)) == []
    assert written
