"""The proxy that cuts the network, between a client and a server that echoes."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from outside import eventually
from servers.proxy import Proxy


def echo(listener: socket.socket) -> None:
    def talk(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except ConnectionResetError:
                pass

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=talk, args=(connection,), daemon=True).start()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=echo, args=(listener,), daemon=True).start()
    with listener, Proxy(listener.getsockname()[1]) as between:
        yield between
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with connect(proxy) as connection:
        assert exchange(connection, b"hello") == b"hello"
        yield connection


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 10)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    received = b""
    while len(received) < len(data) and (more := connection.recv(65536)):
        received += more
    return received


def test_it_forwards_all_and_the_end(client: socket.socket) -> None:
    data = bytes(range(256)) * 1000
    assert exchange(client, data) == data
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""


def test_it_tells_how_long_nothing_came(proxy: Proxy, client: socket.socket) -> None:
    eventually(lambda: proxy.silent_s() > 0.2, 10)
    exchange(client, b"hello")
    heard = proxy.silent_s()
    eventually(lambda: proxy.silent_s() > heard + 0.2, 10)


def test_dropped_data_arrive_after_it_heals(proxy: Proxy, client: socket.socket) -> None:
    proxy.drop()
    client.sendall(b"held")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(4)
    with connect(proxy) as late:
        late.sendall(b"late")
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.recv(4)
        proxy.heal()
        client.settimeout(10)
        assert client.recv(4) == b"held"
        late.settimeout(10)
        assert late.recv(4) == b"late"


def test_a_delay_counts_both_ways(proxy: Proxy, client: socket.socket) -> None:
    proxy.delay(100)
    began = time.monotonic()
    assert exchange(client, b"slow") == b"slow"
    assert time.monotonic() - began >= 0.2  # a lower bound: no machine is too slow for it


def test_a_throttle_lets_through_so_much_and_no_more(proxy: Proxy, client: socket.socket) -> None:
    proxy.throttle(2000)
    began = time.monotonic()
    assert exchange(client, b"x" * 400) == b"x" * 400
    assert time.monotonic() - began >= 0.2  # as above


def test_reset_ends_connections_and_refuses_new_ones_until_healed(proxy: Proxy, client: socket.socket) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.heal()
    with connect(proxy) as again:
        assert exchange(again, b"again") == b"again"


def test_it_is_reset_while_it_drops(proxy: Proxy, client: socket.socket) -> None:
    proxy.drop()
    client.sendall(b"lost")
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_forgotten_connections_hear_nothing_and_new_ones_work(proxy: Proxy, client: socket.socket) -> None:
    assert exchange(client, b"before") == b"before"
    proxy.forget()
    client.sendall(b"lost")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(4)
    with connect(proxy) as other:
        assert exchange(other, b"well") == b"well"
