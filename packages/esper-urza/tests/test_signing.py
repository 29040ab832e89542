"""Signing keys: the algorithm is RFC 8032's, files are private, and errors never show what is in them."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from esper.contracts import ConfigError, ManifestError, sha256_hex
from esper.urza.signing import (
    PASSWORD_VARIABLE,
    Signature,
    SigningKey,
    generate_key,
    load_key,
    password_from_environment,
    read_public_key,
)

# RFC 8032, section 7.1: secret key, public key, message, signature.
_VECTORS = (
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
)


def _key(digit: str = "1") -> SigningKey:
    return SigningKey(private=Ed25519PrivateKey.from_private_bytes(bytes.fromhex(digit * 64)))


@pytest.mark.parametrize(("secret", "public", "message", "signature"), _VECTORS)
def test_the_algorithm_is_that_of_rfc_8032(
    secret: str, public: str, message: str, signature: str
) -> None:
    key = SigningKey(private=Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)))
    assert key.public_key == public
    assert key.key_id == sha256_hex(bytes.fromhex(public))
    assert key.private.sign(bytes.fromhex(message)).hex() == signature


def test_a_signature_is_over_the_purpose_a_zero_byte_and_the_content() -> None:
    signed = _key().sign(b"purpose", b"content")
    assert signed.signature == _key().private.sign(b"purpose\0content").hex()
    signed.check(b"purpose", b"content", what="it")
    for purpose, content in ((b"purpos", b"econtent"), (b"other", b"content"), (b"purpose", b"")):
        with pytest.raises(ManifestError, match="it was changed or forged"):
            signed.check(purpose, content, what="it")
    with pytest.raises(ManifestError):
        Signature(
            key_id=_key("2").key_id, public_key=_key("2").public_key, signature=signed.signature
        ).check(b"purpose", b"content", what="it")


def test_the_id_of_a_key_is_not_taken_on_faith() -> None:
    signed = _key().sign(b"purpose", b"content")
    with pytest.raises(ValueError, match="key_id is not the sha256"):
        Signature(key_id="0" * 64, public_key=signed.public_key, signature=signed.signature)


@pytest.mark.parametrize("password", [None, b"open sesame"])
def test_a_key_comes_back_from_its_file(tmp_path: Path, password: bytes | None) -> None:
    path = tmp_path / "library.key"
    made = generate_key(path, password=password)
    assert load_key(path, password=password).public_key == made.public_key
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_public_key(str(tmp_path / "library.key.pub")) == made.public_key
    assert read_public_key(made.public_key.upper()) == made.public_key
    (tmp_path / "hex").write_text(f"{made.public_key}\n")
    assert read_public_key(str(tmp_path / "hex")) == made.public_key
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "hex",
        "library.key",
        "library.key.pub",
    ]
    assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED" if password else b"-----BEGIN PRI")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "library.key"
    generate_key(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        generate_key(path)
    (tmp_path / "library.key.pub").unlink()
    with pytest.raises(ConfigError, match="never overwritten"):
        generate_key(path)
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="cannot be made: No such file"):
        generate_key(tmp_path / "missing" / "library.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "library.key"
    generate_key(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"can be read by others \\(mode {mode:04o}\\); .*rotate"):
        load_key(path)


def test_a_wrong_password_is_named_and_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, plain = tmp_path / "locked.key", tmp_path / "plain.key"
    generate_key(locked, password=b"right horse")
    generate_key(plain)
    with pytest.raises(ConfigError, match=f"has a password; set {PASSWORD_VARIABLE}"):
        load_key(locked)
    with pytest.raises(ConfigError, match="is not its password") as refused:
        load_key(locked, password=b"wrong horse")
    assert "horse" not in str(refused.value)
    with pytest.raises(ConfigError, match="has no password, but"):
        load_key(plain, password=b"right horse")
    monkeypatch.setenv(PASSWORD_VARIABLE, "right horse")
    assert load_key(locked, password=password_from_environment())
    monkeypatch.setenv(PASSWORD_VARIABLE, "")
    assert password_from_environment() is None


@pytest.mark.parametrize(
    "content", [b"", b"secret words", b"\xff\x00", b"-----BEGIN PRIVATE KEY-----"]
)
def test_what_is_no_key_is_refused_without_being_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "library.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is not a private key in PKCS #8 PEM") as refused:
        load_key(path)
    assert "secret words" not in str(refused.value)
    with pytest.raises(ConfigError, match="holds no Ed25519 public key"):
        read_public_key(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_key(tmp_path / "missing")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_public_key("a\0b")


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = generate_private_key(SECP256R1())
    path = tmp_path / "library.key"
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="holds another kind of key; expected Ed25519"):
        load_key(path)


def test_a_private_key_is_never_shown(tmp_path: Path) -> None:
    made = generate_key(tmp_path / "library.key")
    secret = made.private.private_bytes_raw().hex()
    assert secret not in repr(made)
    assert secret not in str(made.sign(b"purpose", b"content"))
