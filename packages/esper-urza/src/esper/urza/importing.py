"""Fills an empty library from a file that `exporting` wrote: all of it, verified, or nothing.

First every line, chain, fingerprint and endorsement in the file is verified, then the artifacts are stored,
each under its hash, then the records are written in one transaction. Whatever ends it before leaves at most
artifacts without records, which garbage collection removes.
"""

import tempfile
from collections import deque
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import sqlalchemy as sa

from esper.contracts import (
    LIBRARY_CHAIN,
    ArtifactIntegrityError,
    ArtifactStore,
    ConfigError,
    IllegalTransitionError,
)
from esper.urza import audit, rows
from esper.urza.bundle import BundleReader
from esper.urza.exporting import Tell, silent
from esper.urza.file_store import open_file_store
from esper.urza.import_checks import Found, check_lists
from esper.urza.import_rows import insert_rows
from esper.urza.library import SqlLibrary, open_library
from esper.urza.lists import Lists, read_lists
from esper.urza.manifests import LibraryManifest, SignedManifest
from esper.urza.schema import metadata
from esper.urza.trust import check_trust


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was in the file, and whose word it is."""

    signed: SignedManifest
    manifest: LibraryManifest
    path: tuple[str, ...]
    """The ids of the keys from a trusted one to the one that signed; empty if nobody asked."""


def import_library(
    library: SqlLibrary,
    path: Path,
    *,
    trusted: Collection[str] | None = None,
    tell: Tell = silent,
) -> Imported:
    """Read a file into an empty library, whose chains are then the same, bit for bit.

    Args:
        library: open, and without any records.
        path: of the file.
        trusted: public keys in hexadecimal, one of which must vouch for the file; None to take it
            from anybody, if it is whole.
        tell: hears of the progress.

    Raises:
        ConfigError: if the file cannot be read.
        IllegalTransitionError: if the library is not empty.
        ArtifactIntegrityError: if the file was cut off, changed, damaged or put in another order, or if
            a record in it is not what its chain says, or is VALIDATED without an endorsement that verifies.
        ChainError: if a chain in it is broken.
        ManifestError: if its manifest was changed, or (`UntrustedKeyError`) nobody trusted signed it.
        BackendUnavailableError: if a server, or the disk, fails. No record is left then.

    """
    return _import(library, library.artifacts, path, trusted, tell)


def check_file(
    path: Path, *, trusted: Collection[str] | None = None, tell: Tell = silent
) -> Imported:
    """Verify a file just as an import does, and keep nothing of it. Raises as `import_library`."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_file_store((Path(folder) / "artifacts").as_uri())
        library = open_library(f"sqlite:///{folder}/library.db", store)
        library.open()
        try:
            return _import(library, None, path, trusted, tell)
        finally:
            library.close()


def _import(
    library: SqlLibrary,
    store: ArtifactStore | None,
    path: Path,
    trusted: Collection[str] | None,
    tell: Tell,
) -> Imported:
    with _opened(path) as file:
        lists = read_lists(BundleReader(file, path))
        with library.snapshot() as connection:
            _check_empty(connection, library.place)
        found = check_lists(lists, tell)
        keys = () if trusted is None else check_trust(lists.signed, trusted, found.record)
        _take_artifacts(store, lists, found, tell)
        with library.transaction() as connection:
            # From here on nobody else writes to the library's chain, so to the library.
            audit.hold(connection, LIBRARY_CHAIN)
            _check_empty(connection, library.place)
            insert_rows(connection, lists, tell)
            _compare(connection, found, path, tell)
    return Imported(signed=lists.signed, manifest=lists.manifest, path=keys)


def _take_artifacts(store: ArtifactStore | None, lists: Lists, found: Found, tell: Tell) -> None:
    """Store the artifacts, verified; without a store only verify them."""
    total = sum(size_bytes for _, size_bytes in found.artifacts)
    said = (lists.manifest.num_artifacts, lists.manifest.artifact_bytes)
    if said != (len(found.artifacts), total):
        raise ArtifactIntegrityError(
            f"the manifest says that there are {said[0]} artifacts of {said[1]} bytes; the kernels' "
            f"records say {len(found.artifacts)} of {total}"
        )
    done = 0
    lists.go_behind()
    for sha256, size_bytes in found.artifacts:
        chunks = lists.artifact(sha256, size_bytes)
        if store is None:
            deque(chunks, maxlen=0)
        else:
            store.put_stream(chunks, sha256=sha256)
        done += size_bytes
        tell("artifacts", done, total)
    lists.end()


def _compare(connection: sa.Connection, found: Found, path: Path, tell: Tell) -> None:
    """Compare the rows with the chains. Raises `ArtifactIntegrityError`."""

    def progress(table: str, done: int, total: int) -> None:
        tell(f"compare {table}", min(done, total), total)

    for damage in rows.compare(connection, found.recorded, (), progress):
        advice = (
            "put it on the record there (`urza verify --adopt`)"
            if damage.is_unrecorded
            else "mend it there"
        )
        raise ArtifactIntegrityError(
            f"{path} holds a damaged library: {damage.problem}; {advice} and export it again. Nothing "
            "was imported"
        )


def _check_empty(connection: sa.Connection, place: str) -> None:
    """Raise `IllegalTransitionError` if there are any records."""
    for name in ("blueprints", "validator_keys", "field_reports", "events"):
        if connection.execute(sa.select(1).select_from(metadata.tables[name]).limit(1)).first():
            raise IllegalTransitionError(
                f"the library ({place}) is not empty: it has {name.replace('_', ' ')}. A library is "
                "imported into an empty one only, where its chains stay what they are; give another "
                "database"
            )


@contextmanager
def _opened(path: Path) -> Generator[BinaryIO]:
    try:
        file = path.open("rb")
        is_file = path.is_file()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        if not is_file:
            raise ConfigError(f"{path} is no regular file, and it is read more than once")
        yield file
