"""The signing keys of a library as its record has them: enrolled, rotated, revoked, and what they signed.

Only public keys and what they say are here; each is an event on the library's chain and nothing else, so
that whoever has the chain has all that is needed to verify (`trust`). `sealing` signs with them.
"""

import sqlalchemy as sa

from esper.contracts import (
    LIBRARY_CHAIN,
    ConfigError,
    IllegalTransitionError,
    NotFoundError,
    UntrustedKeyError,
    parse_event,
)
from esper.urza import audit
from esper.urza.library import SqlLibrary
from esper.urza.manifests import SignedManifest
from esper.urza.schema import events
from esper.urza.signing import SigningKey, key_id_of
from esper.urza.statements import (
    ENROLLED,
    KINDS,
    REVOKED,
    ROTATED,
    SIGNED,
    KeyEnrolled,
    ManifestSigned,
    Revocation,
    Rotation,
)
from esper.urza.trust import Record


def read_keys(connection: sa.Connection) -> Record:
    """Return what the library's chain says about signing keys, as it was filed."""
    found = (
        sa.select(events.c.seq, events.c.line)
        .where(events.c.chain == LIBRARY_CHAIN, events.c.kind.in_(KINDS))
        .order_by(events.c.seq)
    )
    record = Record()
    for row in connection.execute(found):
        record.add(parse_event(row.line.encode(), f"event {row.seq} of chain {LIBRARY_CHAIN!r}"))
    return record


def enroll_key(library: SqlLibrary, public_key: str, *, name: str) -> KeyEnrolled:
    """Put a signing key on the record; again is harmless.

    Raises:
        ConfigError: if it has no name.
        IllegalTransitionError: if it was revoked.

    """
    _check_name(name)
    key = KeyEnrolled(key_id=key_id_of(public_key), public_key=public_key, name=name)
    with library.transaction() as connection:
        audit.hold(connection, LIBRARY_CHAIN)
        record = read_keys(connection)
        if (revocation := record.revocation_of(key.key_id)) is not None:
            raise IllegalTransitionError(
                f"key {key.key_id[:12]} was revoked on {revocation.said.statement.at:%Y-%m-%d} and is "
                "not accepted again; make a new one with `urza keys generate`"
            )
        if not record.knows(key.key_id):
            audit.append(connection, LIBRARY_CHAIN, [(ENROLLED, key.model_dump())])
    return key


def rotate_key(library: SqlLibrary, old: SigningKey, new: SigningKey, *, name: str) -> Rotation:
    """Let `new` sign for the library from now on, vouched for by `old`.

    Raises:
        ConfigError: if `new` has no name or is `old`.
        UntrustedKeyError: if `old` is not on the library's record, or was revoked.
        IllegalTransitionError: if `new` is on the record already.

    """
    _check_name(name)
    if old.key_id == new.key_id:
        raise ConfigError(f"key {old.key_id[:12]} cannot follow itself; generate a new one")
    with library.transaction() as connection:
        audit.hold(connection, LIBRARY_CHAIN)
        record = read_keys(connection)
        check_in_force(record, old.key_id)
        if record.knows(new.key_id):
            raise IllegalTransitionError(
                f"key {new.key_id[:12]} is on the library's record already; generate a new one"
            )
        rotation = Rotation.make(old, new, name=name)
        audit.append(connection, LIBRARY_CHAIN, [(ROTATED, rotation.model_dump(mode="json"))])
    return rotation


def revoke_key(library: SqlLibrary, key_id: str, *, by: SigningKey, reason: str) -> Revocation:
    """Take trust from a key: what it signed counts only as far as the record has it already.

    Args:
        library: open.
        key_id: the key that is lost, stolen or no longer wanted.
        by: a key in force on the library's record; may be the revoked one itself.
        reason: in words, for whoever finds that something is not trusted any more.

    Raises:
        ConfigError: if there is no reason.
        NotFoundError: if no such key is on the record.
        UntrustedKeyError: if `by` is not on the record, or was revoked.
        IllegalTransitionError: if the key was revoked before.

    """
    if not 1 <= len(reason) <= 500:
        raise ConfigError(f"a reason needs 1 to 500 characters; got {len(reason)}")
    with library.transaction() as connection:
        num_events, head = audit.hold(connection, LIBRARY_CHAIN)
        record = read_keys(connection)
        if not record.knows(key_id):
            raise NotFoundError(
                f"there is no signing key {key_id!r} on the record of the library ({library.place}); "
                "`urza keys list` shows those that are"
            )
        if (before := record.revocation_of(key_id)) is not None:
            raise IllegalTransitionError(
                f"key {key_id[:12]} was revoked on {before.said.statement.at:%Y-%m-%d} already"
            )
        check_in_force(record, by.key_id)
        revocation = Revocation.make(key_id, by, reason=reason, num_events=num_events, head=head)
        audit.append(connection, LIBRARY_CHAIN, [(REVOKED, revocation.model_dump(mode="json"))])
    return revocation


def check_in_force(record: Record, key_id: str) -> None:
    """Pass silently if a key signs for the library. Raises `UntrustedKeyError`."""
    if not record.knows(key_id):
        raise UntrustedKeyError(
            f"key {key_id[:12]} is not on the library's record; put it there with "
            "`urza keys enroll --signing`, or let it follow an older one with `urza keys rotate`"
        )
    if (revocation := record.revocation_of(key_id)) is not None:
        statement = revocation.said.statement
        raise UntrustedKeyError(
            f"key {key_id[:12]} was revoked on {statement.at:%Y-%m-%d} ({statement.reason}); use "
            "another one"
        )


def note_signed(connection: sa.Connection, signed: SignedManifest) -> None:
    """Put on the record that a manifest was signed, which proves when."""
    assert signed.signature is not None
    said = ManifestSigned(
        key_id=signed.signature.key_id, manifest=signed.digest, subject=signed.manifest.subject
    )
    audit.append(connection, LIBRARY_CHAIN, [(SIGNED, said.model_dump())])


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= 200:
        raise ConfigError(f"a key needs a name of 1 to 200 characters; got {len(name)} of them")
