"""The port of the library: blueprints, kernels, reports and outcomes, each change on its record.

`ports` has the other ports. A library's URL decides which implementation is behind it.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from esper.contracts.blueprints import Blueprint, BlueprintIR
from esper.contracts.chain import ChainedEvent
from esper.contracts.kernels import (
    CompiledKernelArtifact,
    Endorsement,
    KernelQuery,
    ValidationReport,
)
from esper.contracts.library import BlueprintPage, BlueprintQuery, KernelPage, ValidatorKey
from esper.contracts.operational import FieldReport

LIBRARY_CHAIN = "library"
"""The chain of events about blueprints, kernels and keys; outcomes are on the one of their run."""


def run_chain(run_id: str) -> str:
    """Return the name of the chain on which the outcomes of a run are recorded."""
    return f"run:{run_id}"


class Library(Protocol):
    """Blueprints, kernels, reports and outcomes; thread-safe. Urza implements it."""

    def open(self) -> None:
        """Connect (the artifact store too) and bring the schema up to date.

        Raises:
            BackendUnavailableError: if the database cannot be reached or refuses the credentials.

        """
        ...

    def close(self) -> None:
        """Release connections, the artifact store's too."""
        ...

    def submit_blueprint(self, ir: BlueprintIR) -> Blueprint:
        """File a design under its content hash; the same design twice is one."""
        ...

    def get_blueprint(self, blueprint_id: str) -> Blueprint:
        """Return one blueprint. Raises `NotFoundError`."""
        ...

    def list_blueprints(self) -> Sequence[Blueprint]:
        """Return all blueprints, ordered by id."""
        ...

    def find_blueprints(self, query: BlueprintQuery) -> BlueprintPage:
        """Return the blueprints that match, ordered by id, a page at a time."""
        ...

    def archive_blueprint(self, blueprint_id: str) -> Blueprint:
        """Set a blueprint ARCHIVED: no more kernels of it are taken. Raises `NotFoundError`."""
        ...

    def claim_blueprint(self, holder: str, *, lease_seconds: float) -> Blueprint | None:
        """Claim the oldest SUBMITTED blueprint that nobody holds; None if there is none.

        Registering a kernel of it ends the claim, and so does its time: then others may claim it.
        One that was claimed `MAX_CLAIMS` times in vain is handed out no more.

        Args:
            holder: who claims; unique among those who work.
            lease_seconds: for how long, counted by the database's clock.

        """
        ...

    def claim_kernel(self, holder: str, *, lease_seconds: float) -> CompiledKernelArtifact | None:
        """Claim the oldest COMPILED kernel that nobody holds, as `claim_blueprint` does.

        A verdict about it ends the claim.
        """
        ...

    def renew_claim(self, subject_id: str, holder: str, *, lease_seconds: float) -> bool:
        """Hold a claimed blueprint or kernel for longer; tell whether it was still held."""
        ...

    def release_claim(self, subject_id: str, holder: str) -> bool:
        """Let others claim it at once, as if it had not been claimed; tell whether it was held."""
        ...

    def register_kernel(
        self, kernel: CompiledKernelArtifact, blob: bytes
    ) -> CompiledKernelArtifact:
        """Store the bytes, then the record (status COMPILED); return the record on file.

        Registering a kernel again verifies the stored bytes and returns the record as it stands.

        Raises:
            ArtifactIntegrityError: if `kernel_id` is not the sha256 of `blob`, or if the bytes
                already stored under it are not these.
            NotFoundError: if its blueprint is not on file.
            IllegalTransitionError: if its blueprint is archived.

        """
        ...

    def register_kernels(
        self, kernels: Iterable[tuple[CompiledKernelArtifact, bytes]]
    ) -> Sequence[CompiledKernelArtifact]:
        """Register many in one transaction: all of them or, if one is refused, none."""
        ...

    def get_kernel(self, kernel_id: str) -> CompiledKernelArtifact:
        """Return one kernel's record with its latest report. Raises `NotFoundError`."""
        ...

    def read_artifact(self, kernel_id: str) -> bytes:
        """Return a kernel's bytes, verified against the hash.

        Raises:
            NotFoundError: if the kernel or its bytes are missing.
            ArtifactIntegrityError: if the bytes were changed.

        """
        ...

    def enroll_validator(self, public_key: bytes, *, name: str) -> ValidatorKey:
        """Accept endorsements that verify with this Ed25519 key (32 bytes); again is harmless.

        Raises:
            IllegalTransitionError: if the key was revoked.

        """
        ...

    def revoke_validator(self, key_id: str) -> ValidatorKey:
        """Accept no more endorsements of a key; what it endorsed must be judged anew.

        Raises:
            NotFoundError: if there is no such key.

        """
        ...

    def validator_keys(self) -> Sequence[ValidatorKey]:
        """Return every key that was ever enrolled, oldest first."""
        ...

    def record_validation(
        self, report: ValidationReport, endorsement: Endorsement | None
    ) -> CompiledKernelArtifact:
        """File a report and set the kernel VALIDATED (with its endorsement) or REJECTED.

        Raises:
            NotFoundError: if the kernel is not on file.
            IllegalTransitionError: if the kernel is archived, or `endorsement` is given exactly
                when the report did not pass.
            KernelRejectedError: if the endorsement does not verify with an enrolled key.

        """
        ...

    def archive_kernel(self, kernel_id: str) -> CompiledKernelArtifact:
        """Set a kernel ARCHIVED: nobody runs it any more. Raises `NotFoundError`."""
        ...

    def query(self, query: KernelQuery) -> Sequence[CompiledKernelArtifact]:
        """Return the kernels that match, in the query's order; the first page of them."""
        ...

    def find_kernels(self, query: KernelQuery) -> KernelPage:
        """Return the kernels that match, a page at a time.

        Pages neither skip nor repeat a kernel that matches throughout and keeps what it is ordered
        by, whatever is written meanwhile.
        """
        ...

    def record_field_report(self, report: FieldReport) -> None:
        """File an outcome; the same `report_id` twice is one."""
        ...

    def field_reports(self, run_id: str) -> Sequence[FieldReport]:
        """Return the outcomes of one run, oldest first."""
        ...

    def chains(self) -> Sequence[str]:
        """Return the names of all chains of events."""
        ...

    def events(self, chain: str = LIBRARY_CHAIN, *, since: int = 0) -> Iterator[ChainedEvent]:
        """Yield a chain's events from `seq` `since` on, oldest first; nothing for an unknown chain.

        They are as they were filed: whoever doubts them verifies (`urza verify`).
        """
        ...
