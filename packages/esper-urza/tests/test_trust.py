"""Rotation and revocation: whom to trust, and what a key signed before it was lost."""

from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.contracts import (
    GENESIS,
    ArtifactStore,
    ConfigError,
    IllegalTransitionError,
    ManifestError,
    NotFoundError,
    UntrustedKeyError,
    next_event,
)
from esper.urza import keyring, open_file_store, open_library
from esper.urza.library import SqlLibrary
from esper.urza.manifests import LibraryManifest, SignedManifest, parse, sign
from esper.urza.offline import head_of
from esper.urza.signing import SigningKey
from esper.urza.statements import REVOKED, ROTATED, Revocation, Rotation
from esper.urza.trust import Record, check_trust, read_record


def _make_key(digit: str) -> SigningKey:
    return SigningKey(private=Ed25519PrivateKey.from_private_bytes(bytes.fromhex(digit * 64)))


ROOT, NEXT, STRANGER, LAST = map(_make_key, "1234")


def _make_manifest(num_artifacts: int = 0) -> LibraryManifest:
    return LibraryManifest(members=(), num_artifacts=num_artifacts, artifact_bytes=0, chains=())


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[[], ArtifactStore]:
    """One store suffices here: nothing is stored."""
    return lambda: open_file_store((tmp_path / "artifacts").as_uri())


@pytest.fixture
def library(library_url: str, make_store: Callable[[], ArtifactStore]) -> Generator[SqlLibrary]:
    made = open_library(library_url, make_store())
    made.open()
    yield made
    made.close()


def _sealed(library: SqlLibrary, key: SigningKey) -> SignedManifest:
    """Sign a manifest and put that on the record."""
    with library.transaction() as connection:
        rotations = keyring.read_keys(connection).rotations_to(key.key_id)
        signed = sign(_make_manifest(), key, rotations)
        keyring.note_signed(connection, signed)
    return signed


def _record(library: SqlLibrary, signed: SignedManifest) -> Record:
    return read_record(library.events(), head=head_of(signed.manifest))[0]


def test_trust_follows_the_rotations_from_the_root(library: SqlLibrary) -> None:
    keyring.enroll_key(library, ROOT.public_key, name="root")
    keyring.rotate_key(library, ROOT, NEXT, name="2027")
    keyring.rotate_key(library, NEXT, LAST, name="2028")
    signed = _sealed(library, LAST)
    assert [each.statement.name for each in signed.rotations] == ["2027", "2028"]
    again = parse(signed.file(), where="m.json")
    path = (ROOT.key_id, NEXT.key_id, LAST.key_id)
    assert check_trust(again, [ROOT.public_key]) == path
    assert check_trust(again, [ROOT.public_key], _record(library, again)) == path
    assert check_trust(again, [LAST.public_key]) == path[2:]
    with pytest.raises(UntrustedKeyError):
        check_trust(again, [STRANGER.public_key])
    without = again.model_copy(update={"rotations": again.rotations[:1]})
    with pytest.raises(UntrustedKeyError):
        check_trust(without, [ROOT.public_key])
    assert check_trust(without, [ROOT.public_key], _record(library, again)) == path


def test_what_a_revoked_key_signed_counts_only_if_the_record_has_it_before(
    library: SqlLibrary,
) -> None:
    keyring.enroll_key(library, ROOT.public_key, name="root")
    before = _sealed(library, ROOT)
    keyring.rotate_key(library, ROOT, NEXT, name="next")
    keyring.revoke_key(library, ROOT.key_id, by=NEXT, reason="the laptop was stolen")
    successor = sign(_make_manifest(), NEXT)
    forged = sign(_make_manifest(7), ROOT)
    record = _record(library, before)
    assert check_trust(before, [ROOT.public_key], record) == (ROOT.key_id,)
    # The rotation is on the record before the revocation, so the new key is good.
    assert check_trust(successor, [ROOT.public_key], record) == (ROOT.key_id, NEXT.key_id)
    told = r"was revoked on .*\(the laptop was stolen\), and the record does not prove"
    with pytest.raises(UntrustedKeyError, match=told):
        check_trust(forged, [ROOT.public_key], record)
    # What whoever stole it says about successors does not count either.
    rogue = sign(_make_manifest(), STRANGER, (Rotation.make(ROOT, STRANGER, name="rogue"),))
    with pytest.raises(UntrustedKeyError, match="stolen"):
        check_trust(rogue, [ROOT.public_key], record)
    # Without the record nobody can know.
    assert check_trust(forged, [ROOT.public_key]) == (ROOT.key_id,)


