"""Verification of a whole library: the chains of events, every row against them, every artifact's bytes.

`verify` walks through one unchanging view of the database and names what is damaged; `recorded` is what
the chains say must be there, `rows` compares. `adopting` puts on the record what was there before it.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from esper.contracts import (
    GENESIS,
    LIBRARY_CHAIN,
    ArtifactIntegrityError,
    ArtifactStore,
    ChainError,
    NotFoundError,
)
from esper.urza import audit, rows
from esper.urza.library import SqlLibrary
from esper.urza.recorded import Recorded
from esper.urza.rows import Damage, Progress
from esper.urza.schema import events, kernels


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a chain ends: whoever notes it elsewhere will notice when its end is cut off."""

    chain: str
    num_events: int
    hash: str


def verify(
    library: SqlLibrary,
    *,
    heads: Mapping[str, str] | None = None,
    artifacts: bool = True,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Generator[Damage]:
    """Yield everything that is wrong with a library, first links first; nothing if all is well.

    Writers are not disturbed; what they add meanwhile is left for the next time.

    Args:
        library: open.
        heads: the hashes that chains must contain as their last event's, by chain, noted earlier
            elsewhere. Without, events missing at a chain's end go unnoticed.
        artifacts: read every artifact too.
        progress: called every now and then.

    Raises:
        BackendUnavailableError: if the database or the store cannot be reached.

    """
    with library.snapshot() as connection:
        recorded = Recorded()
        broken: set[str] = set()
        for damage in _walk_chains(connection, recorded, heads or {}, progress):
            broken.add(damage.subject)
            yield damage
        yield from rows.compare(connection, recorded, broken, progress)
        found = connection.execute(sa.select(kernels.c.kernel_id, kernels.c.size_bytes))
        sizes: dict[str, int] = {row.kernel_id: row.size_bytes for row in found}
    if artifacts:
        for done, (kernel_id, size_bytes) in enumerate(sorted(sizes.items())):
            progress("artifacts", done, len(sizes))
            if problem := _problem_of_artifact(library.artifacts, kernel_id, size_bytes):
                yield Damage(kind="artifact", subject=kernel_id, problem=problem)
        progress("artifacts", len(sizes), len(sizes))


def read_heads(library: SqlLibrary) -> list[Head]:
    """Return where each chain ends, the library's first."""
    with library.snapshot() as connection:
        last = (
            sa.select(events.c.chain, sa.func.max(events.c.seq).label("seq"))
            .group_by(events.c.chain)
            .subquery()
        )
        found = sa.select(events.c.chain, events.c.seq, events.c.hash).join(
            last, sa.and_(events.c.chain == last.c.chain, events.c.seq == last.c.seq)
        )
        heads = [
            Head(chain=row.chain, num_events=row.seq + 1, hash=row.hash)
            for row in connection.execute(found)
        ]
    return sorted(heads, key=lambda head: (head.chain != LIBRARY_CHAIN, head.chain))


def _walk_chains(
    connection: sa.Connection, recorded: Recorded, heads: Mapping[str, str], progress: Progress
) -> Iterator[Damage]:
    total = connection.scalar(sa.select(sa.func.count()).select_from(events)) or 0
    done = 0
    for chain in sorted({*audit.names(connection), *heads}):
        last = GENESIS
        expected = heads.get(chain)
        is_met = expected is None
        try:
            for event in audit.verified(connection, chain):
                recorded.take(event)
                last = event.hash
                is_met = is_met or last == expected
                done += 1
                if done % 1000 == 0:
                    progress("events", done, total)
        except ChainError as error:
            yield Damage(kind="chain", subject=chain, problem=str(error))
        else:
            if not is_met:
                problem = (
                    f"no event of chain {chain!r} has the hash {expected}, which it once ended with; "
                    f"it ends with {last}: events are missing at its end, or it is another library"
                )
                yield Damage(kind="chain", subject=chain, problem=problem)
    progress("events", total, total)


def _problem_of_artifact(store: ArtifactStore, sha256: str, size_bytes: int) -> str | None:
    """Read one artifact; return what is wrong with it."""
    read = 0
    try:
        with store.stream(sha256) as chunks:
            for chunk in chunks:
                read += len(chunk)
    except NotFoundError:
        return f"the bytes of kernel {sha256} are missing; restore them, or archive the kernel"
    except ArtifactIntegrityError as error:
        return f"the bytes of kernel {sha256} were changed: {error}"
    if read != size_bytes:
        return f"kernel {sha256} says size_bytes={size_bytes}; its bytes are {read}"
    return None
