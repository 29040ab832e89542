"""Makes the manifest of a kernel from a library and signs it; `export` does that for a whole library."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from esper.contracts import LIBRARY_CHAIN, CompiledKernelArtifact, parse_event
from esper.urza import audit, keyring, records, tables
from esper.urza.library import SqlLibrary
from esper.urza.manifests import ChainHead, ChainPlace, KernelManifest, SignedManifest, sign
from esper.urza.schema import events, kernels
from esper.urza.signing import SigningKey


def seal_kernel(
    library: SqlLibrary, kernel_id: str, key: SigningKey, *, is_recorded: bool = True
) -> SignedManifest:
    """Sign what the library says of a kernel.

    Args:
        library: open.
        kernel_id: on file there.
        key: on the library's record, and not revoked.
        is_recorded: put on the record that it was signed; should the key be revoked one day, only
            that proves that the manifest is older.

    Raises:
        NotFoundError: if there is no such kernel.
        UntrustedKeyError: if the key is not on the library's record, or was revoked.
        ArtifactIntegrityError: if the record of the kernel was changed.

    """
    with library.transaction() as connection:
        num_events, head = audit.hold(connection, LIBRARY_CHAIN)
        known = keyring.read_keys(connection)
        keyring.check_in_force(known, key.key_id)
        chain = ChainHead(chain=LIBRARY_CHAIN, num_events=num_events, head=head)
        manifest = _kernel_manifest(connection, kernel_id, chain)
        signed = sign(manifest, key, known.rotations_to(key.key_id))
        if is_recorded:
            keyring.note_signed(connection, signed)
    return signed


def _kernel_manifest(connection: sa.Connection, kernel_id: str, chain: ChainHead) -> KernelManifest:
    kernel = tables.read_kernel(connection, kernel_id)
    found = sa.select(kernels.c.tags).where(kernels.c.kernel_id == kernel_id)
    own_tags: tuple[str, ...] = tuple(connection.execute(found).scalar_one())
    as_registered = kernel.model_copy(update={"tags": own_tags})
    report, endorsement = kernel.report, kernel.endorsement
    return KernelManifest(
        kernel=kernel,
        own_tags=own_tags,
        record=records.fingerprint_of(as_registered),
        report=None if report is None else records.fingerprint_of(report),
        validator=None if endorsement is None else tables.find_key(connection, endorsement.key_id),
        registered=_registered(connection, kernel_id),
        judged=_judged(connection, kernel),
        chain=chain,
    )


def _registered(connection: sa.Connection, kernel_id: str) -> ChainPlace | None:
    return _place(
        connection, "kernels_registered", kernel_id, lambda data: kernel_id in data["kernels"]
    )


def _judged(connection: sa.Connection, kernel: CompiledKernelArtifact) -> ChainPlace | None:
    """Return the event of the latest verdict."""
    report = kernel.report
    if report is None:
        return None
    verdict = (kernel.kernel_id, report.report_id)
    return _place(
        connection,
        "kernel_judged",
        kernel.kernel_id,
        lambda data: (data["kernel_id"], data["report_id"]) == verdict,
    )


def _place(
    connection: sa.Connection, kind: str, part: str, is_it: Callable[[dict[str, Any]], bool]
) -> ChainPlace | None:
    """Return the newest event of a kind that names something; None if it is older than the record."""
    # Looks at every event of that kind: a tenth of a second among 100,000, and nothing to keep up.
    found = (
        sa.select(events.c.seq, events.c.line)
        .where(
            events.c.chain == LIBRARY_CHAIN,
            events.c.kind == kind,
            events.c.line.contains(part, autoescape=True),
        )
        .order_by(events.c.seq.desc())
    )
    for row in connection.execute(found):
        event = parse_event(row.line.encode(), f"event {row.seq} of chain {LIBRARY_CHAIN!r}")
        if is_it(event.data):
            return ChainPlace(seq=event.seq, hash=event.hash)
    return None
