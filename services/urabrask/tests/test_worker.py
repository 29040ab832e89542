"""The crucible at work: from a message to a signed verdict in a real library."""

from collections.abc import Callable
from pathlib import Path

import pytest

from esper.contracts import (
    ArtifactIntegrityError,
    BlueprintIR,
    BlueprintSubmitted,
    CheckResult,
    CompiledKernelArtifact,
    IllegalTransitionError,
    KernelCharacterized,
    KernelReady,
    KernelRejectedError,
    KernelStatus,
    Library,
    MessageError,
    NotFoundError,
    TopicNames,
    ValidationReport,
    WorkerContext,
)
from esper.contracts.registry import worker_factory
from esper.kasmina import builtin_blueprints, key_id_of, verify_endorsement
from esper.urabrask import Urabrask, make_worker
from esper.urabrask.keys import ephemeral_key, load_or_create_key

type Forged = tuple[CompiledKernelArtifact, bytes]
type Forge = Callable[..., Forged]
type File = Callable[..., KernelReady]


@pytest.fixture
def crucible(library: Library) -> Urabrask:
    return make_worker(WorkerContext(library=library))


@pytest.fixture
def file_kernel(library: Library, forge: Forge) -> File:
    """File a kernel of a design in the library; return its announcement."""

    def file(ir: BlueprintIR | None = None) -> KernelReady:
        ir = ir or next(ir for ir in builtin_blueprints() if ir.name == "residual_mlp")
        library.submit_blueprint(ir)
        kernel, blob = forge(ir)
        library.register_kernel(kernel, blob)
        return KernelReady(
            kernel_id=kernel.kernel_id,
            blueprint_id=kernel.blueprint_id,
            signature=kernel.signature,
        )

    return file


def verdict(crucible: Urabrask, ready: KernelReady) -> KernelCharacterized:
    (result,) = crucible.handle(ready)
    assert isinstance(result, KernelCharacterized)
    return result


def trusted(crucible: Urabrask) -> dict[str, bytes]:
    return {key_id_of(crucible.public_key): crucible.public_key}


def test_the_worker_is_found_by_name(library: Library) -> None:
    worker = worker_factory("urabrask")(WorkerContext(library=library))
    assert worker.name == "urabrask"
    assert worker.topics == {TopicNames.COMPILATION_KERNEL_READY}


def test_a_good_kernel_is_validated_and_its_endorsement_verifies(
    crucible: Urabrask, library: Library, file_kernel: File
) -> None:
    ready = file_kernel()
    result = verdict(crucible, ready)
    kernel = library.get_kernel(ready.kernel_id)
    assert kernel.status is KernelStatus.VALIDATED
    assert (kernel.report, kernel.endorsement) == (result.report, result.endorsement)
    verify_endorsement(kernel, trusted(crucible))


def test_an_endorsement_does_not_verify_with_another_crucibles_key(
    crucible: Urabrask, library: Library, file_kernel: File
) -> None:
    ready = file_kernel()
    verdict(crucible, ready)
    stranger = make_worker(WorkerContext(library=library))
    with pytest.raises(KernelRejectedError, match="not trusted here"):
        verify_endorsement(library.get_kernel(ready.kernel_id), trusted(stranger))


def test_a_bad_kernel_is_rejected_without_an_endorsement(
    crucible: Urabrask, library: Library, file_kernel: File, not_identity: BlueprintIR
) -> None:
    ready = file_kernel(not_identity)
    result = verdict(crucible, ready)
    assert not result.report.passed
    assert result.endorsement is None
    kernel = library.get_kernel(ready.kernel_id)
    assert (kernel.status, kernel.endorsement) == (KernelStatus.REJECTED, None)


