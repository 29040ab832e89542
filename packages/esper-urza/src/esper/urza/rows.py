"""Compares every row of the library with what the chains of events say (`recorded`).

A row that somebody wrote around the library differs from its fingerprint, has no event, or is missing.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from esper.contracts import (
    LIBRARY_CHAIN,
    ArtifactIntegrityError,
    BlueprintStatus,
    CompiledKernelArtifact,
    KernelRejectedError,
    KernelStatus,
    ValidatorKey,
    run_chain,
)
from esper.urza import records, validators
from esper.urza.queries import select_kernels
from esper.urza.recorded import Recorded, RecordedKernel
from esper.urza.schema import (
    blueprints,
    field_reports,
    kernel_tags,
    kernels,
    validation_reports,
    validator_keys,
)

_PAGE = 500
_DERIVED = [
    kernels.c[name]
    for name in ("report_id", "latency_us", "memory_bytes", "flops", "all_tags", "search")
]
"""The columns of a kernel that its own tags, its design and its latest report decide."""

type Progress = Callable[[str, int, int], None]
"""Told of a stage by name: how much of it is done, and of how much."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something that is not as it was filed."""

    kind: Literal["chain", "record", "artifact"]
    subject: str
    """The chain's name, or the record's or artifact's id."""
    problem: str
    is_unrecorded: bool = False
    """Only the event is missing: `adopt` makes one for records from before there was a record."""


def compare(
    connection: sa.Connection, recorded: Recorded, broken: Collection[str], progress: Progress
) -> Iterator[Damage]:
    """Yield every row that is not as `recorded` says.

    Args:
        connection: in a transaction with one unchanging view.
        recorded: what the events of that view amount to.
        broken: chains that do not verify: what they recorded further on is not known, so nothing
            can be compared with them.
        progress: told of each table.

    """
    comparison = _Comparison(connection, recorded, progress)
    if LIBRARY_CHAIN not in broken:
        yield from comparison.keys()
        yield from comparison.blueprints()
        yield from comparison.reports()
        yield from comparison.kernels()
    yield from comparison.outcomes(broken)


