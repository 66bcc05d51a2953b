"""Receivers as they are: sloppy, endless, or gone from a connection without a word."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Reply, Service, Site

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

SLOPPY = {
    "lines that end in LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "mixed line ends": b"HTTP/1.1 202 Accepted\r\nx: y\nContent-Length: 2\n\r\nok",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
    "an unknown 2xx": b"HTTP/1.1 299 Fine\r\nContent-Length: 2\r\n\r\nok",
    "a folded field": b"HTTP/1.1 200 OK\r\nX-Long: a\r\n  b\r\n\tc\r\nContent-Length: 2\r\n\r\nok",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "a tab before the colon": b"HTTP/1.1 200 OK\r\nContent-Length\t:2\r\n\r\nok",
    "control characters": b"HTTP/1.1 200 OK\r\nX: a\x01\x02\x7f\x0bb\r\nContent-Length: 2\r\n\r\nok",
    "bytes of another charset": b"HTTP/1.1 200 \xc3\xa9\xff\r\nX: \xe9\r\nContent-Length: 2\r\n\r\nok",
    "the same length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncontent-length: 2\r\n\r\nok",
    "the same length in one field": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
    "identity": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok",
    "chunks": CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
    "padded chunk sizes": CHUNKED + b"2    \r\nok\r\n0  \r\n\r\n",
    "chunk sizes with zeros": CHUNKED + b"00002\r\nok\r\n00000\r\n\r\n",
    "chunk extensions": CHUNKED + b'2;name="\x01";x\r\nok\r\n0;last\r\n\r\n',
    "chunks with LF": b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nok\n0\n\n",
    "trailers": CHUNKED + b"2\r\nok\r\n0\r\nX: y\r\n\r\n",
    "interim answers": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
    "an old version": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "an empty answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
}
BAD = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
    "two lengths in one field": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nokk",
    "a length beside chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
    "a chunk size that is none": CHUNKED + b"zz\r\nok\r\n0\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
}


@pytest.fixture(scope="module")
def caller(shared_service: Callable[..., Service]) -> Service:
    return shared_service(callback__max_attempts=1)


def test_a_2xx_is_a_success_however_it_is_written(caller: Service, receiver: Site, reply: type[Reply]) -> None:
    asked = {kind: caller.ask(receiver.planned(reply(raw=raw))) for kind, raw in SLOPPY.items()}
    ended = {kind: caller.finished(each) for kind, each in asked.items()}
    assert {kind: each["status"] for kind, each in ended.items()} == dict.fromkeys(SLOPPY, "COMPLETED")
    assert {each["callback"]["attempts"] for each in ended.values()} == {1}


def test_an_answer_that_ends_with_its_connection_is_one(caller: Service, receiver: Site, reply: type[Reply]) -> None:
    for raw in (b"HTTP/1.1 200 OK\r\n\r\nok", b"HTTP/1.0 200 OK\n\nok", b"HTTP/1.1 204\r\n\r\n"):
        asked = caller.ask(receiver.planned(reply(raw=raw, how="cut")))
        assert caller.finished(asked)["status"] == "COMPLETED"


def test_what_can_be_read_in_two_ways_is_no_answer(caller: Service, receiver: Site, reply: type[Reply]) -> None:
    asked = {kind: caller.ask(receiver.planned(reply(raw=raw))) for kind, raw in BAD.items()}
    ended = {kind: caller.finished(each) for kind, each in asked.items()}
    assert {kind: each["callback"]["last_error"] for kind, each in ended.items()} == dict.fromkeys(BAD, "bad_answer")


class Endless:
    """Answers every connection with the same bytes for ever. ``most``: the bytes that one connection took."""

    def __init__(self, start: bytes, again: bytes, *, before_request: bool) -> None:
        self.most = 0
        self._start, self._again, self._before_request = start, again, before_request
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        connection.settimeout(30)
        sent = 0
        with contextlib.suppress(OSError):  # the caller has had enough
            if not self._before_request:
                connection.recv(65536)
            piece = self._start
            while sent < LIMIT:
                sent += connection.send(piece)
                piece = self._again
        self.most = max(self.most, sent)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


LIMIT = 64 * 1024 * 1024
ENOUGH = 16 * 1024 * 1024  # what the buffers of both sockets may hold, many times over
RECORD = b"\x16\x03\x03\x40\x00" + bytes(16384)  # of a TLS handshake
FIELD = b"X: " + b"y" * 1000 + b"\r\n"
ENDLESS = {
    "fields": ("http", b"HTTP/1.1 200 OK\r\n", FIELD * 60, "bad_answer"),
    "one field": ("http", b"HTTP/1.1 200 OK\r\nX: ", b"y" * 60_000, "bad_answer"),
    "interim answers": ("http", b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 2000, "bad_answer"),
    "a chunk extension": ("http", CHUNKED + b"1;", b"x" * 60_000, "bad_answer"),
    "chunk extensions": ("http", CHUNKED, (b"1;" + b"x" * 500 + b"\r\ny\r\n") * 100, None),
    "tiny chunks": ("http", CHUNKED, b"1\r\nx\r\n" * 10_000, None),
    "trailers": ("http", CHUNKED + b"0\r\n", FIELD * 60, None),
    "a body": ("http", b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 60_000, None),
    "a handshake": ("https", b"\x16\x03\x03\x00\x7a", RECORD * 4, "tls_failed"),
    "no TLS": ("https", b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 60_000, "tls_failed"),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_of_an_endless_answer_little_is_read(caller: Service, kind: str) -> None:
    """Where the status is known and the answer too long, the status counts."""
    scheme, start, again, error = ENDLESS[kind]
    endless = Endless(start, again, before_request=scheme == "https")
    try:
        ended = caller.finished(caller.ask(f"{scheme}://127.0.0.1:{endless.port}/"), 20)
        assert ended["callback"]["last_error"] == error
    finally:
        endless.close()
    assert 0 < endless.most < ENOUGH


class Leaving:
    """Answers one request of each connection, and closes it 40 ms later, without having said so. What comes in
    between is never read, as if the receiver were so far away."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=500)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/hook"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            head = b""
            while b"\r\n\r\n" not in head or not head.endswith(b"}"):
                if not (piece := connection.recv(65536)):
                    return
                head += piece
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n\r\n")[0].split(b"\r\n")[1:])
            self.received.append(fields[b"webhook-id"].decode())
            connection.sendall(OK)
            time.sleep(0.04)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def leaving() -> Iterator[Leaving]:
    made = Leaving()
    yield made
    made.close()


def test_a_receiver_that_closes_after_each_answer_without_saying_so(
    service: Callable[..., Service], leaving: Leaving
) -> None:
    caller = service(callback__max_attempts=1)
    asked = [caller.ask(leaving.url) for _ in range(400)]
    ended = [caller.finished(each) for each in asked]
    assert Counter(each["status"] for each in ended) == {"COMPLETED": 400}
    assert {each["callback"]["attempts"] for each in ended} == {1}
    assert Counter(leaving.received) == {each.request_id: 1 for each in asked}
