"""The port of the artifact store: immutable bytes under their sha256, in a folder or in a bucket.

Urza's backends implement it and register themselves in the group `esper.artifacts` (see `registry`);
the library keeps kernels' bytes in it.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """An artifact as its store knows it; that its bytes are still right shows when they are read."""

    sha256: str
    size_bytes: int
    modified_at: datetime
    """When it was last put, by the store's clock; putting the same bytes again renews it."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What an upload that goes on, or that was interrupted, has left so far; nobody can read it."""

    name: str
    """Means something to its store only."""
    size_bytes: int
    modified_at: datetime
    """When the store last heard of it, or, where it does not tell that, when the upload began."""


class ArtifactStore(Protocol):
    """Immutable bytes filed under their sha256; thread-safe.

    An artifact appears whole or not at all. Beside the errors named here, every method may raise
    `BackendUnavailableError` or one of its children: `AccessRefusedError` (credentials, a folder's
    mode), `ReadOnlyServerError`, `ServerFullError` (the disk).
    """

    @property
    def url(self) -> str:
        """Where the bytes are, without credentials."""
        ...

    def open(self) -> None:
        """Connect and make sure the folder or bucket exists.

        Raises:
            BackendUnavailableError: if it cannot be reached, created or written.

        """
        ...

    def close(self) -> None:
        """Release connections."""
        ...

    def put(self, blob: bytes) -> str:
        """Store `blob` and return its sha256; storing the same bytes twice is one.

        Raises:
            ArtifactIntegrityError: if other bytes are already filed under that hash.

        """
        ...

    def put_stream(self, chunks: Iterable[bytes], *, sha256: str | None = None) -> StoredArtifact:
        """Store what `chunks` bring, with little of it in memory at a time.

        Args:
            chunks: pieces of any length; what they raise ends the upload and passes through.
            sha256: what the bytes must hash to, if the caller knows.

        Raises:
            ArtifactIntegrityError: if the bytes hash to something else, or if other bytes are already
                filed under their hash. Nothing of the upload is left.

        """
        ...

    def get(self, sha256: str) -> bytes:
        """Return the bytes filed under `sha256`, verified.

        Raises:
            NotFoundError: if there are none.
            ArtifactIntegrityError: if the stored bytes do not match.

        """
        ...

    def stream(self, sha256: str) -> AbstractContextManager[Iterator[bytes]]:
        """Give the bytes in chunks, verified on the way.

        The last chunk is handed out only when all of them match the hash, so whoever reached the end
        without an error has the right bytes, and whoever did not must forget what came before.

        Raises:
            NotFoundError: on entering, if there are none.
            ArtifactIntegrityError: from the iterator, before its last chunk, if they do not match.

        """
        ...

    def list(self) -> Iterator[StoredArtifact]:
        """Give every artifact, in order of its hash; those that come or go meanwhile may be missed."""
        ...

    def delete(self, sha256: str, *, if_unmodified_since: datetime | None = None) -> bool:
        """Delete an artifact; tell whether there was one to delete.

        With `if_unmodified_since` it stays when its `modified_at` is later; a `put` of the same bytes
        meanwhile then either keeps it or stores it anew. Without, no other process may be putting it.
        """
        ...

    def drafts(self) -> Iterator[Draft]:
        """Give what unfinished uploads have left, as far as the store tells."""
        ...

    def discard(self, draft: Draft) -> bool:
        """Delete a draft, which ends an upload that still goes on; tell whether it was there."""
        ...
