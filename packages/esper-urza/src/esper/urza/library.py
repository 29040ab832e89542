"""Urza: the library of blueprints, kernels, reports and outcomes, on SQLite or PostgreSQL.

Tezzeret and Urabrask file their results here, Tamiyo queries it; kernels' bytes go through an
`ArtifactStore`. Implements the port `esper.contracts.ports.Library`.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from esper.contracts import (
    ArtifactIntegrityError,
    ArtifactStore,
    BackendUnavailableError,
    Blueprint,
    BlueprintIR,
    BlueprintStatus,
    CompiledKernelArtifact,
    Endorsement,
    FieldReport,
    IllegalTransitionError,
    KernelQuery,
    KernelStatus,
    NotFoundError,
    ValidationReport,
    sha256_hex,
)
from esper.urza import records
from esper.urza.engine import WRITES, make_engine, parse_url, place, translated
from esper.urza.migrate import upgrade
from esper.urza.schema import blueprints, field_reports, kernel_tags, kernels, validation_reports


class SqlLibrary:
    """A library in one database; made by `open_library`, used between `open` and `close`."""

    def __init__(self, url: sa.URL, artifacts: ArtifactStore) -> None:
        self._url = url
        self._artifacts = artifacts
        self._engine: sa.Engine | None = None

    def open(self) -> None:
        """Connect, bring the schema up to date, open the artifact store; twice is once.

        Raises:
            BackendUnavailableError: if the database or the store cannot be reached or written or
                refuses the credentials, or if the schema is newer than this code.

        """
        if self._engine is not None:
            return
        engine = make_engine(self._url)
        try:
            with translated(self._url):
                upgrade(engine)
            self._artifacts.open()
        except BaseException:
            engine.dispose()
            raise
        self._engine = engine

    def close(self) -> None:
        """Release connections, the artifact store's too; twice is once."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()
            self._artifacts.close()

    def submit_blueprint(self, ir: BlueprintIR) -> Blueprint:
        """File a design under its content hash; the same design twice is one."""
        blueprint = Blueprint.from_ir(ir)
        with self._writing() as connection:
            _insert_once(connection, blueprints, records.blueprint_row(blueprint))
            return _read_blueprint(connection, blueprint.blueprint_id)

    def get_blueprint(self, blueprint_id: str) -> Blueprint:
        """Return one blueprint. Raises `NotFoundError`."""
        with self._reading() as connection:
            return _read_blueprint(connection, blueprint_id)

    def list_blueprints(self) -> Sequence[Blueprint]:
        """Return all blueprints, ordered by id."""
        with self._reading() as connection:
            rows = connection.execute(sa.select(blueprints).order_by(blueprints.c.blueprint_id))
            return [records.to_blueprint(row) for row in rows]

    def register_kernel(
        self, kernel: CompiledKernelArtifact, blob: bytes
    ) -> CompiledKernelArtifact:
        """Store the bytes, then the record (status COMPILED); return the record on file.

        The kernel's blueprint is COMPILED from then on.

        Raises:
            ArtifactIntegrityError: if `kernel_id` or `size_bytes` is not that of `blob`, or if the
                bytes already stored under it are not these.
            NotFoundError: if its blueprint is not on file.

        """
        _check_blob(kernel, blob)
        self.get_blueprint(kernel.blueprint_id)
        self._artifacts.put(blob)  # first, so that no row ever points to missing bytes
        with self._writing() as connection:
            if _insert_once(connection, kernels, records.kernel_row(kernel)):
                _index_tags(connection, kernel.kernel_id, records.all_tags(kernel.tags, None))
                connection.execute(
                    sa.update(blueprints)
                    .where(
                        blueprints.c.blueprint_id == kernel.blueprint_id,
                        blueprints.c.status == BlueprintStatus.SUBMITTED.value,
                    )
                    .values(status=BlueprintStatus.COMPILED.value)
                )
            return _read_kernel(connection, kernel.kernel_id)

    def get_kernel(self, kernel_id: str) -> CompiledKernelArtifact:
        """Return one kernel's record with its latest report. Raises `NotFoundError`."""
        with self._reading() as connection:
            return _read_kernel(connection, kernel_id)

    def read_artifact(self, kernel_id: str) -> bytes:
        """Return a kernel's bytes, verified against the hash.

        Raises:
            NotFoundError: if the kernel or its bytes are missing.
            ArtifactIntegrityError: if the bytes were changed.

        """
        return self._artifacts.get(self.get_kernel(kernel_id).kernel_id)

    def record_validation(
        self, report: ValidationReport, endorsement: Endorsement | None
    ) -> CompiledKernelArtifact:
        """File a report and set the kernel VALIDATED (with its endorsement) or REJECTED.

        A report that is on file already and is not the kernel's latest changes nothing.

        Raises:
            NotFoundError: if the kernel is not on file.
            IllegalTransitionError: if the kernel is archived, or `endorsement` is given exactly
                when the report did not pass.

        """
        _check_endorsement(report, endorsement)
        with self._writing() as connection:
            before = _lock_kernel(connection, report.kernel_id)
            is_new = _insert_once(connection, validation_reports, records.validation_row(report))
            if is_new or before.report_id == report.report_id:
                changed = connection.execute(
                    sa.update(kernels)
                    .where(
                        kernels.c.kernel_id == report.kernel_id,
                        kernels.c.status != KernelStatus.ARCHIVED.value,
                    )
                    .values(records.verdict(report, endorsement))
                )
                if not changed.rowcount:
                    raise IllegalTransitionError(
                        f"kernel {report.kernel_id} is ARCHIVED and takes no more verdicts; "
                        "forge it again under a changed blueprint"
                    )
                _index_tags(connection, report.kernel_id, records.all_tags(before.tags, report))
            return _read_kernel(connection, report.kernel_id)

    def query(self, query: KernelQuery) -> Sequence[CompiledKernelArtifact]:
        """Return the kernels that match, in the query's order.

        A limit on latency or memory leaves out kernels that nobody measured yet.
        """
        with self._reading() as connection:
            rows = connection.execute(records.select_matching(query))
            return [records.to_kernel(row) for row in rows]

    def record_field_report(self, report: FieldReport) -> None:
        """File an outcome; the same `report_id` twice is one."""
        with self._writing() as connection:
            _insert_once(connection, field_reports, records.field_report_row(report))

    def field_reports(self, run_id: str) -> Sequence[FieldReport]:
        """Return the outcomes of one run, oldest first."""
        with self._reading() as connection:
            rows = connection.execute(records.select_field_reports(run_id))
            return [records.to_field_report(row) for row in rows]

    @contextmanager
    def _reading(self) -> Generator[sa.Connection]:
        with translated(self._url), self._opened().connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Generator[sa.Connection]:
        """Give a transaction that is committed at the end, or rolled back by an exception."""
        engine = self._opened().execution_options(**{WRITES: True})
        with translated(self._url), engine.begin() as connection:
            yield connection

    def _opened(self) -> sa.Engine:
        if self._engine is None:
            raise BackendUnavailableError(
                f"the library ({place(self._url)}) is not open; call open() first"
            )
        return self._engine


