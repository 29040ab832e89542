"""The library behind a service (`urza-api`): the same port, over HTTP.

Its URL is `http://host:port` or `https://host`; the token comes from URZA_TOKEN (environment or `.env`).
Kernels' bytes go through the service too, so a local artifact store is not used.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast
from urllib.parse import quote

from pydantic import TypeAdapter

from esper.contracts import (
    LIBRARY_CHAIN,
    ArtifactIntegrityError,
    ArtifactStore,
    Blueprint,
    BlueprintIR,
    BlueprintPage,
    BlueprintQuery,
    ChainedEvent,
    CompiledKernelArtifact,
    ConfigError,
    Contract,
    Endorsement,
    FieldReport,
    KernelPage,
    KernelQuery,
    NotFoundError,
    ValidationReport,
    ValidatorKey,
    load_settings,
    sha256_hex,
)
from esper.urza.blobs import check_blob
from esper.urza.claims import check_claim
from esper.urza.http_connection import HttpConnection
from esper.urza.validators import new_key
from esper.urza.wire import (
    MAX_KERNELS,
    Claim,
    EventPage,
    Held,
    Holder,
    KernelSearch,
    KernelsFiled,
    KernelsGiven,
    PublicKey,
    Verdict,
)

_KEYS = TypeAdapter(list[ValidatorKey])
_OUTCOMES = TypeAdapter(list[FieldReport])
_NAMES = TypeAdapter(list[str])


class HttpLibrary:
    """A library behind a service; made by `open_http_library`, used between `open` and `close`."""

    def __init__(self, connection: HttpConnection) -> None:
        self._service = connection

    def open(self) -> None:
        """Make sure that the service answers and takes the token.

        Raises:
            BackendUnavailableError: if it does not.

        """
        self._service.open()
        try:
            self._service.get("/chains")
        except BaseException:
            self._service.close()
            raise

    def close(self) -> None:
        """Release connections."""
        self._service.close()

    def submit_blueprint(self, ir: BlueprintIR) -> Blueprint:
        """File a design under its content hash; the same design twice is one."""
        return Blueprint.model_validate_json(self._service.post("/blueprints", ir))

    def get_blueprint(self, blueprint_id: str) -> Blueprint:
        """Return one blueprint. Raises `NotFoundError`."""
        path = f"/blueprints/{_id(blueprint_id, 'blueprint')}"
        return Blueprint.model_validate_json(self._service.get(path))

    def list_blueprints(self) -> Sequence[Blueprint]:
        """Return all blueprints, ordered by id."""
        found: list[Blueprint] = []
        after: str | None = None
        while True:
            page = self.find_blueprints(BlueprintQuery(limit=1000, after=after))
            found += page.items
            if (after := page.next) is None:
                return found

    def find_blueprints(self, query: BlueprintQuery) -> BlueprintPage:
        """Return the blueprints that match, ordered by id, a page at a time."""
        return BlueprintPage.model_validate_json(
            self._service.get("/blueprints", _parameters(query))
        )

    def archive_blueprint(self, blueprint_id: str) -> Blueprint:
        """Set a blueprint ARCHIVED. Raises `NotFoundError`."""
        path = f"/blueprints/{_id(blueprint_id, 'blueprint')}/archive"
        return Blueprint.model_validate_json(self._service.post(path))

    def claim_blueprint(self, holder: str, *, lease_seconds: float) -> Blueprint | None:
        """Claim the oldest SUBMITTED blueprint that nobody holds; None if there is none."""
        found = self._claim("/blueprints/claims", holder, lease_seconds)
        return Blueprint.model_validate_json(found) if found else None

    def claim_kernel(self, holder: str, *, lease_seconds: float) -> CompiledKernelArtifact | None:
        """Claim the oldest COMPILED kernel that nobody holds; None if there is none."""
        found = self._claim("/kernels/claims", holder, lease_seconds)
        return CompiledKernelArtifact.model_validate_json(found) if found else None

    def _claim(self, path: str, holder: str, lease_seconds: float) -> bytes:
        check_claim(holder, lease_seconds)
        claim = Claim(holder=holder, lease_seconds=lease_seconds)
        return self._service.post(path, claim, once=True)

    def renew_claim(self, subject_id: str, holder: str, *, lease_seconds: float) -> bool:
        """Hold a claimed blueprint or kernel for longer; tell whether it was still held."""
        check_claim(holder, lease_seconds)
        claim = Claim(holder=holder, lease_seconds=lease_seconds)
        path = f"/claims/{_id(subject_id, 'record')}/renew"
        return Held.model_validate_json(self._service.post(path, claim)).held

    def release_claim(self, subject_id: str, holder: str) -> bool:
        """Let others claim it at once; tell whether it was held."""
        path = f"/claims/{_id(subject_id, 'record')}/release"
        answer = self._service.post(path, Holder(holder=holder), once=True)
        return Held.model_validate_json(answer).held

    def register_kernel(
        self, kernel: CompiledKernelArtifact, blob: bytes
    ) -> CompiledKernelArtifact:
        """Upload the bytes, then file the record (status COMPILED); return the record on file.

        Raises:
            EsperError: as the port says.

        """
        (registered,) = self.register_kernels([(kernel, blob)])
        return registered

    def register_kernels(
        self, kernels: Iterable[tuple[CompiledKernelArtifact, bytes]]
    ) -> Sequence[CompiledKernelArtifact]:
        """Register many in one transaction: all of them or, if one is refused, none.

        Raises:
            ConfigError: for more than `MAX_KERNELS`.
            EsperError: as the port says.

        """
        given = list(kernels)
        if len(given) > MAX_KERNELS:
            raise ConfigError(
                f"{len(given):,} kernels at once; a service registers {MAX_KERNELS:,} at a time"
            )
        for kernel, blob in given:
            check_blob(kernel, blob)
        for blueprint_id in sorted({kernel.blueprint_id for kernel, _ in given}):
            self.get_blueprint(blueprint_id)  # nothing is uploaded for one that is not on file
        for kernel, blob in given:
            octets = {"Content-Type": "application/octet-stream"}
            self._service.send("PUT", f"/artifacts/{kernel.kernel_id}", body=blob, headers=octets)
        if not given:
            return []
        record = KernelsGiven(kernels=tuple(kernel for kernel, _ in given))
        answer = self._service.post("/kernels", record)
        return list(KernelsFiled.model_validate_json(answer).kernels)

    def get_kernel(self, kernel_id: str) -> CompiledKernelArtifact:
        """Return one kernel's record with its latest report. Raises `NotFoundError`."""
        path = f"/kernels/{_id(kernel_id, 'kernel')}"
        return CompiledKernelArtifact.model_validate_json(self._service.get(path))

    def read_artifact(self, kernel_id: str) -> bytes:
        """Return a kernel's bytes, verified here too.

        Raises:
            NotFoundError: if the kernel or its bytes are missing.
            ArtifactIntegrityError: if the bytes were changed.

        """
        blob = self._service.get(f"/kernels/{_id(kernel_id, 'kernel')}/artifact")
        if (actual := sha256_hex(blob)) != kernel_id:
            raise ArtifactIntegrityError(
                f"the bytes of kernel {kernel_id} were changed on their way: they hash to {actual}; "
                "read them again, and verify the library if that does not help"
            )
        return blob

    def enroll_validator(self, public_key: bytes, *, name: str) -> ValidatorKey:
        """Accept endorsements that verify with this Ed25519 key (32 bytes); again is harmless.

        Raises:
            ConfigError: if it is no such key, or has no name.
            IllegalTransitionError: if the key was revoked.

        """
        key = new_key(public_key, name)
        record = PublicKey(public_key=key.public_key, name=key.name)
        return ValidatorKey.model_validate_json(self._service.post("/validators", record))

    def revoke_validator(self, key_id: str) -> ValidatorKey:
        """Accept no more endorsements of a key. Raises `NotFoundError`."""
        path = f"/validators/{_id(key_id, 'key')}/revoke"
        return ValidatorKey.model_validate_json(self._service.post(path))

    def validator_keys(self) -> Sequence[ValidatorKey]:
        """Return every key that was ever enrolled, oldest first."""
        return _KEYS.validate_json(self._service.get("/validators"))

    def record_validation(
        self, report: ValidationReport, endorsement: Endorsement | None
    ) -> CompiledKernelArtifact:
        """File a report and set the kernel VALIDATED (with its endorsement) or REJECTED.

        Raises:
            EsperError: as the port says.

        """
        verdict = Verdict(report=report, endorsement=endorsement)
        answer = self._service.post(f"/kernels/{report.kernel_id}/validations", verdict)
        return CompiledKernelArtifact.model_validate_json(answer)

    def archive_kernel(self, kernel_id: str) -> CompiledKernelArtifact:
        """Set a kernel ARCHIVED: nobody runs it any more. Raises `NotFoundError`."""
        path = f"/kernels/{_id(kernel_id, 'kernel')}/archive"
        return CompiledKernelArtifact.model_validate_json(self._service.post(path))

    def query(self, query: KernelQuery) -> Sequence[CompiledKernelArtifact]:
        """Return the kernels that match, in the query's order; the first page of them."""
        return list(self.find_kernels(query).items)

    def find_kernels(self, query: KernelQuery) -> KernelPage:
        """Return the kernels that match, a page at a time."""
        parameters = _parameters(KernelSearch.of(query))
        return KernelPage.model_validate_json(self._service.get("/kernels", parameters))

    def record_field_report(self, report: FieldReport) -> None:
        """File an outcome; the same `report_id` twice is one."""
        self._service.post("/outcomes", report)

    def field_reports(self, run_id: str) -> Sequence[FieldReport]:
        """Return the outcomes of one run, oldest first."""
        return _OUTCOMES.validate_json(
            self._service.get(f"/runs/{quote(run_id, safe='')}/outcomes")
        )

    def chains(self) -> Sequence[str]:
        """Return the names of all chains of events."""
        return _NAMES.validate_json(self._service.get("/chains"))

    def events(self, chain: str = LIBRARY_CHAIN, *, since: int = 0) -> Iterator[ChainedEvent]:
        """Yield a chain's events from `seq` `since` on, oldest first, as they were filed."""
        path = f"/chains/{quote(chain, safe='')}/events"
        start: int | None = since
        while start is not None:
            page = EventPage.model_validate_json(self._service.get(path, [("since", str(start))]))
            yield from page.items
            start = page.next