class _Comparison:
    def __init__(self, connection: sa.Connection, recorded: Recorded, progress: Progress) -> None:
        self._connection = connection
        self._recorded = recorded
        self._progress = progress
        self._keys: dict[str, ValidatorKey] = {}
        self._designs: dict[str, str] = {}
        """What a search looks through, by blueprint."""
        self._compiled = set(connection.scalars(sa.select(kernels.c.blueprint_id).distinct()))

    def keys(self) -> Iterator[Damage]:
        """Compare the validators' keys."""
        missing = set(self._recorded.keys)
        for row in self._walk(sa.select(validator_keys), validator_keys):
            missing.discard(row.key_id)
            known = self._recorded.keys.get(row.key_id)
            if known is None:
                yield _damage("validator's key", row.key_id, "has no event on the record")
            elif (row.public_key, row.name, row.revoked_at is None) != (
                known.public_key,
                known.name,
                known.is_in_force,
            ):
                yield _damage("validator's key", row.key_id, "is not as the record says")
            else:
                self._keys[row.key_id] = records.to_validator_key(row)
        yield from _missing("validator's key", missing)

    def blueprints(self) -> Iterator[Damage]:
        """Compare the designs: their ids are the hashes of their content."""
        missing = set(self._recorded.archived_blueprints)
        for row in self._walk(sa.select(blueprints), blueprints):
            missing.discard(row.blueprint_id)
            try:
                ir = records.to_blueprint(row).ir
            except ArtifactIntegrityError as error:
                yield _damage("blueprint", row.blueprint_id, str(error))
                continue
            self._designs[row.blueprint_id] = records.described(ir)
            columns = (row.name, row.kind, row.search)
            if columns != (ir.name, ir.kind.value, records.described(ir)):
                yield _damage(
                    "blueprint", row.blueprint_id, "has columns that differ from its design"
                )
            yield from self._status_of_blueprint(row.blueprint_id, row.status)
        yield from _missing("blueprint", missing)

    def _status_of_blueprint(self, blueprint_id: str, status: str) -> Iterator[Damage]:
        is_archived = self._recorded.archived_blueprints.get(blueprint_id)
        if is_archived is None:
            yield _unrecorded("blueprint", blueprint_id)
            return
        expected = (
            BlueprintStatus.ARCHIVED
            if is_archived
            else BlueprintStatus.COMPILED
            if blueprint_id in self._compiled
            else BlueprintStatus.SUBMITTED
        )
        if status != expected.value:
            problem = f"is {status}; by the record it is {expected.value}"
            yield _damage("blueprint", blueprint_id, problem)

    def reports(self) -> Iterator[Damage]:
        """Compare the validation reports."""
        missing = set(self._recorded.reports)
        for row in self._walk(sa.select(validation_reports), validation_reports):
            key = (row.kernel_id, row.report_id)
            missing.discard(key)
            expected = self._recorded.reports.get(key)
            if expected is None:
                yield _unrecorded("validation report", " of kernel ".join(reversed(key)))
            elif records.report_fingerprint(row.content) != expected or _differ(
                row.content, passed=row.passed, kernel_id=row.kernel_id, report_id=row.report_id
            ):
                yield _changed("validation report", " of kernel ".join(reversed(key)))
        yield from _missing("validation report", {f"{b} of kernel {a}" for a, b in missing})

    def kernels(self) -> Iterator[Damage]:
        """Compare the kernels with the record, their reports and the keys that endorsed them."""
        missing = set(self._recorded.kernels)
        for page in self._pages(select_kernels(*_DERIVED), kernels):
            tags = self._tags_of([row.kernel_id for row in page])
            for row in page:
                missing.discard(row.kernel_id)
                known = self._recorded.kernels.get(row.kernel_id)
                if known is None:
                    yield _unrecorded("kernel", row.kernel_id)
                elif problem := self._problem_of_kernel(row, known, tags.get(row.kernel_id)):
                    yield _damage("kernel", row.kernel_id, problem)
        yield from _missing("kernel", missing)

    def _problem_of_kernel(
        self, row: records.Row, known: RecordedKernel, tags: set[str] | None
    ) -> str | None:
        if records.row_fingerprint(row) != known.fingerprint:
            return "was changed after it was registered"
        if row.status != known.status:
            return f"is {row.status}; by the record it is {known.status}"
        if row.report_id != known.report_id:
            return (
                f"has {row.report_id} as its latest report; by the record it is {known.report_id}"
            )
        try:
            kernel = records.to_kernel(row)
        except ArtifactIntegrityError as error:
            return str(error)
        report = kernel.report
        measured = report and (report.latency_us, report.memory_bytes, report.flops)
        if (row.latency_us, row.memory_bytes, row.flops) != (measured or (None, None, None)):
            return "has figures that differ from those of its latest report"
        search = " ".join((self._designs.get(row.blueprint_id, ""), *kernel.tags)).lower()
        if row.all_tags != list(kernel.tags) or row.search != search:
            return "has tags or words to search by that are not its own"
        if tags is not None and tags != set(kernel.tags):
            return "is found by other tags than its own"
        return self._problem_of_endorsement(kernel, known)

    def _problem_of_endorsement(
        self, kernel: CompiledKernelArtifact, known: RecordedKernel
    ) -> str | None:
        given = kernel.endorsement
        if (given and (given.key_id, given.signature)) != known.endorsement:
            return "has another endorsement than the record"
        if kernel.status is KernelStatus.VALIDATED and given is not None:
            try:
                validators.check_endorsement(kernel, given, self._keys.get(given.key_id))
            except KernelRejectedError as error:
                return str(error)
        return None

    def outcomes(self, broken: Collection[str]) -> Iterator[Damage]:
        """Compare the outcomes of runs, each with the chain of its run."""
        missing = set(self._recorded.outcomes)
        for row in self._walk(sa.select(field_reports), field_reports):
            missing.discard(row.report_id)
            if run_chain(row.run_id) in broken:
                continue
            expected = self._recorded.outcomes.get(row.report_id)
            if expected is None:
                yield _unrecorded("outcome", row.report_id)
            elif records.report_fingerprint(row.content) != expected or _differ(
                row.content,
                report_id=row.report_id,
                run_id=row.run_id,
                kernel_id=row.kernel_id,
                outcome=row.outcome,
            ):
                yield _changed("outcome", row.report_id)
        yield from _missing("outcome", missing)

    def _walk(self, statement: sa.Select[Any], table: sa.Table) -> Iterator[records.Row]:
        for page in self._pages(statement, table):
            yield from page

    def _pages(self, statement: sa.Select[Any], table: sa.Table) -> Iterator[Sequence[records.Row]]:
        total = self._connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
        ordered = statement.order_by(*table.primary_key.columns)
        with self._connection.execution_options(yield_per=_PAGE).execute(ordered) as found:
            for number, page in enumerate(found.partitions()):
                self._progress(table.name.replace("_", " "), number * _PAGE, total)
                yield page
        self._progress(table.name.replace("_", " "), total, total)

    def _tags_of(self, kernel_ids: Sequence[str]) -> Mapping[str, set[str]]:
        """Return what SQLite finds kernels by; PostgreSQL finds them by a column of their own."""
        found: dict[str, set[str]] = {}
        if self._connection.dialect.name == "sqlite":
            found = {kernel_id: set() for kernel_id in kernel_ids}
            tags = sa.select(kernel_tags).where(kernel_tags.c.kernel_id.in_(kernel_ids))
            for row in self._connection.execute(tags):
                found[row.kernel_id].add(row.tag)
        return found


def _damage(what: str, subject: str, problem: str) -> Damage:
    return Damage(kind="record", subject=subject, problem=f"{what} {subject} {problem}")


def _changed(what: str, subject: str) -> Damage:
    return _damage(what, subject, "was changed after it was filed")


def _unrecorded(what: str, subject: str) -> Damage:
    problem = f"{what} {subject} has no event on the record"
    return Damage(kind="record", subject=subject, problem=problem, is_unrecorded=True)


def _missing(what: str, subjects: Collection[str]) -> Iterator[Damage]:
    for subject in sorted(subjects):
        yield _damage(what, subject, "is on the record, but its row is missing")


def _differ(content: Mapping[str, Any], **columns: object) -> bool:
    return any(content.get(name) != value for name, value in columns.items())
