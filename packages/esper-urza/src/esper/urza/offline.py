"""Verifies a manifest where there is no library and no network: files in, a verdict out.

`urza keys verify` prints what `verify_manifest` returns; `importing` reads whole libraries with the same
functions.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from esper.contracts import (
    LIBRARY_CHAIN,
    ArtifactIntegrityError,
    ChainedEvent,
    ConfigError,
    KernelStatus,
    ManifestError,
    read_chain,
)
from esper.urza import records
from esper.urza.manifests import (
    MAX_BYTES,
    ChainHead,
    KernelManifest,
    LibraryManifest,
    SignedManifest,
    parse,
)
from esper.urza.trust import Record, check_trust, places_of, read_record
from esper.urza.validators import check_endorsement
from esper.urza.verifying import CHUNK_BYTES, RunningHash


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A manifest that was found true, and how far that was looked into."""

    signed: SignedManifest
    path: tuple[str, ...]
    """The ids of the keys from a trusted one to the one that signed."""
    artifact_checked: bool
    record_checked: bool
    """Without the record, nobody knows whether a key was revoked."""


def verify_manifest(
    manifest: Path,
    *,
    trusted: Collection[str],
    artifact: Path | None = None,
    record: Path | None = None,
) -> Verified:
    """Verify a manifest, and the artifact and the record if they are given.

    Args:
        manifest: a file that `urza keys sign` wrote, or `manifest.json` from an exported library.
        trusted: public keys in hexadecimal.
        artifact: the kernel's bytes.
        record: the events of the library's chain, as JSON Lines.

    Raises:
        ConfigError: if a file cannot be read, or an artifact comes with the manifest of a library.
        ManifestError: if the manifest was changed, or does not fit its own report or the record.
        UntrustedKeyError: if it is not signed, or by no key that is trusted.
        KernelRejectedError: if the endorsement in it does not verify.
        ChainError: if the record is broken.
        ArtifactIntegrityError: if the artifact is another one.

    """
    signed = parse(_read(manifest), where=str(manifest))
    what = signed.manifest
    if artifact is not None and not isinstance(what, KernelManifest):
        raise ConfigError(
            f"{manifest} is about a whole library, which has no one artifact; leave it out"
        )
    known, events = (None, {}) if record is None else _read_record(record, signed)
    path = check_trust(signed, trusted, known)
    if isinstance(what, KernelManifest):
        check_kernel(what)
        if record is not None:
            check_events(what, events)
        if artifact is not None:
            check_artifact(what, artifact)
    return Verified(
        signed=signed,
        path=path,
        artifact_checked=artifact is not None,
        record_checked=record is not None,
    )


def check_kernel(manifest: KernelManifest) -> None:
    """Pass silently if what a kernel's manifest says of it fits together.

    Raises:
        ManifestError: if a fingerprint is not that of what it is about.
        KernelRejectedError: if a VALIDATED kernel's endorsement does not verify.

    """
    kernel = manifest.kernel
    named = f"the manifest of kernel {kernel.kernel_id}"
    as_registered = kernel.model_copy(update={"tags": manifest.own_tags})
    if records.fingerprint_of(as_registered) != manifest.record:
        raise ManifestError(f"{named} carries another record than its fingerprint says")
    measured = () if kernel.report is None else kernel.report.tags
    if kernel.tags != records.all_tags(manifest.own_tags, measured):
        raise ManifestError(f"{named} carries tags that neither the kernel nor its report has")
    report = None if kernel.report is None else records.fingerprint_of(kernel.report)
    if report != manifest.report:
        raise ManifestError(f"{named} carries another report than its fingerprint says")
    if kernel.endorsement is not None:
        key = manifest.validator
        if key is not None and kernel.status is not KernelStatus.VALIDATED:
            # Of a kernel that nobody runs any more it is history, whatever became of the key.
            key = key.model_copy(update={"revoked_at": None})
        check_endorsement(kernel, kernel.endorsement, key)


def check_events(manifest: KernelManifest, events: dict[int, ChainedEvent]) -> None:
    """Pass silently if the record says of the kernel what its manifest says. Raises `ManifestError`."""
    kernel_id = manifest.kernel.kernel_id
    said: list[tuple[int, object, object]] = []
    if manifest.registered is not None:
        data = events[manifest.registered.seq].data
        said.append(
            (manifest.registered.seq, data.get("kernels", {}).get(kernel_id), manifest.record)
        )
    if manifest.judged is not None:
        data = events[manifest.judged.seq].data
        judged = (data.get("kernel_id"), data.get("report"))
        said.append((manifest.judged.seq, judged, (kernel_id, manifest.report)))
    for seq, by_record, by_manifest in said:
        if by_record != by_manifest:
            raise ManifestError(
                f"event {seq} of the library's chain says something else of kernel {kernel_id} than its "
                "manifest does; one of them is not the library's"
            )


def check_artifact(manifest: KernelManifest, artifact: Path) -> None:
    """Pass silently if a file holds the kernel's bytes. Raises `ArtifactIntegrityError`."""
    with RunningHash() as running:
        try:
            with artifact.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    running.update(chunk)
        except OSError as error:
            raise ConfigError(
                f"the artifact {artifact} cannot be read: {error.strerror}"
            ) from error
        found = (running.hexdigest(), running.size_bytes)
    expected = (manifest.kernel.kernel_id, manifest.kernel.size_bytes)
    if found != expected:
        raise ArtifactIntegrityError(
            f"{artifact} is not the artifact of this manifest: expected sha256 {expected[0]} of "
            f"{expected[1]} bytes, found {found[0]} of {found[1]}; get it again"
        )


def head_of(manifest: KernelManifest | LibraryManifest) -> ChainHead:
    """Return where the library's chain stood when the manifest was made."""
    if isinstance(manifest, KernelManifest):
        return manifest.chain
    for head in manifest.chains:
        if head.chain == LIBRARY_CHAIN:
            return head
    return ChainHead(chain=LIBRARY_CHAIN, num_events=0, head="0" * 64)


def _read_record(record: Path, signed: SignedManifest) -> tuple[Record, dict[int, ChainedEvent]]:
    try:
        return read_record(
            read_chain(record), head=head_of(signed.manifest), places=places_of(signed)
        )
    except OSError as error:
        raise ConfigError(f"the record {record} cannot be read: {error.strerror}") from error


def _read(manifest: Path) -> bytes:
    try:
        with manifest.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the manifest {manifest} cannot be read: {error.strerror}") from error
