"""Our view of redis-py: a client from options, and the commands that we use with their types.

The other modules talk to the server through this. `redis_nodes` makes the connections, `redis_errors`
says what a refusal means.
"""

# ruff: noqa: D102 - the commands are described by Redis itself, under their own names

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, cast

from redis.asyncio import Redis

from esper.contracts import BackendUnavailableError
from esper.oona.options import RedisOptions
from esper.oona.outbox import backoff
from esper.oona.redis_errors import DRIVER_ERRORS as DRIVER_ERRORS
from esper.oona.redis_errors import is_passing as is_passing
from esper.oona.redis_errors import unavailable as unavailable
from esper.oona.redis_nodes import make_pool

_MAX_CONNECTIONS = 10_000
"""The driver's own limit of 100 would refuse the next command instead of queueing it."""

PATIENCE_SECONDS = 10.0
"""For how long publishing, acknowledging and group changes wait out an outage."""

type Fields = dict[bytes, bytes]
type StreamEntries = list[tuple[bytes, Fields | None]]
"""`(id, fields)`; the fields are None for a pending entry that was trimmed away."""


class Commands(Protocol):
    """The part of redis-py's asyncio client that Oona uses (RESP 2, undecoded replies)."""

    async def ping(self) -> bool: ...

    async def aclose(self) -> None: ...

    def pipeline(self, *, transaction: bool) -> "Pipeline": ...

    async def client_id(self) -> int: ...

    async def client_unblock(self, client_id: int) -> object: ...

    async def eval(
        self, script: str, numkeys: int, *keys_and_args: str | bytes | int
    ) -> object: ...

    async def xadd(
        self, name: str, fields: Mapping[str, str | bytes], *, maxlen: int, approximate: bool
    ) -> object: ...

    async def xrange(
        self, name: str, *, min: str | bytes = "-", max: str | bytes = "+", count: int
    ) -> StreamEntries: ...

    async def xinfo_stream(self, name: str) -> Mapping[str, object]: ...

    async def xread(self, *, streams: Mapping[str, str], count: int, block: int) -> object: ...

    async def xrevrange(self, name: str, *, count: int) -> StreamEntries: ...

    async def xgroup_setid(self, name: str, groupname: str, id: str) -> object: ...

    async def xinfo_groups(self, name: str) -> list[dict[str, bytes | int | None]]: ...

    async def hgetall(self, name: str) -> dict[bytes, bytes]: ...

    async def xack(self, name: str, groupname: str, *ids: bytes) -> int: ...

    async def xreadgroup(
        self,
        groupname: str,
        consumername: str,
        *,
        streams: Mapping[str, str],
        count: int,
        block: int | None,
    ) -> list[tuple[bytes, StreamEntries]]: ...

    async def xclaim(
        self,
        name: str,
        groupname: str,
        *,
        consumername: str,
        min_idle_time: int,
        message_ids: Sequence[bytes],
        idle: int,
        retrycount: int | None = None,
        justid: bool,
    ) -> list[bytes]: ...


class Pipeline(Protocol):
    """Commands that are sent together, outside a transaction."""

    def xadd(
        self, name: str, fields: Mapping[str, str | bytes], *, maxlen: int, approximate: bool
    ) -> object: ...

    def xack(self, name: str, groupname: str, *ids: bytes) -> object: ...

    def execute(self, *, raise_on_error: bool) -> Awaitable[list[object]]: ...


def connect(options: RedisOptions, *, max_connections: int = _MAX_CONNECTIONS) -> Commands:
    """Return a client; nothing is sent before its first command."""
    return cast("Commands", Redis.from_pool(make_pool(options, max_connections=max_connections)))


async def patiently[T](
    options: RedisOptions, call: Callable[[], Awaitable[T]], *, is_open: Callable[[], bool]
) -> T:
    """Return what `call` returns, trying again through a short outage.

    Raises:
        BackendUnavailableError: if the outage lasts, the server refuses, or the bus is closed.

    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    pauses = backoff()
    while True:
        if not is_open():
            raise not_open(options)
        try:
            return await call()
        except DRIVER_ERRORS as error:
            if not is_passing(error) or time.monotonic() > deadline:
                raise unavailable(options, error) from error
            await asyncio.sleep(next(pauses))


def not_open(options: RedisOptions) -> BackendUnavailableError:
    """Return the error for a client that is used while it is closed."""
    return BackendUnavailableError(f"the bus at {options.address} is not open; await open() first")