def open_http_library(url: str, artifacts: ArtifactStore) -> HttpLibrary:
    """Make the library for a service's URL; `open()` connects.

    The entry points `http` and `https` in the group `esper.libraries`.

    Args:
        url: `http://host:port` or `https://host`, perhaps with a path before `/api`.
        artifacts: not used: bytes go through the service.

    Raises:
        ConfigError: if the URL is malformed or holds credentials.

    """
    del artifacts
    token = load_settings().urza_token
    return HttpLibrary(HttpConnection(url, None if token is None else token.get_secret_value()))


def _id(given: str, kind: str) -> str:
    """Return a whole id. Raises `NotFoundError` for what can be none."""
    if len(given) != 64 or not set(given) <= set("0123456789abcdef"):
        raise NotFoundError(
            f"{kind} {given!r} is not in the library; ids are 64 hexadecimal digits"
        )
    return given


def _parameters(query: Contract) -> list[tuple[str, str]]:
    """Return a query as the parameters of a URL; lists are repeated, defaults left out."""
    fields: dict[str, Any] = query.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    parameters: list[tuple[str, str]] = []
    for name, value in fields.items():
        items = cast("list[Any]", value if isinstance(value, list) else [value])
        parameters += [(name, str(item).lower() if item is True else str(item)) for item in items]
    return parameters
