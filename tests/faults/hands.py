"""What consumers have in hand when a fault strikes: exactly that may be handled again, and nothing else.

The server is asked, behind the proxy's back. A message can only be handled again if it stays pending from
the fault until somebody takes it over, so asking right after the fault finds all of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bus import GROUP, STREAM, pause, raw
from ledger import number_in, numbers_in
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

_MAX_PENDING = 10_000


def pending(port: int, consumer: str | None = None) -> set[int]:
    """Return the messages that were handed to consumers, or one, and are not acknowledged.

    Waits for a server that is away.
    """
    while True:
        try:
            with raw(port) as client:
                return _pending(client, consumer)
        except RedisConnectionError:
            pause()


def unacknowledged_by(port: int, book: Path) -> set[int]:
    """Return what the consumer that wrote the book has handled, and the server does not know it."""
    return pending(port) & set(numbers_in(book, "handled"))


def _pending(client: Any, consumer: str | None) -> set[int]:
    try:
        rows: Sequence[Mapping[str, bytes]] = client.xpending_range(
            STREAM, GROUP, "-", "+", _MAX_PENDING, consumername=consumer
        )
    except ResponseError as error:
        if "NOGROUP" not in str(error):
            raise
        return set()
    pipeline = client.pipeline(transaction=False)
    for row in rows:
        pipeline.xrange(STREAM, row["message_id"], row["message_id"])
    return {
        number_in(b"".join(fields.values())) for found in pipeline.execute() for _, fields in found
    }


def destroy_group(port: int) -> set[int]:
    """Destroy the group; return what it may repeat: all it was given after its last noted place.

    Waits for one that is not back yet.
    """
    with raw(port) as client:
        while not client.xinfo_groups(STREAM):
            pause()
        noted: bytes = client.hget(f"{STREAM}:groups", f"group:{GROUP}")
        both = client.pipeline(transaction=True).xinfo_groups(STREAM).xgroup_destroy(STREAM, GROUP)
        (group,), _ = both.execute()
        first, last = noted.split()[0].decode(), group["last-delivered-id"].decode()
        found: Sequence[tuple[bytes, Mapping[bytes, bytes]]] = client.xrange(
            STREAM, f"({first}", last
        )
    return {number_in(b"".join(fields.values())) for _, fields in found}