def test_a_signature_that_is_put_on_the_record_after_the_revocation_proves_nothing(
    library: SqlLibrary,
) -> None:
    keyring.enroll_key(library, ROOT.public_key, name="root")
    keyring.revoke_key(library, ROOT.key_id, by=ROOT, reason="lost")
    late = _sealed(library, ROOT)
    with pytest.raises(UntrustedKeyError, match="lost"):
        check_trust(late, [ROOT.public_key], _record(library, late))


def test_a_revocation_is_sealed_to_its_place_on_the_record(library: SqlLibrary) -> None:
    keyring.enroll_key(library, ROOT.public_key, name="root")
    keyring.revoke_key(library, ROOT.key_id, by=ROOT, reason="lost")
    enrolled, revoked = library.events()
    # Somebody writes the record anew, with a signature before the revocation.
    forged = sign(_make_manifest(), ROOT)
    said = {"key_id": ROOT.key_id, "manifest": forged.digest, "subject": "kernel"}
    inserted = next_event("manifest_signed", said, seq=1, previous=enrolled.hash)
    moved = next_event(REVOKED, revoked.data, seq=2, previous=inserted.hash)
    with pytest.raises(ManifestError, match=r"event 2 .* sealed for another place"):
        read_record([enrolled, inserted, moved], head=head_of(forged.manifest))


def test_the_keyring_keeps_order(library: SqlLibrary) -> None:
    with pytest.raises(UntrustedKeyError, match="is not on the library's record"):
        keyring.rotate_key(library, ROOT, NEXT, name="next")
    with pytest.raises(NotFoundError, match="no signing key"):
        keyring.revoke_key(library, ROOT.key_id, by=ROOT, reason="lost")
    for _ in range(2):
        keyring.enroll_key(library, ROOT.public_key, name="root")
    with pytest.raises(ConfigError, match="cannot follow itself"):
        keyring.rotate_key(library, ROOT, ROOT, name="next")
    with pytest.raises(ConfigError, match="1 to 200 characters"):
        keyring.enroll_key(library, NEXT.public_key, name="")
    with pytest.raises(ConfigError, match="1 to 500 characters"):
        keyring.revoke_key(library, ROOT.key_id, by=ROOT, reason="")
    keyring.rotate_key(library, ROOT, NEXT, name="next")
    with pytest.raises(IllegalTransitionError, match="is on the library's record already"):
        keyring.rotate_key(library, ROOT, NEXT, name="again")
    with pytest.raises(UntrustedKeyError, match="is not on the library's record"):
        keyring.revoke_key(library, ROOT.key_id, by=STRANGER, reason="envy")
    keyring.revoke_key(library, ROOT.key_id, by=NEXT, reason="old")
    with pytest.raises(IllegalTransitionError, match="already"):
        keyring.revoke_key(library, ROOT.key_id, by=NEXT, reason="old")
    with pytest.raises(IllegalTransitionError, match="is not accepted again"):
        keyring.enroll_key(library, ROOT.public_key, name="root")
    with pytest.raises(UntrustedKeyError, match=r"was revoked on .* \(old\)"):
        keyring.rotate_key(library, ROOT, LAST, name="next")
    assert [event.kind for event in library.events()] == [
        "signing_key_enrolled",
        "signing_key_rotated",
        "signing_key_revoked",
    ]


def test_statements_that_no_library_writes_are_refused() -> None:
    rotation = Rotation.make(ROOT, NEXT, name="next").model_dump(mode="json")
    stranger = Revocation.make(ROOT.key_id, STRANGER, reason="x", num_events=0, head=GENESIS)
    for kind, said, told in (
        (ROTATED, rotation | {"by_old": rotation["by_new"]}, "not those of the keys"),
        (ROTATED, {}, "none that a library writes"),
        (REVOKED, stranger.model_dump(mode="json"), "which is not on the record"),
    ):
        event = next_event(kind, said, seq=0, previous=GENESIS)
        with pytest.raises(ManifestError, match=told):
            Record().add(event)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_changed_character_of_a_rotation_is_refused(data: st.DataObject) -> None:
    text = Rotation.make(ROOT, NEXT, name="next").model_dump_json()
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda it: it != text[place]))
    changed = text[:place] + other + text[place + 1 :]
    try:
        rotation = Rotation.model_validate_json(changed)
        if rotation.model_dump_json() == text:
            return  # white space between its parts, which its file may not have either
        rotation.check()
    except (ValueError, ManifestError):
        return
    pytest.fail(f"accepted {changed}")
