"""The signing key: made once, kept private, read in two forms, and never quoted in an error."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from esper.contracts import ConfigError, sha256_hex
from esper.urabrask import ephemeral_key, load_or_create_key

SECRET = "1f" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "crucible.key"


def test_a_missing_key_is_made_privately_and_found_again(path: Path) -> None:
    first = load_or_create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_key(path).public_key == first.public_key
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208 - names are enough


def test_many_that_start_at_once_end_up_with_one_key(path: Path) -> None:
    barrier = Barrier(8)

    def load(_: int) -> bytes:
        barrier.wait(10)
        return load_or_create_key(path).public_key

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(load, range(8)))) == 1


def test_an_endorsement_verifies_against_the_public_key() -> None:
    key = ephemeral_key()
    endorsement = key.endorse(b"statement")
    assert endorsement.key_id == key.key_id == sha256_hex(key.public_key)
    public = Ed25519PublicKey.from_public_bytes(key.public_key)
    public.verify(bytes.fromhex(endorsement.signature), b"statement")
    assert key.endorse(b"statement") == endorsement
    assert key.endorse(b"another") != endorsement


def test_ephemeral_keys_differ() -> None:
    assert ephemeral_key().public_key != ephemeral_key().public_key


@pytest.mark.parametrize("text", [SECRET, f"{SECRET}\n", SECRET.upper()])
def test_a_hexadecimal_seed_is_read(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)
    expected = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SECRET)).public_key()
    assert load_or_create_key(path).public_key == expected.public_bytes_raw()


def pem(key: Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def test_a_pem_file_is_read(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    path.write_bytes(pem(key))
    path.chmod(0o600)
    assert load_or_create_key(path).public_key == key.public_key().public_bytes_raw()


OTHER_KIND = generate_private_key(SECP256R1()).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds 0 bytes"),
        (b"1f1f", "holds 2 bytes"),
        (SECRET.encode() + b"1f", "holds 33 bytes"),
        (SECRET.encode()[:-1] + b"x", "is malformed"),
        (bytes.fromhex(SECRET)[:16] + b"\xff" * 16, "is malformed"),
        (b"-----BEGIN PRIVATE KEY-----\n1f1f1f\n-----END PRIVATE KEY-----\n", "not readable PEM"),
        (pem(Ed25519PrivateKey.generate(), b"password"), "is encrypted"),
        (OTHER_KIND, "holds another kind of key"),
    ],
)
def test_a_file_that_is_no_key_is_refused_and_never_quoted(
    path: Path, content: bytes, problem: str
) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(
        ConfigError, match=rf"crucible\.key .*{problem}.*; expected an Ed25"
    ) as caught:
        load_or_create_key(path)
    assert "1f1f" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_place_where_no_key_can_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent/crucible\.key cannot be read or made: No such"):
        load_or_create_key(tmp_path / "absent" / "crucible.key")
    with pytest.raises(ConfigError, match="cannot be read or made: Is a directory"):
        load_or_create_key(tmp_path)


def test_a_key_that_others_may_read_is_used_with_a_warning(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(SECRET)
    path.chmod(0o644)
    load_or_create_key(path)
    errors = capsys.readouterr().err
    assert "others may read the signing key" in errors
    assert SECRET not in errors


def test_a_key_does_not_show_itself(path: Path) -> None:
    path.write_text(SECRET)
    path.chmod(0o600)
    assert SECRET not in repr(load_or_create_key(path))
