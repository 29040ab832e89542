"""The crucible's Ed25519 signing key (RFC 8032): made, kept in a file, used.

The worker signs verdicts with it; Kasmina's beds verify them with the public key that they trust.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from esper.contracts import ConfigError, Endorsement, get_logger, sha256_hex

_log = get_logger(__name__)

SEED_BYTES = 32
_MAX_FILE_BYTES = 4096
_FORMATS = (
    "expected an Ed25519 private key: 64 hexadecimal digits, or unencrypted PKCS #8 PEM "
    "(openssl genpkey -algorithm ed25519). Point to another file, or to one that does not exist "
    "yet to have a key made"
)


@dataclass(frozen=True, kw_only=True, repr=False)
class SigningKey:
    """A private key; never shown, only its public half is."""

    private: Ed25519PrivateKey

    @property
    def public_key(self) -> bytes:
        """The raw 32-byte public key."""
        return self.private.public_key().public_bytes_raw()

    @property
    def key_id(self) -> str:
        """The sha256 of the public key, as endorsements name it."""
        return sha256_hex(self.public_key)

    def endorse(self, statement: bytes) -> Endorsement:
        """Sign `statement`."""
        return Endorsement(key_id=self.key_id, signature=self.private.sign(statement).hex())


def ephemeral_key() -> SigningKey:
    """Make a key that lives as long as this process."""
    return SigningKey(private=Ed25519PrivateKey.generate())


def load_or_create_key(path: Path) -> SigningKey:
    """Read the key in `path`, or make one there (mode 0600) if there is no such file.

    Two processes that start at once end up with one key.

    Raises:
        ConfigError: if the file cannot be read, made, or is not a key. Never quotes its content.

    """
    try:
        if not path.exists():
            _create(path)
        if (mode := path.stat().st_mode) & 0o077:
            _log.warning(
                "others may read the signing key; chmod it to 600",
                path=str(path),
                mode=oct(mode & 0o777),
            )
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(
            f"signing key file {path} cannot be read or made: {error.strerror or error}; "
            "give a file in a folder that this user may write"
        ) from error
    return SigningKey(private=_parse(content, path))


def _create(path: Path) -> None:
    """Write a new key beside `path` and link it into place: complete or not there, never replaced."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(SEED_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)
        _log.info("made a signing key", path=str(path))
    except FileExistsError:
        _log.debug("another process made the signing key first", path=str(path))
    finally:
        draft.unlink()


def _parse(content: bytes, path: Path) -> Ed25519PrivateKey:
    if content.lstrip().startswith(b"-----BEGIN"):
        try:
            key = load_pem_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            # TypeError: the PEM is encrypted. The driver's words never hold key material, but the
            # cause alone is enough here.
            reason = "is encrypted" if isinstance(error, TypeError) else "is not readable PEM"
            raise ConfigError(f"signing key file {path} {reason}; {_FORMATS}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"signing key file {path} holds another kind of key; {_FORMATS}")
        return key
    try:
        seed = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        raise ConfigError(f"signing key file {path} is malformed; {_FORMATS}") from None
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"signing key file {path} holds {len(seed)} bytes; {_FORMATS}")
    return Ed25519PrivateKey.from_private_bytes(seed)
