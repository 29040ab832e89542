"""Urza: the library of blueprints, kernels, reports and outcomes, on SQLite or PostgreSQL.

Tezzeret and Urabrask file their results here, Tamiyo queries it; kernels' bytes go through an
`ArtifactStore`. Every change and the event that records it are one transaction. Implements the port
`esper.contracts.library_port.Library`; the statements are in `tables`, `queries`, `claims` and `audit`.
"""

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import sqlalchemy as sa

from esper.contracts import (
    LIBRARY_CHAIN,
    ArtifactStore,
    BackendUnavailableError,
    Blueprint,
    BlueprintIR,
    BlueprintPage,
    BlueprintQuery,
    BlueprintStatus,
    ChainedEvent,
    CompiledKernelArtifact,
    Contract,
    Endorsement,
    FieldReport,
    IllegalTransitionError,
    KernelPage,
    KernelQuery,
    KernelStatus,
    NotFoundError,
    ValidationReport,
    ValidatorKey,
    run_chain,
)
from esper.urza import audit, claims, lookup, queries, records, tables, validators
from esper.urza.blobs import check_blob
from esper.urza.engine import Engines, make_engine, parse_url, place, translated
from esper.urza.migrate import newest_revision, revision, upgrade
from esper.urza.schema import (
    blueprints,
    field_reports,
    kernels,
    validation_reports,
    validator_keys,
)

_MAX_KNOWN_DESIGNS = 10_000


