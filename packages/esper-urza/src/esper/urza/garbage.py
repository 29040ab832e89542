"""Garbage collection: artifacts that nothing refers to, and what interrupted uploads have left.

The library stores a kernel's bytes before its row, so a process that ends in between leaves bytes without
a row. They are removed once they are older than a grace period, never before, because their row may be on
its way. That is safe against every writer whose row follows its `put` within the grace period:

- a `put` of bytes that are there already renews their age, so a writer that comes to an old orphan's help
  starts the period anew;
- the age is looked at first, the reference after that, right before the deletion: a row that was written
  in time for bytes that old is there to be seen;
- the store deletes only what was not put again since (`ArtifactStore.delete`), without a gap between
  looking and deleting (see `file_store` and `s3_condemned`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from esper.contracts import ArtifactStore, ConfigError, Draft, StoredArtifact, utc_now

DEFAULT_GRACE = timedelta(days=1)
"""Far longer than a row may lag behind its bytes, and clocks may differ."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Artifacts or drafts that stayed, counted."""

    number: int = 0
    size_bytes: int = 0

    def with_one(self, size_bytes: int) -> "Kept":
        """Count one more."""
        return Kept(number=self.number + 1, size_bytes=self.size_bytes + size_bytes)


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What one garbage collection did, or would do if it was a dry run."""

    is_dry_run: bool
    removed: tuple[StoredArtifact, ...]
    removed_drafts: tuple[Draft, ...]
    referenced: Kept
    young: Kept
    """Of the artifacts that nothing refers to."""
    young_drafts: Kept

    @property
    def freed_bytes(self) -> int:
        """The size of all that was removed."""
        return sum(item.size_bytes for item in (*self.removed, *self.removed_drafts))


def collect(
    store: ArtifactStore,
    is_referenced: Callable[[str], bool],
    *,
    older_than: timedelta = DEFAULT_GRACE,
    now: datetime | None = None,
    dry_run: bool = False,
) -> Collected:
    """Remove artifacts that nothing refers to, and drafts, that are older than the grace period.

    Interrupted, it leaves a store that is as good as before; several may run at a time.

    Args:
        store: open.
        is_referenced: tells whether anything refers to the artifact of a sha256; asked right before
            each deletion, and must see every row that is committed.
        older_than: the grace period; longer than any row may lag behind its bytes.
        now: when that is; None for this moment.
        dry_run: only tell what would be removed.

    Raises:
        ConfigError: if the grace period is negative.

    """
    if older_than < timedelta():
        raise ConfigError(
            f"the grace period of garbage collection is {older_than}; expected zero or more, and "
            "longer than any upload takes"
        )
    latest = (now or utc_now()) - older_than
    removed: list[StoredArtifact] = []
    referenced = young = young_drafts = Kept()
    for artifact in store.list():
        is_old = artifact.modified_at <= latest
        if is_referenced(artifact.sha256):
            referenced = referenced.with_one(artifact.size_bytes)
        elif is_old and (dry_run or store.delete(artifact.sha256, if_unmodified_since=latest)):
            removed.append(artifact)
        else:
            young = young.with_one(artifact.size_bytes)
    removed_drafts: list[Draft] = []
    for draft in store.drafts():
        if draft.modified_at > latest:
            young_drafts = young_drafts.with_one(draft.size_bytes)
        elif dry_run or store.discard(draft):
            removed_drafts.append(draft)
    return Collected(
        is_dry_run=dry_run,
        removed=tuple(removed),
        removed_drafts=tuple(removed_drafts),
        referenced=referenced,
        young=young,
        young_drafts=young_drafts,
    )
