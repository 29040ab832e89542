"""Writes a whole library into one file: its records as lists, its chains, its artifacts, and a manifest.

All records are of one moment, and the same contents give the same bytes, whichever database and store
they are in. The file is complete or not there. `importing` reads it.
"""

import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import sqlalchemy as sa

from esper.contracts import LIBRARY_CHAIN, ConfigError, new_id
from esper.urza import audit, contents, keyring
from esper.urza.bundle import BundleWriter
from esper.urza.file_errors import translated
from esper.urza.library import SqlLibrary
from esper.urza.manifests import (
    MAX_BYTES,
    ChainHead,
    LibraryManifest,
    Member,
    SignedManifest,
    sign,
)
from esper.urza.signing import SigningKey
from esper.urza.verifying import CHUNK_BYTES, RunningHash

type Tell = Callable[[str, int, int | None], None]
"""Hears which step goes on, how much of it is done, and how much there is, if that is known."""


def silent(_step: str, _done: int, _total: int | None) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What is in the file."""

    signed: SignedManifest
    manifest: LibraryManifest
    size_bytes: int


def export_library(
    library: SqlLibrary,
    path: Path,
    *,
    key: SigningKey | None = None,
    is_recorded: bool = False,
    tell: Tell = silent,
) -> Exported:
    """Write a library into a new file.

    Args:
        library: open.
        path: of the file, which must not exist.
        key: signs the manifest; on the library's record, and not revoked. None for an unsigned one.
        is_recorded: put on the record that it was signed, afterwards: the file does not hold that event.
        tell: hears of the progress.

    Raises:
        ConfigError: if the file exists.
        UntrustedKeyError: if the key is not on the library's record, or was revoked.
        NotFoundError: if an artifact is missing.
        ArtifactIntegrityError: if an artifact or a record was changed.
        ChainError: if a chain is broken.
        BackendUnavailableError: if a server, or the disk, fails. No file is left then.

    """
    with _new_file(path) as file, _described(library, path.parent, key, tell) as (signed, lists):
        manifest = signed.manifest
        assert isinstance(manifest, LibraryManifest)
        _write_bundle(BundleWriter(file, path), signed, manifest, lists, library, tell)
        size_bytes = file.tell()
    if is_recorded:
        _record(library, signed)
    return Exported(signed=signed, manifest=manifest, size_bytes=size_bytes)


def seal_library(
    library: SqlLibrary, key: SigningKey, *, is_recorded: bool = True, tell: Tell = silent
) -> SignedManifest:
    """Sign what a library holds, and where its chains end, without writing it.

    Args:
        library: open.
        key: on the library's record, and not revoked.
        is_recorded: put on the record that it was signed, afterwards.
        tell: hears of the progress.

    Raises:
        UntrustedKeyError: if the key is not on the library's record, or was revoked.
        ArtifactIntegrityError: if a record was changed.
        ChainError: if a chain is broken.

    """
    with _described(library, Path(tempfile.gettempdir()), key, tell) as (signed, _):
        pass
    if is_recorded:
        _record(library, signed)
    return signed


@contextmanager
def _described(
    library: SqlLibrary, folder: Path, key: SigningKey | None, tell: Tell
) -> Generator[tuple[SignedManifest, Mapping[str, IO[bytes]]]]:
    """Give the manifest and the lists of a library as it is now; the lists are gone afterwards."""
    with ExitStack() as stack:
        lists = {name: stack.enter_context(_temporary_file(folder)) for name in contents.LISTS}
        with library.snapshot() as connection:
            manifest = _write_lists(connection, lists, folder, tell)
            known = keyring.read_keys(connection)
        if key is not None:
            keyring.check_in_force(known, key.key_id)
        yield sign(manifest, key, () if key is None else known.rotations_to(key.key_id)), lists


def _record(library: SqlLibrary, signed: SignedManifest) -> None:
    if signed.signature is not None:
        with library.transaction() as connection:
            keyring.note_signed(connection, signed)


def _write_lists(
    connection: sa.Connection, lists: Mapping[str, IO[bytes]], folder: Path, tell: Tell
) -> LibraryManifest:
    heads: dict[str, ChainHead] = {}
    sources = {
        contents.BLUEPRINTS: contents.blueprint_lines(connection),
        contents.KEYS: contents.key_lines(connection),
        contents.KERNELS: contents.kernel_lines(connection),
        contents.REPORTS: contents.report_lines(connection),
        contents.OUTCOMES: contents.outcome_lines(connection),
        contents.LIBRARY_EVENTS: _library_events(connection, heads),
        contents.RUN_EVENTS: _run_events(connection, heads),
    }
    members = [
        _write_list(name, sources[name], lists[name], folder, tell) for name in contents.LISTS
    ]
    num_artifacts = artifact_bytes = 0
    for _, size_bytes in _artifacts(lists[contents.KERNELS]):
        num_artifacts, artifact_bytes = num_artifacts + 1, artifact_bytes + size_bytes
    manifest = LibraryManifest(
        members=tuple(members),
        num_artifacts=num_artifacts,
        artifact_bytes=artifact_bytes,
        chains=tuple(heads[name] for name in sorted(heads, key=str.encode)),
    )
    return manifest


def _write_list(
    name: str, lines: Iterable[bytes], file: IO[bytes], folder: Path, tell: Tell
) -> Member:
    num_records = 0
    with RunningHash() as running, translated(folder, "written", what="folder"):
        for line in lines:
            running.update(line)
            file.write(line)
            num_records += 1
            if num_records % 1000 == 0:
                tell(name, num_records, None)
        file.flush()
        tell(name, num_records, num_records)
        return Member(
            name=name,
            sha256=running.hexdigest(),
            size_bytes=running.size_bytes,
            num_records=num_records,
        )


def _library_events(connection: sa.Connection, heads: dict[str, ChainHead]) -> Iterator[bytes]:
    for event in audit.verified(connection, LIBRARY_CHAIN):
        heads[LIBRARY_CHAIN] = ChainHead(
            chain=LIBRARY_CHAIN, num_events=event.seq + 1, head=event.hash
        )
        yield event.line()


def _run_events(connection: sa.Connection, heads: dict[str, ChainHead]) -> Iterator[bytes]:
    for chain in sorted(audit.names(connection), key=str.encode):
        if chain != LIBRARY_CHAIN:
            for event in audit.verified(connection, chain):
                heads[chain] = ChainHead(chain=chain, num_events=event.seq + 1, head=event.hash)
                yield contents.run_line(chain, event)


def _write_bundle(
    bundle: BundleWriter,
    signed: SignedManifest,
    manifest: LibraryManifest,
    lists: Mapping[str, IO[bytes]],
    library: SqlLibrary,
    tell: Tell,
) -> None:
    content = signed.file()
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"the library has {len(manifest.chains)} chains, too many for one manifest of {MAX_BYTES:,} "
            "bytes"
        )
    bundle.add(contents.MANIFEST, len(content), [content])
    for member in manifest.members:
        bundle.add(member.name, member.size_bytes, _chunks(lists[member.name]))
    done = 0
    for sha256, size_bytes in _artifacts(lists[contents.KERNELS]):
        with library.artifacts.stream(sha256) as chunks:
            bundle.add(contents.artifact_name(sha256), size_bytes, chunks)
        done += size_bytes
        tell("artifacts", done, manifest.artifact_bytes)
    bundle.finish()


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _artifacts(file: IO[bytes]) -> Iterator[tuple[str, int]]:
    """Give hash and size of each kernel's bytes, from the list of kernels that was just written."""
    file.seek(0)
    for line in file:
        registered = json.loads(line)["registered"]
        yield registered["kernel_id"], registered["size_bytes"]


