"""The record: hash-chained events in the database, appended with what they tell of.

An event is committed together with the change that it records, or not at all. The database refuses to
change or remove one; who goes around it is found by `verified`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from esper.contracts import GENESIS, ChainedEvent, ChainError, check_link, next_event, parse_event
from esper.urza.schema import events

_PAGE = 1000
"""Events that are read at a time."""

_CHAIN = sa.bindparam("chain", type_=sa.Text)
_NEWEST = (
    sa.select(events.c.seq, events.c.hash)
    .where(events.c.chain == _CHAIN)
    .order_by(events.c.seq.desc())
    .limit(1)
)
_NEWEST_LOCKED = sa.select(
    sa.func.newest_event(_CHAIN).table_valued(
        sa.column("seq", sa.BigInteger), sa.column("hash", sa.Text)
    )
)
"""On PostgreSQL: from here to the end of the transaction, others who append to the chain wait."""
_INSERT = sa.insert(events)


def append(
    connection: sa.Connection, chain: str, happened: Sequence[tuple[str, Mapping[str, Any]]]
) -> None:
    """Append events (kind and content) to a chain, in the transaction of what they record.

    The last thing of a transaction: from here to its end, others who append wait.
    """
    seq, previous = hold(connection, chain)
    rows: list[dict[str, Any]] = []
    for kind, content in happened:
        event = next_event(kind, dict(content), seq=seq, previous=previous)
        rows.append(_row(chain, event))
        seq, previous = seq + 1, event.hash
    connection.execute(_INSERT, rows)


def hold(connection: sa.Connection, chain: str) -> tuple[int, str]:
    """Return how many events a chain has and the hash of the last; nobody else appends meanwhile.

    That is, until the transaction ends; so this is one of the last things in it.
    """
    newest = _NEWEST_LOCKED if connection.dialect.name == "postgresql" else _NEWEST
    last = connection.execute(newest, {"chain": chain}).one_or_none()
    return (0, GENESIS) if last is None else (last.seq + 1, last.hash)


def restore(connection: sa.Connection, chain: str, happened: Sequence[ChainedEvent]) -> None:
    """File events as they were made elsewhere; the database refuses those that do not follow its last."""
    connection.execute(_INSERT, [_row(chain, event) for event in happened])


def names(connection: sa.Connection) -> list[str]:
    """Return the names of all chains."""
    return list(connection.scalars(sa.select(events.c.chain).distinct().order_by(events.c.chain)))


def read(
    connection: sa.Connection, chain: str, since: int, limit: int = _PAGE
) -> list[ChainedEvent]:
    """Return the next events of a chain as they were filed."""
    return [
        ChainedEvent.model_validate_json(line) for line in _lines(connection, chain, since, limit)
    ]


def verified(
    connection: sa.Connection, chain: str, *, head: str | None = None
) -> Iterator[ChainedEvent]:
    """Yield a chain's events, verifying each.

    Args:
        connection: to the database.
        chain: its name.
        head: the hash that its last event must have, as whoever doubts it noted elsewhere. Without
            it, events missing at the end go unnoticed.

    Raises:
        ChainError: naming the first event that is changed, missing or out of order.

    """
    seq, previous = 0, GENESIS
    while lines := _lines(connection, chain, seq, _PAGE):
        for line in lines:
            where = f"event {seq} of chain {chain!r}"
            event = parse_event(line.encode(), where)
            check_link(event, where, seq=seq, previous=previous)
            seq, previous = seq + 1, event.hash
            yield event
    last = connection.scalar(sa.select(sa.func.max(events.c.seq)).where(events.c.chain == chain))
    if last is not None and last >= seq:
        raise ChainError(f"event {seq} of chain {chain!r} is missing; later ones are there")
    if head is not None and previous != head:
        raise ChainError(
            f"chain {chain!r} ends after {seq} events with hash {previous}; expected {head}: events "
            "are missing at its end, or it is another library"
        )


def _row(chain: str, event: ChainedEvent) -> dict[str, Any]:
    return {
        "chain": chain,
        "seq": event.seq,
        "kind": event.kind,
        "previous": event.previous,
        "hash": event.hash,
        "line": event.line().decode(),
    }


def _lines(connection: sa.Connection, chain: str, since: int, limit: int) -> list[str]:
    """Return the next lines; ends where a number is missing."""
    found = (
        sa.select(events.c.seq, events.c.line)
        .where(events.c.chain == chain, events.c.seq >= since)
        .order_by(events.c.seq)
        .limit(limit)
    )
    lines: list[str] = []
    for row in connection.execute(found):
        if row.seq != since + len(lines):
            break
        lines.append(row.line)
    return lines