class SqlLibrary:
    """A library in one database; made by `open_library`, used between `open` and `close`."""

    def __init__(self, url: sa.URL, artifacts: ArtifactStore) -> None:
        self._url = url
        self._artifacts = artifacts
        self._engines: Engines | None = None
        self._compiled: dict[str, BlueprintIR] = {}
        """Designs, which never change, of which kernels were registered here."""

    def open(self) -> None:
        """Connect, bring the schema up to date, open the artifact store; twice is once.

        Raises:
            BackendUnavailableError: if the database or the store cannot be reached or written or
                refuses the credentials, or if the schema is newer than this code.

        """
        if self._engines is not None:
            return
        engine = make_engine(self._url)
        try:
            with translated(self._url):
                upgrade(engine)
            self._artifacts.open()
        except BaseException:
            engine.dispose()
            raise
        self._engines = Engines(engine)

    def close(self) -> None:
        """Release connections, the artifact store's too; twice is once."""
        engines, self._engines = self._engines, None
        self._compiled = {}
        if engines is not None:
            engines.dispose()
            self._artifacts.close()

    @property
    def artifacts(self) -> ArtifactStore:
        """Where the kernels' bytes are; open while the library is."""
        return self._artifacts

    def revisions(self) -> tuple[str | None, str]:
        """Return the revisions of the database's schema, None for an empty one, and of this code.

        Raises:
            BackendUnavailableError: as `open`.

        """
        with self._unopened() as engine:
            return revision(engine), newest_revision()

    def migrate(self) -> None:
        """Bring the schema up to date, as `open` does. Raises `BackendUnavailableError`."""
        with self._unopened() as engine:
            upgrade(engine)

    def submit_blueprint(self, ir: BlueprintIR) -> Blueprint:
        """File a design under its content hash; the same design twice is one."""
        blueprint = Blueprint.from_ir(ir)
        with self._writing() as connection:
            if tables.insert_once(connection, blueprints, records.blueprint_row(blueprint)):
                submitted = {"blueprint_id": blueprint.blueprint_id, "name": ir.name}
                audit.append(connection, LIBRARY_CHAIN, [("blueprint_submitted", submitted)])
            return tables.read_blueprint(connection, blueprint.blueprint_id)

    def get_blueprint(self, blueprint_id: str) -> Blueprint:
        """Return one blueprint. Raises `NotFoundError`."""
        with self._reading() as connection:
            return tables.read_blueprint(connection, blueprint_id)

    def list_blueprints(self) -> Sequence[Blueprint]:
        """Return all blueprints, ordered by id."""
        with self._reading() as connection:
            rows = connection.execute(sa.select(blueprints).order_by(blueprints.c.blueprint_id))
            return [records.to_blueprint(row) for row in rows]

    def find_blueprints(self, query: BlueprintQuery) -> BlueprintPage:
        """Return the blueprints that match, ordered by id, a page at a time."""
        with self._reading() as connection:
            rows = connection.execute(queries.select_blueprints(query)).all()
        items = tuple(records.to_blueprint(row) for row in rows[: query.limit])
        return BlueprintPage(
            items=items, next=items[-1].blueprint_id if len(rows) > query.limit else None
        )

    def archive_blueprint(self, blueprint_id: str) -> Blueprint:
        """Set a blueprint ARCHIVED; again is harmless. Raises `NotFoundError`."""
        with self._writing() as connection:
            tables.read_blueprint(connection, blueprint_id)
            tables.archive(connection, blueprints, blueprint_id)
            self._compiled = {}
            return tables.read_blueprint(connection, blueprint_id)

    def claim_blueprint(self, holder: str, *, lease_seconds: float) -> Blueprint | None:
        """Claim the oldest SUBMITTED blueprint that nobody holds; None if there is none."""
        claims.check_claim(holder, lease_seconds)
        with self._writing() as connection:
            claim = claims.claim(blueprints, holder, lease_seconds, connection.dialect)
            blueprint_id: str | None = connection.execute(claim).scalar()
            return None if blueprint_id is None else tables.read_blueprint(connection, blueprint_id)

    def claim_kernel(self, holder: str, *, lease_seconds: float) -> CompiledKernelArtifact | None:
        """Claim the oldest COMPILED kernel that nobody holds; None if there is none."""
        claims.check_claim(holder, lease_seconds)
        with self._writing() as connection:
            claim = claims.claim(kernels, holder, lease_seconds, connection.dialect)
            kernel_id: str | None = connection.execute(claim).scalar()
            return None if kernel_id is None else tables.read_kernel(connection, kernel_id)

    def renew_claim(self, subject_id: str, holder: str, *, lease_seconds: float) -> bool:
        """Hold a claimed blueprint or kernel for longer; tell whether it was still held."""
        claims.check_claim(holder, lease_seconds)
        with self._writing() as connection:
            renewals = claims.renew(subject_id, holder, lease_seconds, connection.dialect)
            return any([connection.execute(renewal).rowcount for renewal in renewals])

    def release_claim(self, subject_id: str, holder: str) -> bool:
        """Let others claim it at once; tell whether it was held."""
        with self._writing() as connection:
            releases = claims.release(subject_id, holder)
            return any([connection.execute(release).rowcount for release in releases])

    def register_kernel(
        self, kernel: CompiledKernelArtifact, blob: bytes
    ) -> CompiledKernelArtifact:
        """Store the bytes, then the record (status COMPILED); return the record on file.

        The kernel's blueprint is COMPILED from then on.

        Raises:
            ArtifactIntegrityError: if `kernel_id` or `size_bytes` is not that of `blob`, or if the
                bytes already stored under it are not these.
            NotFoundError: if its blueprint is not on file.
            IllegalTransitionError: if its blueprint is archived.

        """
        (registered,) = self.register_kernels([(kernel, blob)])
        return registered

    def register_kernels(
        self, kernels: Iterable[tuple[CompiledKernelArtifact, bytes]]
    ) -> Sequence[CompiledKernelArtifact]:
        """Register many in one transaction: all of them or, if one is refused, none.

        Raises:
            EsperError: as `register_kernel`; no record is filed then, though some bytes may be stored.

        """
        given = list(kernels)
        for kernel, blob in given:
            check_blob(kernel, blob)
        designs = self._designs({kernel.blueprint_id for kernel, _ in given})
        for _, blob in given:
            self._artifacts.put(blob)  # first, so that no row ever points to missing bytes
        return self._file([kernel for kernel, _ in given], designs)

    def register_stored(
        self, kernels: Sequence[CompiledKernelArtifact]
    ) -> Sequence[CompiledKernelArtifact]:
        """Register kernels whose bytes are in the store already, as `register_kernels` does.

        Raises:
            EsperError: as `register_kernels`.
            NotFoundError: if bytes are missing; upload them first.

        """
        designs = self._designs({kernel.blueprint_id for kernel in kernels})
        for kernel in kernels:
            # Put again, which renews their age: they must outlast a garbage collection that is going on.
            check_blob(kernel, blob := self._artifacts.get(kernel.kernel_id))
            self._artifacts.put(blob)
        return self._file(kernels, designs)

    def _file(
        self, kernels: Sequence[CompiledKernelArtifact], designs: Mapping[str, BlueprintIR]
    ) -> Sequence[CompiledKernelArtifact]:
        """File the records of kernels whose bytes are stored."""
        first = {each.kernel_id: each for each in reversed(kernels)}
        rows = {
            kernel_id: records.kernel_row(each, designs[each.blueprint_id])
            for kernel_id, each in first.items()
        }
        with self._writing() as connection:
            new = tables.register(connection, rows, designs.keys() - self._compiled.keys())
            if new:
                registered = {"kernels": {each: records.fingerprint(rows[each]) for each in new}}
                audit.append(connection, LIBRARY_CHAIN, [("kernels_registered", registered)])
            old = tables.read_kernels(connection, sorted(rows.keys() - new))
        self._note_compiled({rows[each]["blueprint_id"] for each in new}, designs)
        on_file = {each: records.as_registered(first[each]) for each in new}
        on_file |= {kernel.kernel_id: kernel for kernel in old}
        return [on_file[each.kernel_id] for each in kernels]

    def get_kernel(self, kernel_id: str) -> CompiledKernelArtifact:
        """Return one kernel's record with its latest report. Raises `NotFoundError`."""
        with self._reading() as connection:
            return tables.read_kernel(connection, kernel_id)

    def read_artifact(self, kernel_id: str) -> bytes:
        """Return a kernel's bytes, verified against the hash.

        Raises:
            NotFoundError: if the kernel or its bytes are missing.
            ArtifactIntegrityError: if the bytes were changed.

        """
        return self._artifacts.get(self.get_kernel(kernel_id).kernel_id)

    def enroll_validator(self, public_key: bytes, *, name: str) -> ValidatorKey:
        """Accept endorsements that verify with this Ed25519 key (32 bytes); again is harmless.

        Raises:
            ConfigError: if it is no such key, or has no name.
            IllegalTransitionError: if the key was revoked.

        """
        key = validators.new_key(public_key, name)
        with self._writing() as connection:
            if tables.insert_once(connection, validator_keys, key.model_dump()):
                enrolled = {"key_id": key.key_id, "public_key": key.public_key, "name": name}
                audit.append(connection, LIBRARY_CHAIN, [("validator_enrolled", enrolled)])
            found = tables.find_key(connection, key.key_id)
        assert found is not None
        if found.revoked_at is not None:
            raise IllegalTransitionError(
                f"the key {found.key_id[:12]} of {found.name!r} was revoked on "
                f"{found.revoked_at:%Y-%m-%d} and is not accepted again; make a new one"
            )
        return found

    def revoke_validator(self, key_id: str) -> ValidatorKey:
        """Accept no more endorsements of a key; what it endorsed is COMPILED again, to be judged anew.

        Raises:
            NotFoundError: if there is no such key.

        """
        with self._writing() as connection:
            if tables.revoke_key(connection, key_id):
                again = tables.withdraw_endorsements(connection, key_id)
                revoked = {"key_id": key_id, "kernels_to_judge_again": again}
                audit.append(connection, LIBRARY_CHAIN, [("validator_revoked", revoked)])
            found = tables.find_key(connection, key_id)
        if found is None:
            raise NotFoundError(
                f"there is no validator's key {key_id!r} in the library ({place(self._url)})"
            )
        return found

    def validator_keys(self) -> Sequence[ValidatorKey]:
        """Return every key that was ever enrolled, oldest first."""
        with self._reading() as connection:
            order = (validator_keys.c.enrolled_at, validator_keys.c.key_id)
            rows = connection.execute(sa.select(validator_keys).order_by(*order))
            return [records.to_validator_key(row) for row in rows]

    def record_validation(
        self, report: ValidationReport, endorsement: Endorsement | None
    ) -> CompiledKernelArtifact:
        """File a report and set the kernel VALIDATED (with its endorsement) or REJECTED.

        A report that is on file already and is not the kernel's latest changes nothing.

        Raises:
            NotFoundError: if the kernel is not on file.
            IllegalTransitionError: if the kernel is archived, or `endorsement` is given exactly
                when the report did not pass.
            KernelRejectedError: if the endorsement does not verify with an enrolled key.

        """
        validators.check_presence(report, endorsement)
        with self._writing() as connection:
            before = tables.lock_kernel(connection, report.kernel_id)
            if endorsement is not None:
                kernel = tables.read_kernel(connection, report.kernel_id)
                key = tables.find_key(connection, endorsement.key_id)
                validators.check_endorsement(kernel, endorsement, key)
            row = records.validation_row(report)
            is_new = tables.insert_once(connection, validation_reports, row)
            if is_new or tables.is_endorsed_anew(before, report, endorsement):
                if before.status == KernelStatus.ARCHIVED.value:
                    raise IllegalTransitionError(
                        f"kernel {report.kernel_id} is ARCHIVED and takes no more verdicts; "
                        "forge it again under a changed blueprint"
                    )
                tables.judge(connection, before, report, endorsement)
                judged = records.verdict_event(report, endorsement)
                audit.append(connection, LIBRARY_CHAIN, [("kernel_judged", judged)])
            return tables.read_kernel(connection, report.kernel_id)

    def archive_kernel(self, kernel_id: str) -> CompiledKernelArtifact:
        """Set a kernel ARCHIVED; again is harmless. Raises `NotFoundError`."""
        with self._writing() as connection:
            tables.lock_kernel(connection, kernel_id)
            tables.archive(connection, kernels, kernel_id)
            return tables.read_kernel(connection, kernel_id)

    def query(self, query: KernelQuery) -> Sequence[CompiledKernelArtifact]:
        """Return the kernels that match, in the query's order; the first page of them.

        A limit on latency or memory leaves out kernels that nobody measured yet.
        """
        return list(self.find_kernels(query).items)

    def find_kernels(self, query: KernelQuery) -> KernelPage:
        """Return the kernels that match, a page at a time.

        Raises:
            ConfigError: if `after` is not what a page of such a query ended with.

        """
        with self._reading() as connection:
            found = queries.select_matching(query, connection.dialect)
            rows = connection.execute(found).all()
        page = rows[: query.limit]
        return KernelPage(
            items=tuple(records.to_kernel(row) for row in page),
            next=queries.cursor_behind(query, page[-1]) if len(rows) > query.limit else None,
        )

    def record_field_report(self, report: FieldReport) -> None:
        """File an outcome; the same `report_id` twice is one."""
        with self._writing() as connection:
            if tables.insert_once(connection, field_reports, records.field_report_row(report)):
                outcome = records.outcome_event(report)
                audit.append(connection, run_chain(report.run_id), [("outcome_filed", outcome)])

    def field_reports(self, run_id: str) -> Sequence[FieldReport]:
        """Return the outcomes of one run, oldest first."""
        with self._reading() as connection:
            rows = connection.execute(queries.select_field_reports(run_id))
            return [records.to_field_report(row) for row in rows]

    def chains(self) -> Sequence[str]:
        """Return the names of all chains of events."""
        with self._reading() as connection:
            return audit.names(connection)

    def events(self, chain: str = LIBRARY_CHAIN, *, since: int = 0) -> Iterator[ChainedEvent]:
        """Yield a chain's events from `seq` `since` on, oldest first, as they were filed."""
        while True:
            with self._reading() as connection:
                found = audit.read(connection, chain, since)
            if not found:
                return
            yield from found
            since = found[-1].seq + 1

    def find_ids(self, prefix: str) -> Sequence[tuple[str, str]]:
        """Return kind and id of some records, of every kind, whose ids begin with `prefix`."""
        with self._reading() as connection:
            return list(lookup.find_ids(connection, prefix))

    def find_record(self, kind: str, record_id: str) -> Contract:
        """Return the record of a kind that `find_ids` names. Raises `NotFoundError`."""
        with self._reading() as connection:
            return lookup.find_record(connection, kind, record_id)

    @contextmanager
    def snapshot(self) -> Generator[sa.Connection]:
        """Give one unchanging view of the database, for who walks through all of it."""
        with translated(self._url), self._opened().unchanging.connect() as connection:
            yield connection

    @contextmanager
    def _unopened(self) -> Generator[sa.Engine]:
        engine = make_engine(self._url)
        try:
            with translated(self._url):
                yield engine
        finally:
            engine.dispose()

    def _designs(self, blueprint_ids: Collection[str]) -> dict[str, BlueprintIR]:
        """Return the designs of blueprints of which kernels may be registered."""
        known = self._compiled
        designs = {each: known[each] for each in blueprint_ids if each in known}
        if len(designs) == len(blueprint_ids):
            return designs  # should one be archived by now, the database refuses its kernels
        with self._reading() as connection:
            found = tables.read_blueprints(connection, sorted(blueprint_ids))
        for blueprint in found:
            if blueprint.status is BlueprintStatus.ARCHIVED:
                raise IllegalTransitionError(
                    f"blueprint {blueprint.blueprint_id} ({blueprint.ir.name!r}) is ARCHIVED and takes "
                    "no more kernels; submit a changed design"
                )
        return {blueprint.blueprint_id: blueprint.ir for blueprint in found}

    def _note_compiled(self, blueprint_ids: set[str], designs: Mapping[str, BlueprintIR]) -> None:
        """Remember designs that are COMPILED, and will not be SUBMITTED again."""
        known = self._compiled
        if not blueprint_ids <= known.keys():
            known = known if len(known) < _MAX_KNOWN_DESIGNS else {}
            self._compiled = known | {each: designs[each] for each in blueprint_ids}

    @property
    def place(self) -> str:
        """Where the records are, without credentials."""
        return place(self._url)

    @contextmanager
    def transaction(self) -> Generator[sa.Connection]:
        """Give a transaction for changes that this class has no method for: all of it or nothing."""
        with self._writing() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Generator[sa.Connection]:
        with translated(self._url), self._opened().reading.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Generator[sa.Connection]:
        """Give a transaction that is committed at the end, or rolled back by an exception."""
        with translated(self._url), self._opened().writing.begin() as connection:
            yield connection

    def _opened(self) -> Engines:
        if self._engines is None:
            raise BackendUnavailableError(
                f"the library ({place(self._url)}) is not open; call open() first"
            )
        return self._engines


def open_library(url: str, artifacts: ArtifactStore) -> SqlLibrary:
    """Make the library for a SQLite or PostgreSQL URL; `open()` connects.

    The entry points `sqlite` and `postgresql` in the group `esper.libraries`.

    Raises:
        ConfigError: if the URL is malformed.

    """
    return SqlLibrary(parse_url(url), artifacts)
