"""Whether a manifest's key is one to trust: by rotations from a trusted key, and by what was revoked when.

Works offline, from the manifest and, where given, the library's record (the events of its chain). Without
the record nobody knows of revocations. With it, what a revoked key signed counts only if the record has it
before the revocation, whose statement seals the events before it: nobody can put one there afterwards.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from esper.contracts import GENESIS, ChainedEvent, Contract, ManifestError, UntrustedKeyError
from esper.urza.manifests import ChainHead, ChainPlace, KernelManifest, SignedManifest
from esper.urza.signing import key_id_of
from esper.urza.statements import (
    ENROLLED,
    REVOKED,
    ROTATED,
    SIGNED,
    KeyEnrolled,
    ManifestSigned,
    Revocation,
    Rotation,
    read_statement,
)


@dataclass(frozen=True, kw_only=True)
class OnRecord[Said: Contract]:
    """A statement, and the number of the event that says it."""

    seq: int
    said: Said


@dataclass(kw_only=True)
class Record:
    """What the events of a library's chain say about signing keys, in the order of the chain."""

    enrolled: list[OnRecord[KeyEnrolled]] = field(default_factory=list[OnRecord[KeyEnrolled]])
    rotated: list[OnRecord[Rotation]] = field(default_factory=list[OnRecord[Rotation]])
    revoked: list[OnRecord[Revocation]] = field(default_factory=list[OnRecord[Revocation]])
    signed: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """The first event about a manifest, by the ids of its key and itself."""

    def add(self, event: ChainedEvent) -> None:
        """Take in one event; those about other things are passed over.

        Raises:
            ManifestError: if it is about a key and no library would have written it.

        """
        seq = event.seq
        if event.kind == ENROLLED:
            self.enrolled.append(OnRecord(seq=seq, said=read_statement(event, KeyEnrolled)))
        elif event.kind == ROTATED:
            self.rotated.append(OnRecord(seq=seq, said=read_statement(event, Rotation)))
        elif event.kind == REVOKED:
            self._add_revocation(event)
        elif event.kind == SIGNED:
            said = read_statement(event, ManifestSigned)
            self.signed.setdefault((said.key_id, said.manifest), seq)

    def knows(self, key_id: str) -> bool:
        """Tell whether a key signs, or signed, for the library."""
        return any(each.said.key_id == key_id for each in self.enrolled) or any(
            each.said.by_new.key_id == key_id for each in self.rotated
        )

    def revocation_of(self, key_id: str) -> OnRecord[Revocation] | None:
        """Return the first revocation of a key, None if there is none."""
        return next((each for each in self.revoked if each.said.statement.key_id == key_id), None)

    def rotations_to(self, key_id: str) -> tuple[Rotation, ...]:
        """Return the rotations that lead to a key, the first one first."""
        found: list[Rotation] = []
        before = {each.said.by_new.key_id: each.said for each in reversed(self.rotated)}
        while (rotation := before.pop(key_id, None)) is not None:
            found.append(rotation)
            key_id = rotation.by_old.key_id
        return tuple(reversed(found))

    def _add_revocation(self, event: ChainedEvent) -> None:
        said = read_statement(event, Revocation)
        stands = (event.seq, event.previous)
        if (said.statement.num_events, said.statement.head) != stands:
            raise ManifestError(
                f"event {event.seq} of the library's chain revokes key {said.statement.key_id[:12]}, "
                "but the statement is sealed for another place: events were put before it, or it was "
                "taken from another library"
            )
        if not self.knows(said.by.key_id):
            raise ManifestError(
                f"event {event.seq} of the library's chain revokes key {said.statement.key_id[:12]} in "
                f"the name of key {said.by.key_id[:12]}, which is not on the record"
            )
        self.revoked.append(OnRecord(seq=event.seq, said=said))