@contextmanager
def _new_file(path: Path) -> Generator[BinaryIO]:
    """Give a new file, which appears under its name when it is complete; never replaces one."""
    if path.exists():
        raise _exists(path)
    draft = path.with_name(f".{path.name}.{new_id()}")
    with translated(path.parent, "written", what="folder"):
        file = draft.open("xb")
    try:
        yield file
        with translated(path, "written", what="file"):
            file.flush()
            os.fsync(file.fileno())
            _publish(draft, path)
    finally:
        with suppress(OSError):  # what happened before is what matters
            file.close()
        with suppress(OSError):
            draft.unlink()


def _publish(draft: Path, path: Path) -> None:
    try:
        path.hardlink_to(draft)  # unlike a new name for it, this fails if `path` exists by now
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError:  # a file system without hard links
        draft.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself must survive a power loss
    finally:
        os.close(folder)


def _exists(path: Path) -> ConfigError:
    return ConfigError(f"{path} exists, and an export never replaces a file; give another name")


@contextmanager
def _temporary_file(folder: Path) -> Generator[IO[bytes]]:
    """Give a file without a name, which is gone afterwards."""
    with translated(folder, "written", what="folder"):
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below, come what may
    try:
        yield file
    finally:
        with suppress(OSError):  # on a full disk, what it still had to write
            file.close()
