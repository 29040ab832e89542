"""Our view of redis-py: a client from options, the commands that we use with their types, its errors.

`redis_streams` and `redis_group` talk to the server through this; nothing else imports the driver.
"""

# ruff: noqa: D102 - the commands are described by Redis itself, under their own names

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from esper.contracts import BackendUnavailableError
from esper.oona.options import RedisOptions
from esper.oona.outbox import backoff

DRIVER_ERRORS = (RedisError, OSError)
"""What a call to the driver may raise."""

_CONNECT_SECONDS = 5.0
_REPLY_SECONDS = 10.0
"""Longer than any blocking read asks the server to block."""

_MAX_CONNECTIONS = 10_000
"""The driver's own limit of 100 would refuse the next command instead of queueing it."""

PATIENCE_SECONDS = 10.0
"""For how long publishing, acknowledging and group changes wait out an outage."""

PASSING_CODES = ("MISCONF", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED", "OOM", "READONLY", "LOADING")
"""What errors begin with that pass: a full disk or memory, a failover."""

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

    async def xpending(self, name: str, groupname: str) -> dict[str, bytes | int | None]: ...

    async def xgroup_create(
        self, name: str, groupname: str, *, id: str, mkstream: bool
    ) -> object: ...

    async def xgroup_destroy(self, name: str, groupname: str) -> object: ...

    async def xinfo_stream(self, name: str) -> Mapping[str, object]: ...

    async def xinfo_groups(self, name: str) -> list[dict[str, bytes | int | None]]: ...

    async def xack(self, name: str, groupname: str, *ids: bytes) -> int: ...

    async def xreadgroup(
        self,
        groupname: str,
        consumername: str,
        *,
        streams: Mapping[str, str],
        count: int,
        block: int,
    ) -> list[tuple[bytes, StreamEntries]]: ...

    async def xautoclaim(
        self,
        name: str,
        groupname: str,
        *,
        consumername: str,
        min_idle_time: int,
        start_id: bytes,
        count: int,
    ) -> Sequence[object]: ...

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
    ) -> object: ...

    async def xpending_range(
        self,
        name: str,
        groupname: str,
        *,
        min: bytes,
        max: bytes,
        count: int,
        consumername: str | None = None,
    ) -> list[dict[str, bytes | int]]: ...


class Pipeline(Protocol):
    """Commands that are sent together, outside a transaction."""

    def xadd(
        self, name: str, fields: Mapping[str, str | bytes], *, maxlen: int, approximate: bool
    ) -> object: ...

    def xack(self, name: str, groupname: str, *ids: bytes) -> object: ...

    def execute(self, *, raise_on_error: bool) -> Awaitable[list[object]]: ...


def connect(options: RedisOptions, *, max_connections: int = _MAX_CONNECTIONS) -> Commands:
    """Return a client; nothing is sent before its first command.

    The driver's retries are off: ours decide, and its jitter draws from the global random stream.
    """
    client = Redis(
        host=options.host,
        port=options.port,
        db=options.db,
        username=options.username,
        password=options.password,
        ssl=options.tls is not None,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=_CONNECT_SECONDS,
        socket_timeout=_REPLY_SECONDS,
        socket_keepalive=True,
        max_connections=max_connections,
        **(options.tls or {}),  # pyright: ignore[reportArgumentType]
    )
    return cast("Commands", client)


def is_passing(error: Exception) -> bool:
    """Tell whether the same command may succeed later: an outage, a full disk, a failover."""
    if isinstance(error, (AuthenticationError, AuthorizationError)):
        return False
    if isinstance(error, ResponseError):
        return isinstance(error, (ReadOnlyError, OutOfMemoryError)) or str(error).startswith(
            PASSING_CODES
        )
    return isinstance(error, (RedisConnectionError, RedisTimeoutError, OSError))


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


def unavailable(options: RedisOptions, error: Exception) -> BackendUnavailableError:
    """Say what the driver's error means and what to do about it, without the password."""
    if isinstance(error, (AuthenticationError, AuthorizationError)):
        return BackendUnavailableError(
            f"the Redis server at {options.address} refuses the credentials ({error}); give the "
            f"right ones in the URL: redis://[user]:PASSWORD@{options.address}/{options.db}"
        )
    if isinstance(error, ResponseError):
        return BackendUnavailableError(
            f"the Redis server at {options.address} refused a command: {error}"
        )
    return BackendUnavailableError(
        f"no Redis server answers at {options.address} ({error}); start one with "
        "`docker compose --env-file .env -f infra/docker-compose.yml up -d redis`, "
        "correct the URL, or use memory://"
    )
