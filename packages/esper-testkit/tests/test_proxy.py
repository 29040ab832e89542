"""The proxy: forwards, drops, holds back, and loses answers on command."""

import socket
import socketserver
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress

import pytest

from esper.testkit.proxy import TcpProxy, start_proxy

DEADLINE_SECONDS = 10.0


class CountingServer(socketserver.ThreadingTCPServer):
    """Answers each line with the line in capitals, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.asked: list[bytes] = []


class Answering(socketserver.StreamRequestHandler):
    """One connection to a `CountingServer`."""

    def handle(self) -> None:
        assert isinstance(self.server, CountingServer)
        with suppress(ConnectionError):  # the proxy resets what it cuts
            for line in self.rfile:
                self.server.asked.append(line.strip())
                self.wfile.write(line.upper())


@pytest.fixture
def server() -> Iterator[CountingServer]:
    with CountingServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: CountingServer) -> Iterator[TcpProxy]:
    with start_proxy("127.0.0.1", server.server_address[1]) as proxy:
        yield proxy


@contextmanager
def connect(proxy: TcpProxy) -> Generator[socket.socket]:
    with socket.create_connection((proxy.host, proxy.port), DEADLINE_SECONDS) as client:
        yield client


def ask(client: socket.socket, line: bytes) -> bytes:
    client.sendall(line + b"\n")
    return client.recv(100).strip()


def test_bytes_go_through_both_ways(proxy: TcpProxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        assert ask(one, b"hello") == b"HELLO"
        assert ask(other, b"there") == b"THERE"
        assert ask(one, b"again") == b"AGAIN"


def test_dropped_connections_are_reset_and_new_ones_work(proxy: TcpProxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        ask(one, b"hello")
        ask(other, b"hello")
        assert proxy.drop() == 2
        for client in (one, other):
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    with connect(proxy) as new:
        assert ask(new, b"hello") == b"HELLO"


def test_partition_holds_everything_back_until_it_is_healed(
    proxy: TcpProxy, server: CountingServer
) -> None:
    with connect(proxy) as old:
        ask(old, b"before")
        proxy.partition()
        old.sendall(b"during\n")
        with connect(proxy) as new:
            new.sendall(b"new\n")
            new.settimeout(0.1)
            with pytest.raises(TimeoutError):
                new.recv(1)
            assert server.asked == [b"before"]
            proxy.heal()
            new.settimeout(DEADLINE_SECONDS)
            assert old.recv(100) == b"DURING\n"
            assert new.recv(100) == b"NEW\n"


def test_what_was_sent_into_a_partition_arrives_late_although_the_client_gave_up(
    proxy: TcpProxy, server: CountingServer
) -> None:
    with connect(proxy) as client:
        ask(client, b"before")
        proxy.partition()
        client.sendall(b"during\n")
    proxy.heal()
    with connect(proxy) as later:
        while b"during" not in server.asked:
            ask(later, b"after")


def test_answer_is_lost_only_after_the_request_arrived(
    proxy: TcpProxy, server: CountingServer
) -> None:
    proxy.lose_answers(1, to=b"order")
    with connect(proxy) as client:
        assert ask(client, b"hello") == b"HELLO"
        client.sendall(b"an order\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert server.asked == [b"hello", b"an order"]
    assert proxy.num_lost_answers == 1
    with connect(proxy) as client:
        assert ask(client, b"order") == b"ORDER"


def test_client_is_cut_off_where_there_is_no_server() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        with (
            start_proxy("127.0.0.1", lambda: nobody.getsockname()[1]) as proxy,
            pytest.raises(ConnectionResetError),
            connect(proxy) as client,
        ):
            client.recv(1)


def test_closing_the_proxy_cuts_whoever_is_connected_even_in_a_partition(
    server: CountingServer,
) -> None:
    with start_proxy("127.0.0.1", server.server_address[1]) as proxy:
        client = socket.create_connection((proxy.host, proxy.port), DEADLINE_SECONDS)
        ask(client, b"hello")
        proxy.partition()
        client.sendall(b"during\n")
    with client, pytest.raises(ConnectionResetError):
        client.recv(1)