def read_record(
    events: Iterable[ChainedEvent], *, head: ChainHead, places: Collection[ChainPlace] = ()
) -> tuple[Record, dict[int, ChainedEvent]]:
    """Read a library's chain, whose events are verified on the way; return the events at `places` too.

    Args:
        events: of the whole chain; see `chain.read_chain` and `audit.verified`.
        head: where the chain stood when a manifest was made, which must be on it.
        places: those of events that the manifest names.

    Raises:
        ChainError: if the chain is broken.
        ManifestError: if it is not the one that the manifest names.

    """
    record, found, last = Record(), dict[int, ChainedEvent](), GENESIS
    wanted = {place.seq for place in places}
    stood = GENESIS if head.num_events == 0 else None
    num_events = 0
    for event in events:
        record.add(event)
        num_events, last = event.seq + 1, event.hash
        if num_events == head.num_events:
            stood = last
        if event.seq in wanted:
            found[event.seq] = event
    if stood != head.head:
        raise ManifestError(
            f"the manifest was made when chain {head.chain!r} had {head.num_events} events and ended with "
            f"hash {head.head}; the record given has {num_events} events and no such place: it is of "
            "another library, or older than the manifest"
        )
    for place in places:
        if place.seq not in found or found[place.seq].hash != place.hash:
            raise ManifestError(
                f"the manifest names event {place.seq} of the library's chain with hash {place.hash}, "
                "which the record given does not have: one of them is of another library"
            )
    return record, found


def check_trust(
    signed: SignedManifest, trusted: Collection[str], record: Record | None = None
) -> tuple[str, ...]:
    """Return the ids of the keys that lead from a trusted one to the one that signed.

    Args:
        signed: the manifest, as `manifests.parse` returned it.
        trusted: public keys in hexadecimal.
        record: what the library's chain says; None if it is not at hand.

    Raises:
        UntrustedKeyError: if nobody signed it, if no rotation leads from a trusted key to the one that
            did, or if a key on that way was revoked and the record does not prove that what it signed
            is older.

    """
    if signed.signature is None:
        raise UntrustedKeyError(
            f"nobody signed this manifest of {signed.manifest.subject}; ask whoever made it to sign it "
            "with a key that you trust"
        )
    search = _Search(trusted=frozenset(trusted), record=record or Record())
    for rotation in signed.rotations:
        search.add(rotation, None)
    for known in search.record.rotated:
        search.add(known.said, known.seq)
    key_id = signed.signature.key_id
    moment = search.record.signed.get((key_id, signed.digest))
    path = search.path(signed.signature.public_key, moment)
    if path is None:
        shown = ", ".join(sorted(search.refusals)) or (
            "no rotation leads from a trusted key to it; get the library's public key from its owner"
        )
        raise UntrustedKeyError(
            f"the manifest of {signed.manifest.subject} is signed by key {key_id[:12]}, which is not "
            f"trusted: {shown}"
        )
    return path


class _Search:
    """Looks for a way from a key back to a trusted one, past none that was revoked before it signed."""

    def __init__(self, *, trusted: frozenset[str], record: Record) -> None:
        self.record = record
        self.refusals: set[str] = set()
        self._trusted = trusted
        self._rotations: dict[str, dict[Rotation, int | None]] = {}

    def add(self, rotation: Rotation, seq: int | None) -> None:
        """Know of a rotation, and which event of the record says it."""
        to_new = self._rotations.setdefault(rotation.by_new.public_key, {})
        if to_new.get(rotation) is None:
            to_new[rotation] = seq

    def path(self, public_key: str, moment: int | None) -> tuple[str, ...] | None:
        """Return the ids of the keys from a trusted one to this one, None if there is no way."""
        # Each step is a key and when it signed what led here; the same step is gone once only.
        waiting: list[tuple[str, int | None, tuple[str, ...]]] = [(public_key, moment, ())]
        gone: set[tuple[str, int | None]] = set()
        while waiting:
            key, signed_at, after = waiting.pop()
            key_id = key_id_of(key)
            if (key, signed_at) in gone or not self._counts(key_id, signed_at):
                continue
            gone.add((key, signed_at))
            if key in self._trusted:
                return (key_id, *after)
            waiting += [
                (rotation.by_old.public_key, seq, (key_id, *after))
                for rotation, seq in self._rotations.get(key, {}).items()
            ]
        return None

    def _counts(self, key_id: str, moment: int | None) -> bool:
        """Tell whether what a key signed counts; `moment` is the event that proves when."""
        revocation = self.record.revocation_of(key_id)
        if revocation is None or (moment is not None and moment < revocation.seq):
            return True
        statement = revocation.said.statement
        self.refusals.add(
            f"key {key_id[:12]} was revoked on {statement.at:%Y-%m-%d} ({statement.reason}), and the "
            "record does not prove that this was signed before"
        )
        return False


def places_of(signed: SignedManifest) -> tuple[ChainPlace, ...]:
    """Return the events that a manifest names."""
    manifest = signed.manifest
    if not isinstance(manifest, KernelManifest):
        return ()
    return tuple(each for each in (manifest.registered, manifest.judged) if each is not None)
