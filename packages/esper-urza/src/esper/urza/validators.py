"""Whose endorsements a library accepts: Ed25519 keys (RFC 8032), enrolled and revoked, and their check.

`library` calls these within its transactions; the database itself refuses a VALIDATED kernel whose
endorsement names a key that is not enrolled.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from esper.contracts import (
    CompiledKernelArtifact,
    ConfigError,
    Endorsement,
    IllegalTransitionError,
    KernelRejectedError,
    ValidationReport,
    ValidatorKey,
    sha256_hex,
    utc_now,
)

PUBLIC_KEY_BYTES = 32


def new_key(public_key: bytes, name: str) -> ValidatorKey:
    """Return the record of a key that is enrolled now.

    Raises:
        ConfigError: if it is no Ed25519 public key, or has no name.

    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise ConfigError(
            f"a public key of {len(public_key)} bytes; expected the {PUBLIC_KEY_BYTES} raw bytes of "
            "an Ed25519 public key"
        )
    if not 1 <= len(name) <= 200:
        raise ConfigError(
            f"a validator's key needs a name of 1 to 200 characters; got {len(name)} of them"
        )
    return ValidatorKey(
        key_id=sha256_hex(public_key), public_key=public_key.hex(), name=name, enrolled_at=utc_now()
    )


def check_presence(report: ValidationReport, endorsement: Endorsement | None) -> None:
    """Raise `IllegalTransitionError` unless exactly a report that passed has an endorsement."""
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


def check_endorsement(
    kernel: CompiledKernelArtifact, endorsement: Endorsement, key: ValidatorKey | None
) -> None:
    """Pass silently if `key` is in force and made this endorsement of `kernel`.

    Raises:
        KernelRejectedError: if it is not.

    """
    named = f"the endorsement of kernel {kernel.kernel_id} with key {endorsement.key_id[:12]}"
    if key is None:
        raise KernelRejectedError(
            f"{named} is not accepted: the key is not enrolled here; enroll the crucible's public key "
            "(`enroll_validator`) first"
        )
    if key.revoked_at is not None:
        raise KernelRejectedError(
            f"{named} is not accepted: {key.name!r} was revoked on {key.revoked_at:%Y-%m-%d}; judge the "
            "kernel again with a key in force"
        )
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public_key)).verify(
            bytes.fromhex(endorsement.signature), kernel.statement()
        )
    except InvalidSignature as error:
        raise KernelRejectedError(
            f"{named} does not verify: the signature is of another statement or key; judge it again"
        ) from error
