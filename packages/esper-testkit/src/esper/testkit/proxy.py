"""A TCP proxy on a free localhost port that breaks connections on command, for tests of what clients do.

Stands between a client and a server such as `redis.RedisServer`; runs in a thread of its own, and its
methods may be called from any other.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from typing import Any

_CHUNK_BYTES = 65_536
_CALL_SECONDS = 10.0
_TURNS_TO_SETTLE = 10
"""Of the event loop; accepting a connection takes three, closing one takes one."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: the other side sees a reset, as when a machine is gone."""


class _Connection:
    """One client's connection with its counterpart to the server."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers = [client]
        self.is_over = False
        self.loses_answer = False
        """The server's next bytes are thrown away, and the connection with them."""

    def cut(self) -> None:
        self.is_over = True
        for writer in self.writers:
            with suppress(OSError):  # closed already
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()


class TcpProxy:
    """Forwards bytes both ways until it is told to break something.

    Args:
        server_host: whom it stands in front of.
        server_port: read at each new connection, so the server may start later.

    """

    def __init__(self, server_host: str, server_port: Callable[[], int]) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self._server = server_host, server_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._marker = b""
        self._answers_to_lose = 0
        self._num_lost_answers = 0
        self._is_listening = threading.Event()
        self._is_over = asyncio.Event()

    @property
    def num_lost_answers(self) -> int:
        """How many requests the server answered although no client heard of it."""
        return self._num_lost_answers

    def start(self) -> None:
        """Listen; returns when connections are accepted."""
        self._thread.start()
        if not self._is_listening.wait(_CALL_SECONDS):
            raise RuntimeError("the TCP proxy did not start to listen on 127.0.0.1")

    def close(self) -> None:
        """Cut every connection and stop to listen."""
        self._loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join()

    def drop(self) -> int:
        """Reset every connection now; return how many there were. New ones are accepted."""
        return self._call(self._drop())

    def partition(self) -> None:
        """Let nothing through in either direction, and connect nobody, until `heal`.

        As with a real network, what was sent meanwhile is not lost: it arrives late, even from a
        client that has given up.
        """
        self._call(self._set_flowing(is_flowing=False))

    def heal(self) -> None:
        """End a partition."""
        self._call(self._set_flowing(is_flowing=True))

    def lose_answers(self, count: int, *, to: bytes = b"") -> None:
        """Cut the next `count` connections after a request arrived, before its answer does.

        Args:
            count: how many answers to lose; replaces what is left of an earlier order.
            to: only requests that contain these bytes.

        """
        self._call(self._arm(count, to))

    def _call[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_CALL_SECONDS)

    async def _drop(self) -> int:
        connections = list(self._connections)
        for connection in connections:
            connection.cut()
        return len(connections)

    async def _set_flowing(self, *, is_flowing: bool) -> None:
        if is_flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _arm(self, count: int, marker: bytes) -> None:
        self._answers_to_lose, self._marker = count, marker

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._flowing.set()
        server = await asyncio.start_server(self._accept, self.host, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._is_listening.set()
        await self._is_over.wait()
        # Python 3.12 leaks a connection that is being accepted while its server is closed.
        for listening in server.sockets:
            self._loop.remove_reader(listening.fileno())
        await self._settle()
        server.close()
        await self._drop()
        self._flowing.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._settle()

    async def _settle(self) -> None:
        """Let the loop finish what it began: a connection being accepted, a transport being closed."""
        for _ in range(_TURNS_TO_SETTLE):
            await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        self._connections.add(connection)  # not in the task, which may be cancelled unbegun
        task = asyncio.create_task(self._forward(connection, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        host, port = self._server
        try:
            await self._flowing.wait()
            answers, requests = await asyncio.open_connection(host, port())
            connection.writers.append(requests)
            if connection.is_over:  # it was cut while we connected
                return
            async with asyncio.TaskGroup() as both:
                both.create_task(self._relay_requests(connection, reader, requests))
                both.create_task(self._relay_answers(connection, answers, writer))
        except* OSError:
            pass  # one side is gone, so the other goes too
        finally:
            connection.cut()
            self._connections.discard(connection)

    async def _relay_requests(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            await self._flowing.wait()
            if self._answers_to_lose and self._marker in chunk:
                self._answers_to_lose -= 1
                connection.loses_answer = True
            writer.write(chunk)
            await writer.drain()
        await self._flowing.wait()
        writer.write_eof()

    async def _relay_answers(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            if connection.loses_answer:
                self._num_lost_answers += 1
                connection.cut()
                return
            await self._flowing.wait()
            writer.write(chunk)
            await writer.drain()
        await self._flowing.wait()
        raise ConnectionResetError("the server hung up")  # ends the other direction too


@contextmanager
def start_proxy(server_host: str, server_port: int | Callable[[], int]) -> Generator[TcpProxy]:
    """Run a proxy in front of a server for the length of the context.

    Args:
        server_host: the server's address.
        server_port: its port, or a function that tells it at each new connection.

    """
    proxy = TcpProxy(server_host, server_port if callable(server_port) else lambda: server_port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