def open_library(url: str, artifacts: ArtifactStore) -> SqlLibrary:
    """Make the library for a SQLite or PostgreSQL URL; `open()` connects.

    The entry points `sqlite` and `postgresql` in the group `esper.libraries`.

    Raises:
        ConfigError: if the URL is malformed.

    """
    return SqlLibrary(parse_url(url), artifacts)


def _check_blob(kernel: CompiledKernelArtifact, blob: bytes) -> None:
    actual = sha256_hex(blob)
    if actual != kernel.kernel_id:
        raise ArtifactIntegrityError(
            f"kernel_id {kernel.kernel_id} is not the sha256 of the bytes given with it, "
            f"{actual}; register a kernel under the hash of its bytes"
        )
    if len(blob) != kernel.size_bytes:
        raise ArtifactIntegrityError(
            f"kernel {kernel.kernel_id} says size_bytes={kernel.size_bytes}, but the bytes given "
            f"with it are {len(blob)}"
        )


def _check_endorsement(report: ValidationReport, endorsement: Endorsement | None) -> None:
    if report.passed and endorsement is None:
        raise IllegalTransitionError(
            f"report {report.report_id} passed kernel {report.kernel_id}, but no endorsement came "
            "with it; only an endorsed kernel becomes VALIDATED"
        )
    if not report.passed and endorsement is not None:
        raise IllegalTransitionError(
            f"report {report.report_id} did not pass kernel {report.kernel_id}, but an endorsement "
            "came with it; a REJECTED kernel has none"
        )


def _insert_once(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> bool:
    """Insert `row` unless its primary key is taken; tell whether it was inserted."""
    is_postgresql = connection.dialect.name == "postgresql"
    insert = postgresql.insert(table) if is_postgresql else sqlite.insert(table)
    statement = insert.values(row).on_conflict_do_nothing().returning(*table.primary_key.columns)
    return connection.execute(statement).first() is not None


def _index_tags(connection: sa.Connection, kernel_id: str, tags: Sequence[str]) -> None:
    connection.execute(sa.delete(kernel_tags).where(kernel_tags.c.kernel_id == kernel_id))
    if tags:
        rows = [{"kernel_id": kernel_id, "tag": tag} for tag in tags]
        connection.execute(sa.insert(kernel_tags), rows)


def _read_blueprint(connection: sa.Connection, blueprint_id: str) -> Blueprint:
    found = sa.select(blueprints).where(blueprints.c.blueprint_id == blueprint_id)
    row = connection.execute(found).one_or_none()
    if row is None:
        raise NotFoundError(
            f"blueprint {blueprint_id!r} is not in the library "
            f"({place(connection.engine.url)}); submit it first"
        )
    return records.to_blueprint(row)


def _read_kernel(connection: sa.Connection, kernel_id: str) -> CompiledKernelArtifact:
    found = records.select_kernels().where(kernels.c.kernel_id == kernel_id)
    row = connection.execute(found).one_or_none()
    if row is None:
        raise _no_kernel(connection, kernel_id)
    return records.to_kernel(row)


def _lock_kernel(connection: sa.Connection, kernel_id: str) -> records.Row:
    """Return the kernel's row and keep other verdicts waiting until the transaction ends."""
    found = sa.select(kernels.c.report_id, kernels.c.tags).where(kernels.c.kernel_id == kernel_id)
    row = connection.execute(found.with_for_update()).one_or_none()
    if row is None:
        raise _no_kernel(connection, kernel_id)
    return row


def _no_kernel(connection: sa.Connection, kernel_id: str) -> NotFoundError:
    return NotFoundError(
        f"kernel {kernel_id!r} is not in the library ({place(connection.engine.url)}); "
        "register it first"
    )