@pytest.mark.parametrize("design", ["stuck", None])
def test_a_message_handled_twice_has_the_effect_of_once(
    crucible: Urabrask,
    library: Library,
    file_kernel: File,
    request: pytest.FixtureRequest,
    design: str | None,
) -> None:
    ready = file_kernel(request.getfixturevalue(design) if design else None)
    first = verdict(crucible, ready)
    record = library.get_kernel(ready.kernel_id)
    assert verdict(crucible, ready) == first
    assert library.get_kernel(ready.kernel_id) == record


def test_a_crucible_with_the_same_key_file_stands_by_the_verdict_on_file(
    library: Library, file_kernel: File, tmp_path: Path
) -> None:
    context = WorkerContext(library=library, signing_key_file=tmp_path / "crucible.key")
    ready = file_kernel()
    first = verdict(make_worker(context), ready)
    assert verdict(make_worker(context), ready) == first


def test_another_crucible_judges_for_itself(
    crucible: Urabrask, library: Library, file_kernel: File
) -> None:
    ready = file_kernel()
    first = verdict(crucible, ready)
    other = make_worker(WorkerContext(library=library))
    second = verdict(other, ready)
    assert second.report.report_id != first.report.report_id
    verify_endorsement(library.get_kernel(ready.kernel_id), trusted(other))


def test_a_forged_verdict_in_the_library_is_not_signed(
    crucible: Urabrask, library: Library, file_kernel: File, not_identity: BlueprintIR
) -> None:
    """Whoever can write to the library can claim that this crucible passed a kernel."""
    ready = file_kernel(not_identity)
    claim = ValidationReport(
        kernel_id=ready.kernel_id,
        validator_id=verdict(crucible, ready).report.validator_id,
        passed=True,
        checks=(CheckResult(name="finite", passed=True, value=0, limit=0, detail=""),),
        probe_shape=(),
        latency_us=0,
        memory_bytes=0,
        num_parameters=0,
        flops=0,
    )
    forger = ephemeral_key()
    library.enroll_validator(forger.public_key, name="forger")
    statement = library.get_kernel(ready.kernel_id).statement()
    library.record_validation(claim, forger.endorse(statement))
    assert library.get_kernel(ready.kernel_id).status is KernelStatus.VALIDATED
    assert verdict(crucible, ready).endorsement is None
    assert library.get_kernel(ready.kernel_id).status is KernelStatus.REJECTED


def test_stored_bytes_that_were_changed_are_an_error(
    crucible: Urabrask, library: Library, file_kernel: File, tmp_path: Path
) -> None:
    ready = file_kernel()
    (stored,) = (path for path in (tmp_path / "artifacts").rglob("*") if path.is_file())
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ArtifactIntegrityError):
        crucible.handle(ready)
    assert library.get_kernel(ready.kernel_id).status is KernelStatus.COMPILED


def test_an_unknown_kernel_and_another_payload_are_refused(
    crucible: Urabrask, file_kernel: File
) -> None:
    ready = file_kernel()
    with pytest.raises(NotFoundError, match="f" * 12):
        crucible.handle(ready.model_copy(update={"kernel_id": "f" * 64}))
    other = BlueprintSubmitted(blueprint_id=ready.blueprint_id, signatures=(ready.signature,))
    with pytest.raises(MessageError, match="urabrask got a BlueprintSubmitted, not a KernelReady"):
        crucible.handle(other)


def test_a_crucible_whose_key_was_revoked_validates_nothing_more(
    library: Library, file_kernel: File, tmp_path: Path
) -> None:
    key_file = tmp_path / "crucible.key"
    crucible = make_worker(WorkerContext(library=library, signing_key_file=key_file))
    ready = file_kernel()
    assert verdict(crucible, ready).endorsement is not None
    library.revoke_validator(load_or_create_key(key_file).key_id)
    assert library.get_kernel(ready.kernel_id).status is KernelStatus.COMPILED
    with pytest.raises(IllegalTransitionError, match="was revoked on"):
        crucible.handle(ready)
    other = make_worker(WorkerContext(library=library))
    assert verdict(other, ready).endorsement is not None
    assert library.get_kernel(ready.kernel_id).status is KernelStatus.VALIDATED
