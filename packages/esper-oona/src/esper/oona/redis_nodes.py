"""Finds the server that takes our writes: the master that sentinels name, or a cluster's node for our slot.

`redis_client` makes its connections here. All keys of a prefix share one slot (see `options`), so one
node of a cluster has all of them, and a plain client whose connections follow that node does everything
that it does with a single server: scripts over several keys, pipelines, reads that block. Connections
ask where to go when they are made, and break when the server says that it is the wrong one.
"""

import asyncio
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from esper.oona.options import Node, RedisOptions
from esper.oona.redis_errors import DRIVER_ERRORS, MovedAwayError, is_elsewhere

_CONNECT_SECONDS = 5.0
_REPLY_SECONDS = 10.0
"""Longer than any blocking read asks the server to block."""

_LOCATE_SECONDS = 2.0
"""For connecting to a node or sentinel that is only asked the way, and for its answer: the next one
may know."""


def make_pool(options: RedisOptions, *, max_connections: int) -> ConnectionPool:
    """Return a pool of connections to the server that takes our writes; nothing is sent yet.

    The driver's retries are off: ours decide, and its jitter draws from the global random stream.
    """
    settings: dict[str, Any] = {
        "db": options.db,
        "username": options.username,
        "password": options.password,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_timeout": _REPLY_SECONDS,
        **_common(options),
    }
    secure = options.tls is not None
    if options.layout == "server":
        (settings["host"], settings["port"]) = options.nodes[0]
        kind = _CarefulSSLConnection if secure else _CarefulConnection
    else:
        settings["guide"] = Guide(options)
        kind = _GuidedSSLConnection if secure else _GuidedConnection
    return ConnectionPool(kind, max_connections, **settings)


def _common(options: RedisOptions) -> Mapping[str, Any]:
    return {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_keepalive": True,
        **(options.tls or {}),
    }


class Guide:
    """Asks the nodes of a URL, one after the other, where our data are."""

    def __init__(self, options: RedisOptions) -> None:
        self._options = options
        self._nodes = deque(options.nodes)
        """The one that answered last is asked first."""
        self._slot = key_slot(f"{options.prefix}:".encode())

    async def find(self) -> Node:
        """Return where the server is that takes our writes.

        Raises:
            RedisError: the driver's, with what each node said, if none knows.

        """
        problems: dict[str, Exception] = {}
        for _ in range(len(self._nodes)):
            host, port = self._nodes[0]
            try:
                return await self._ask(host, port)
            except DRIVER_ERRORS as error:
                problems[f"{host}:{port} says: {error}"] = error
                self.doubt()
        raise _worst(problems.values())("; ".join(problems))

    def doubt(self) -> None:
        """Ask another node first the next time: where this one leads to was wrong."""
        self._nodes.rotate(-1)

    async def _ask(self, host: str, port: int) -> Node:
        is_sentinel = self._options.layout == "sentinel"
        options = self._options
        client: Any = Redis(
            host=host,
            port=port,
            username=options.sentinel_username if is_sentinel else options.username,
            password=options.sentinel_password if is_sentinel else options.password,
            ssl=options.tls is not None,
            socket_connect_timeout=_LOCATE_SECONDS,
            socket_timeout=_LOCATE_SECONDS,
            **_common(options),
        )
        try:
            if is_sentinel:
                return await self._ask_sentinel(client)
            return await self._ask_cluster(client, host)
        finally:
            # Shielded: who is cancelled while asking may be cancelled again while this closes.
            await asyncio.shield(asyncio.ensure_future(client.aclose()))

    async def _ask_sentinel(self, client: Any) -> Node:
        service = self._options.service
        found = await client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", service)
        if found is None:
            raise MovedAwayError(f"knows no service {service!r}")
        host, port = cast("tuple[bytes | str, int]", found)
        return (host.decode() if isinstance(host, bytes) else host), int(port)

    async def _ask_cluster(self, client: Any, host: str) -> Node:
        found = await client.execute_command("CLUSTER SLOTS")
        for first, last, master, *_ in cast(
            "list[tuple[int, int, tuple[bytes | None, int]]]", found
        ):
            if first <= self._slot <= last:
                # A node that does not know its own name leaves it empty: it is the one we asked.
                return (master[0] or host.encode()).decode(), master[1]
        raise MovedAwayError(f"no node serves slot {self._slot}")


def _worst(errors: Collection[Exception]) -> type[RedisError]:
    """Return the kind of error that says most about why no node knew the way."""
    if any(isinstance(error, MovedAwayError) for error in errors):
        return MovedAwayError
    if any(isinstance(error, AuthenticationError) for error in errors):
        return AuthenticationError
    if all(isinstance(error, ResponseError) for error in errors):
        return ResponseError
    return RedisConnectionError


class _CarefulConnection(Connection):
    """A connection that was lost says so.

    asyncio of Python 3.12.1 raises an AttributeError when lines are written to a transport that is
    lost; that is no error of the driver's, and would end whoever reads or publishes.
    """

    async def send_packed_command(self, *args: Any, **settings: Any) -> None:
        """Send a command; raises the driver's errors."""
        if self._writer is not None and self._writer.is_closing():
            await self.disconnect(nowait=True)
            raise RedisConnectionError("the connection was lost")
        await super().send_packed_command(*args, **settings)


class _CarefulSSLConnection(_CarefulConnection, SSLConnection):
    pass


class _Guided(_CarefulConnection):
    """A connection that leads wherever the guide says when it is made."""

    def __init__(self, *, guide: Guide, **settings: Any) -> None:
        super().__init__(**settings)  # pyright: ignore[reportUnknownMemberType]
        self._guide = guide

    async def connect(self) -> None:
        """Connect, if it is not connected; raises the driver's errors."""
        if self.is_connected:
            return
        self.host, self.port = await self._guide.find()
        try:
            await super().connect()
        except DRIVER_ERRORS:
            self._guide.doubt()
            raise

    async def read_response(self, *args: Any, **settings: Any) -> object:
        """Return the next answer; a refusal that means "not here" breaks the connection."""
        try:
            return cast("object", await super().read_response(*args, **settings))
        except ResponseError as error:
            if not is_elsewhere(error):
                raise
            self._guide.doubt()
            await self.disconnect(nowait=True)
            raise MovedAwayError(f"{self.host}:{self.port} says: {error}") from error


class _GuidedConnection(_Guided):
    pass


class _GuidedSSLConnection(_Guided, SSLConnection):
    pass
