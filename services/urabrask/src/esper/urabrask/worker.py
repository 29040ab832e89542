"""The crucible as a worker: receives kernels, judges them, files and announces the verdicts.

Reads `compilation.kernel.ready`; what it returns goes to `validation.kernel.characterized`, where the
trainer picks up what passed.
"""

from collections.abc import Sequence

from esper.contracts import (
    CompiledKernelArtifact,
    KernelCharacterized,
    KernelReady,
    Library,
    MessageError,
    Payload,
    TopicNames,
    ValidationReport,
    WorkerContext,
    get_logger,
)
from esper.contracts.words import type_of
from esper.urabrask.crucible import judge
from esper.urabrask.keys import SigningKey, ephemeral_key, load_or_create_key

_log = get_logger(__name__)

CRUCIBLE_VERSION = 2
"""Rises when checks or limits change, so that older verdicts are not reused."""


class Urabrask:
    """Judges kernels and signs the verdicts of those that passed."""

    def __init__(self, library: Library, key: SigningKey) -> None:
        self._library = library
        self._key = key
        self._validator_id = f"urabrask/{CRUCIBLE_VERSION}/{key.key_id[:12]}"

    @property
    def name(self) -> str:
        """Sender and group on the bus."""
        return "urabrask"

    @property
    def topics(self) -> frozenset[TopicNames]:
        """Kernels that were built."""
        return frozenset({TopicNames.COMPILATION_KERNEL_READY})

    @property
    def public_key(self) -> bytes:
        """The raw 32-byte Ed25519 public key that its endorsements verify against."""
        return self._key.public_key

    def handle(self, payload: Payload) -> Sequence[Payload]:
        """Judge one kernel and file the verdict.

        A verdict of this very crucible that is on file already stands: it is announced again.

        Raises:
            NotFoundError: if the kernel is not in the library.
            ArtifactIntegrityError: if its stored bytes were changed.
            IllegalTransitionError: if this crucible's key was revoked in the library.
            MessageError: if `payload` is something else.

        """
        if not isinstance(payload, KernelReady):
            raise MessageError(f"urabrask got {type_of(payload)}, not a KernelReady")
        kernel = self._library.get_kernel(payload.kernel_id)
        blob = self._library.read_artifact(payload.kernel_id)
        report = kernel.report
        if report is not None and self._is_mine(report, kernel):
            return [KernelCharacterized(report=report, endorsement=kernel.endorsement)]
        report = judge(kernel, blob, validator_id=self._validator_id)
        endorsement = self._key.endorse(kernel.statement()) if report.passed else None
        if endorsement is not None:  # the library accepts those of enrolled keys only
            self._library.enroll_validator(self._key.public_key, name=self._validator_id)
        self._library.record_validation(report, endorsement)
        failed = [check.name for check in report.checks if not check.passed]
        _log.info(
            "kernel judged",
            kernel=kernel.kernel_id[:12],
            blueprint=kernel.blueprint_name,
            signature=kernel.signature.key,
            passed=report.passed,
            failed=failed,
            latency_us=round(report.latency_us, 1),
        )
        return [KernelCharacterized(report=report, endorsement=endorsement)]

    def _is_mine(self, report: ValidationReport, kernel: CompiledKernelArtifact) -> bool:
        """Tell whether this crucible made the report; a claim to have passed must bear its signature.

        Ed25519 is deterministic, so the genuine endorsement is the one that it would make now. A
        library that was tampered with cannot get a kernel signed that was never judged.
        """
        if report.validator_id != self._validator_id:
            return False
        expected = self._key.endorse(kernel.statement()) if report.passed else None
        return kernel.endorsement == expected


def make_worker(context: WorkerContext) -> Urabrask:
    """Make the crucible; the entry point `urabrask` in the group `esper.workers`.

    Raises:
        ConfigError: if the signing key file cannot be read or made.

    """
    path = context.signing_key_file
    key = ephemeral_key() if path is None else load_or_create_key(path)
    return Urabrask(context.library, key)
