"""Law 8: nothing runs that did not pass."""

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kasmina_factory import QUICK, Crucible, admit, blueprint, mlp, order

from esper.contracts import (
    CompiledKernelArtifact,
    KernelRejectedError,
    KernelSignature,
    KernelStatus,
    NotFoundError,
    SeedState,
    SiteKind,
)
from esper.kasmina import Bed, key_id_of, wrap

SIGNATURE = KernelSignature(kind=SiteKind.FEATURES, features=8)


def bed_and_kernel() -> tuple[Bed, Crucible, CompiledKernelArtifact, bytes]:
    crucible = Crucible()
    bed = wrap(mlp(), stages=QUICK)
    bed.trust(crucible.public_key)
    return bed, crucible, *crucible.kernel(blueprint("low_rank"), SIGNATURE)


def changed(kernel: CompiledKernelArtifact, **fields: object) -> CompiledKernelArtifact:
    return CompiledKernelArtifact.model_validate(kernel.model_dump() | fields)


def test_an_endorsed_kernel_is_admitted() -> None:
    bed, _, kernel, blob = bed_and_kernel()
    bed.admit(kernel, blob)
    order(bed, SeedState.GERMINATED, kernel.kernel_id)
    assert bed.seeds()[0].blueprint_name == "low_rank"


def test_a_tampered_blob_is_rejected() -> None:
    bed, _, kernel, blob = bed_and_kernel()
    for at in (0, 40, len(blob) - 1):
        data = bytearray(blob)
        data[at] ^= 1
        with pytest.raises(KernelRejectedError, match="damaged or not its own"):
            bed.admit(kernel, bytes(data))


def test_a_key_that_is_not_trusted_is_rejected() -> None:
    bed, _, kernel, blob = bed_and_kernel()
    other = Crucible(key=Ed25519PrivateKey.generate())
    with pytest.raises(KernelRejectedError, match="which is not trusted here"):
        bed.admit(other.endorse(kernel), blob)


def test_a_forged_signature_under_a_trusted_key_is_rejected() -> None:
    bed, crucible, kernel, blob = bed_and_kernel()
    forged = Crucible(key=Ed25519PrivateKey.generate()).endorse(kernel).endorsement
    assert forged is not None
    endorsement = forged.model_copy(update={"key_id": key_id_of(crucible.public_key)})
    with pytest.raises(KernelRejectedError, match="endorsement does not match its record"):
        bed.admit(changed(kernel, endorsement=endorsement.model_dump()), blob)


def test_an_endorsement_of_another_kernel_is_rejected() -> None:
    bed, crucible, kernel, blob = bed_and_kernel()
    other, _ = crucible.kernel(blueprint("gated_mlp"), SIGNATURE)
    assert other.endorsement is not None
    with pytest.raises(KernelRejectedError, match="endorsement does not match its record"):
        bed.admit(changed(kernel, endorsement=other.endorsement.model_dump()), blob)


@pytest.mark.parametrize("status", [s for s in KernelStatus if s is not KernelStatus.VALIDATED])
def test_a_kernel_that_is_not_validated_is_rejected(status: KernelStatus) -> None:
    bed, _, kernel, blob = bed_and_kernel()
    with pytest.raises(KernelRejectedError, match=f"status {status}; only VALIDATED"):
        bed.admit(changed(kernel, status=status), blob)


def test_a_record_that_misstates_its_bytes_is_rejected() -> None:
    bed, crucible, kernel, blob = bed_and_kernel()
    for fields in (
        {"blueprint_id": "0" * 64},
        {"signature": SIGNATURE.model_copy(update={"features": 9}).model_dump()},
        {"num_parameters": 1},
    ):
        with pytest.raises(KernelRejectedError, match=f"its record says {next(iter(fields))}"):
            bed.admit(crucible.endorse(changed(kernel, **fields)), blob)


def test_a_kernel_that_no_longer_verifies_is_not_loaded() -> None:
    bed, _, kernel, blob = bed_and_kernel()
    bed.admit(kernel, blob)
    order(bed, SeedState.GERMINATED, kernel.kernel_id)
    spoiled = bytearray(blob)
    spoiled[-1] ^= 1
    admission = vars(bed)["_admission"]
    # The block that was made while the bytes were right is gone; bytes that changed since are what
    # the second check is for.
    admission.load(kernel.kernel_id, "cpu")
    vars(admission)["_admitted"][kernel.kernel_id] = (kernel, bytes(spoiled))
    with pytest.raises(KernelRejectedError, match="damaged"):
        order(bed, SeedState.LOADING)
    assert bed.seeds()[0].state is SeedState.GERMINATED


def test_a_kernel_of_another_signature_does_not_fit() -> None:
    bed, crucible, _, _ = bed_and_kernel()
    wide = SIGNATURE.model_copy(update={"features": 9})
    kernel, blob = crucible.kernel(blueprint("low_rank"), wide)
    bed.admit(kernel, blob)
    with pytest.raises(KernelRejectedError, match="built for features-9-float32-cpu, the site '0'"):
        order(bed, SeedState.GERMINATED, kernel.kernel_id)
    assert bed.seeds()[0].state is SeedState.DORMANT


def test_an_unknown_kernel_or_seed_is_not_found() -> None:
    bed = wrap(mlp())
    with pytest.raises(NotFoundError, match=r"aaaaaaaaaaaa is not admitted here \(0 are\)"):
        order(bed, SeedState.GERMINATED, "a" * 64)
    kernel_id = admit(bed)
    with pytest.raises(NotFoundError, match=r"no seed \(7, 0\); there are: \(0, 0\), \(1, 0\)"):
        order(bed, SeedState.GERMINATED, kernel_id, (7, 0))


def test_a_public_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="public key of 31 bytes"):
        wrap(mlp()).trust(bytes(31))


def test_admitting_and_loading_touch_no_global_random_stream() -> None:
    bed, _, kernel, blob = bed_and_kernel()
    before = torch.get_rng_state()
    bed.admit(kernel, blob)
    order(bed, SeedState.GERMINATED, kernel.kernel_id)
    order(bed, SeedState.LOADING)
    assert torch.equal(torch.get_rng_state(), before)
