"""A library's signing keys: Ed25519 (RFC 8032), made, kept in files, used, and checked.

`statements` and `manifests` sign with them. Private keys are in files that only their owner may read,
never in the database. What is signed begins with what it is for (a domain), so that a signature made for
one purpose is worth nothing for another.
"""

import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import Field, model_validator

from esper.contracts import ConfigError, Contract, ManifestError, Sha256, sha256_hex

PASSWORD_VARIABLE = "URZA_KEY_PASSWORD"
"""The environment variable with the password of a key file; unset for a file without one."""

_MAX_FILE_BYTES = 8192
_PUBLIC = re.compile(r"[0-9a-f]{64}")


class Signature(Contract):
    """An Ed25519 signature, with the key that verifies it: whether to trust that one is asked elsewhere."""

    key_id: Sha256
    """sha256 of the raw public key."""
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The raw 32 bytes in hexadecimal."""
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    @model_validator(mode="after")
    def _check_id(self) -> "Signature":
        if self.key_id != key_id_of(self.public_key):
            raise ValueError("key_id is not the sha256 of the public key")
        return self

    def check(self, domain: bytes, content: bytes, *, what: str) -> None:
        """Pass silently if the key signed `content` for this purpose.

        Raises:
            ManifestError: if it did not.

        """
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public_key))
        try:
            public.verify(bytes.fromhex(self.signature), _framed(domain, content))
        except InvalidSignature:
            raise ManifestError(
                f"{what} was changed or forged: the signature with key {self.key_id[:12]} does not "
                "verify; get it again from where it was signed"
            ) from None


@dataclass(frozen=True, kw_only=True, repr=False)
class SigningKey:
    """A private key; never shown, only its public half is."""

    private: Ed25519PrivateKey

    @property
    def public_key(self) -> str:
        """The raw public key in 64 hexadecimal digits."""
        return self.private.public_key().public_bytes_raw().hex()

    @property
    def key_id(self) -> str:
        """The sha256 of the public key, as manifests name it."""
        return key_id_of(self.public_key)

    def sign(self, domain: bytes, content: bytes) -> Signature:
        """Sign `content` for one purpose."""
        signature = self.private.sign(_framed(domain, content)).hex()
        return Signature(key_id=self.key_id, public_key=self.public_key, signature=signature)


def key_id_of(public_key: str) -> str:
    """Return the id of a public key in hexadecimal."""
    return sha256_hex(bytes.fromhex(public_key))


def password_from_environment() -> bytes | None:
    """Return the password of key files, None if none is set."""
    return os.environ.get(PASSWORD_VARIABLE, "").encode() or None


def generate_key(path: Path, *, password: bytes | None = None) -> SigningKey:
    """Make a key in the file `path` (PKCS #8 PEM, mode 0600) and its public half in `path`.pub.

    Raises:
        ConfigError: if one of the files exists (keys are never overwritten) or cannot be made.

    """
    key = SigningKey(private=Ed25519PrivateKey.generate())
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    private = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    public = key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    public_path = path.with_name(f"{path.name}.pub")
    if public_path.exists():
        raise _exists(public_path)
    _create(path, private, 0o600)
    _create(public_path, public, 0o644)
    return key


def load_key(path: Path, *, password: bytes | None = None) -> SigningKey:
    """Read the private key in a file that only its owner may read.

    Raises:
        ConfigError: if the file is missing, can be read by others, needs another password, or holds
            something else. Never quotes its content.

    """
    content = _read(path, is_secret=True)
    try:
        key = load_pem_private_key(content, password=password)
    except TypeError as error:
        is_encrypted = b"ENCRYPTED" in content
        problem = (
            f"has a password; set {PASSWORD_VARIABLE} to it"
            if is_encrypted
            else f"has no password, but {PASSWORD_VARIABLE} is set; unset it"
        )
        raise ConfigError(f"the key file {path} {problem}") from error
    except (ValueError, UnsupportedAlgorithm):
        # The driver's words never hold key material, but they help nobody either.
        problem = (
            f"is encrypted, and {PASSWORD_VARIABLE} is not its password"
            if password and b"ENCRYPTED" in content
            else "is not a private key in PKCS #8 PEM; `urza keys generate` makes one"
        )
        raise ConfigError(f"the key file {path} {problem}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"the key file {path} holds another kind of key; expected Ed25519, as "
            "`urza keys generate` makes"
        )
    return SigningKey(private=key)


def read_public_key(given: str) -> str:
    """Return a public key in hexadecimal, given as such or as the name of a file that holds it.

    Raises:
        ConfigError: if it is neither 64 hexadecimal digits nor a file with those or with PEM.

    """
    if _PUBLIC.fullmatch(given.lower()):
        return given.lower()
    content = _read(Path(given), is_secret=False)
    if _PUBLIC.fullmatch(text := content.decode("ascii", "replace").strip().lower()):
        return text
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(
            f"the file {given} holds no Ed25519 public key; expected PEM, as `urza keys generate` "
            "writes into NAME.pub, or 64 hexadecimal digits"
        )
    return key.public_bytes_raw().hex()


def _framed(domain: bytes, content: bytes) -> bytes:
    return domain + b"\0" + content


def _read(path: Path, *, is_secret: bool) -> bytes:
    kind = "key file" if is_secret else "public key file"
    try:
        with path.open("rb") as file:
            # Asked of the open file: the name may mean another one a moment later.
            mode = os.fstat(file.fileno()).st_mode
            if is_secret and stat.S_IMODE(mode) & 0o077:
                raise ConfigError(
                    f"the key file {path} can be read by others (mode {stat.S_IMODE(mode):04o}); if "
                    f"nobody may have read it, `chmod 600 {path}`, otherwise rotate the key"
                )
            return file.read(_MAX_FILE_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        if isinstance(error, ConfigError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"the {kind} {path} cannot be read: {reason}; `urza keys generate` makes a key"
        ) from error


def _create(path: Path, content: bytes, mode: int) -> None:
    """Write a new file, complete or not at all; never replaces one."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            path.hardlink_to(draft)
        finally:
            draft.unlink()
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise ConfigError(
            f"the key file {path} cannot be made: {error.strerror}; name one in a folder that this "
            "user may write"
        ) from error


def _exists(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} exists, and a key is never overwritten; give another name, or move it away"
    )
