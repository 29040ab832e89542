"""Checks that a kernel's record was endorsed by a crucible that the user trusts.

The bed calls it when a kernel is admitted and again right before one is loaded.
"""

from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from esper.contracts import (
    CompiledKernelArtifact,
    KernelRejectedError,
    KernelStatus,
    sha256_hex,
)

PUBLIC_KEY_BYTES = 32


def key_id_of(public_key: bytes) -> str:
    """Return the id under which endorsements name a raw 32-byte Ed25519 public key: its sha256.

    Raises:
        ValueError: if the key does not have 32 bytes.

    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise ValueError(
            f"a public key of {len(public_key)} bytes; expected the {PUBLIC_KEY_BYTES} raw bytes of "
            "an Ed25519 public key"
        )
    return sha256_hex(public_key)


def verify_endorsement(kernel: CompiledKernelArtifact, trusted: Mapping[str, bytes]) -> None:
    """Pass silently if a key in `trusted` (key id → raw public key) endorsed `kernel` as valid.

    Raises:
        KernelRejectedError: naming the check that failed.

    """
    name = f"kernel {kernel.kernel_id[:12]}"
    if kernel.status is not KernelStatus.VALIDATED:
        raise KernelRejectedError(
            f"{name} has the status {kernel.status.value}; only VALIDATED kernels run: "
            "let the crucible judge it"
        )
    endorsement = kernel.endorsement
    if endorsement is None:
        raise KernelRejectedError(f"{name} is not endorsed; let the crucible judge it")
    public_key = trusted.get(endorsement.key_id)
    if public_key is None:
        known = ", ".join(key[:12] for key in trusted) or "none"
        raise KernelRejectedError(
            f"{name} is endorsed with key {endorsement.key_id[:12]}, which is not trusted here "
            f"(trusted: {known}); call trust() with the crucible's public key"
        )
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            bytes.fromhex(endorsement.signature), kernel.statement()
        )
    except (InvalidSignature, ValueError) as error:
        raise KernelRejectedError(
            f"{name}: its endorsement does not match its record; the record was changed, or the "
            "signature was made for another kernel"
        ) from error
