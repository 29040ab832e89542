"""What signing keys say about one another: this one follows me, that one is not to be trusted any more.

Both are events on the library's chain, where `keyring` puts them and `trust` finds them; a manifest carries
the rotations that lead to its key.
"""

from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from esper.contracts import (
    ChainedEvent,
    Contract,
    ManifestError,
    Sha256,
    UtcDatetime,
    canonical_json,
    utc_now,
)
from esper.urza.signing import Signature, SigningKey

ENROLLED = "signing_key_enrolled"
ROTATED = "signing_key_rotated"
REVOKED = "signing_key_revoked"
SIGNED = "manifest_signed"
KINDS = (ENROLLED, ROTATED, REVOKED, SIGNED)
"""The kinds of events about signing keys."""

_ROTATION = b"esper.urza.rotation.v1"
_REVOCATION = b"esper.urza.revocation.v1"


class KeyEnrolled(Contract):
    """A key that signs for a library from then on; nobody vouches for it but who could write there."""

    key_id: Sha256
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str = Field(min_length=1, max_length=200)


class RotationStatement(Contract):
    """`new` signs from now on for whom `old` signed."""

    version: Literal[1] = 1
    old_key_id: Sha256
    new_key_id: Sha256
    name: str = Field(min_length=1, max_length=200)
    """Of the new key."""
    at: UtcDatetime


class Rotation(Contract):
    """A rotation, signed by the old key, and by the new one to prove that it is there."""

    statement: RotationStatement
    by_old: Signature
    by_new: Signature

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        named = (self.statement.old_key_id, self.statement.new_key_id)
        if named != (self.by_old.key_id, self.by_new.key_id):
            raise ValueError("the signatures are not those of the keys that the statement names")
        if self.by_old.key_id == self.by_new.key_id:
            raise ValueError("a key cannot follow itself")
        return self

    @classmethod
    def make(cls, old: SigningKey, new: SigningKey, *, name: str) -> Self:
        """Let `new` follow `old`."""
        statement = RotationStatement(
            old_key_id=old.key_id, new_key_id=new.key_id, name=name, at=utc_now()
        )
        content = canonical_json(statement)
        return cls(
            statement=statement,
            by_old=old.sign(_ROTATION, content),
            by_new=new.sign(_ROTATION, content),
        )

    def check(self) -> None:
        """Pass silently if both keys signed it. Raises `ManifestError`."""
        what = f"the rotation to key {self.by_new.key_id[:12]}"
        content = canonical_json(self.statement)
        self.by_old.check(_ROTATION, content, what=what)
        self.by_new.check(_ROTATION, content, what=what)


class RevocationStatement(Contract):
    """What `key_id` signed counts only if the record proves that it was signed before this event."""

    version: Literal[1] = 1
    key_id: Sha256
    reason: str = Field(min_length=1, max_length=500)
    num_events: int = Field(ge=0)
    """How many events the library's chain had."""
    head: Sha256
    """The hash of the last of them, so that none can be put before it later."""
    at: UtcDatetime


class Revocation(Contract):
    """A revocation, signed by any key on the record: it only ever takes trust away."""

    statement: RevocationStatement
    by: Signature

    @classmethod
    def make(cls, key_id: str, by: SigningKey, *, reason: str, num_events: int, head: str) -> Self:
        """Revoke a key as the next event of the library's chain."""
        statement = RevocationStatement(
            key_id=key_id, reason=reason, num_events=num_events, head=head, at=utc_now()
        )
        return cls(statement=statement, by=by.sign(_REVOCATION, canonical_json(statement)))

    def check(self) -> None:
        """Pass silently if its key signed it. Raises `ManifestError`."""
        what = f"the revocation of key {self.statement.key_id[:12]}"
        self.by.check(_REVOCATION, canonical_json(self.statement), what=what)


class ManifestSigned(Contract):
    """A manifest that was signed: proves that this happened before whatever follows on the chain."""

    key_id: Sha256
    manifest: Sha256
    """sha256 of the manifest's canonical JSON."""
    subject: str = Field(min_length=1, max_length=200)
    """What it is about: `library`, or `kernel` and its id."""


def read_statement[Said: Contract](event: ChainedEvent, kind: type[Said]) -> Said:
    """Return what an event says about a key, its signatures verified.

    Raises:
        ManifestError: naming the event.

    """
    try:
        said = kind.model_validate(event.data)
        if isinstance(said, Rotation | Revocation):
            said.check()
    except (ValidationError, ManifestError) as error:
        raise ManifestError(
            f"event {event.seq} of the library's chain, {event.kind}, is none that a library writes: "
            f"{error}"
        ) from error
    return said
