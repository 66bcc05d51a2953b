"""HTTP/1.1 on bare sockets: where a request ends, whether its connection goes on, and in which forms it may come."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Service, Site

PATH = "/api/v1/charging-session"
LIVE = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
HEAD = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()


class Received(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A connection that reads one answer at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._file = self.socket.makefile("rb")

    def ask(self, data: bytes, method: str = "GET") -> Received:
        self.socket.sendall(data)
        return self.answer(method)

    def answer(self, method: str = "GET") -> Received:
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while (field := self._file.readline().strip()) != b"":
            name, _, value = field.decode().partition(": ")
            headers[name.lower()] = value
        length = 0 if method == "HEAD" else int(headers.get("content-length", "0"))
        return Received(int(line.split()[1]), headers, self._file.read(length))

    def rest(self) -> bytes:
        """What comes until the server closes; a reset counts as closed."""
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := self._file.read1():
                received += data
        return received

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture(scope="module")
def gate(shared_service: Callable[..., Service]) -> Service:
    return shared_service(server__request_timeout_ms=2000)


@pytest.fixture
def wire(gate: Service) -> Iterator[Callable[[], Wire]]:
    opened: list[Wire] = []

    def connect() -> Wire:
        opened.append(Wire(gate.port))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


def content(gate: Service, receiver: Site) -> bytes:
    return json.dumps(gate.body(receiver.url())).encode()


@pytest.mark.parametrize(
    "form", ["content-length: {} ", "content-length: {}\t ", "Content-Length:{}", "CONTENT-LENGTH: 0{}"]
)
def test_spellings_of_a_length(gate: Service, receiver: Site, wire: Callable[[], Wire], form: str) -> None:
    connection = wire()
    body = content(gate, receiver)
    for _ in range(2):
        request = HEAD + form.format(len(body)).encode() + b"\r\n\r\n" + body
        assert connection.ask(request).status == 202
    assert connection.ask(LIVE).status == 200


@pytest.mark.parametrize(
    "length",
    [
        b"9999999999999999999",
        b"99999999999999999999",
        b"18446744073709551616",
        b"18446744073709551615",
        b"00000000000000000000000000000002",
        b"2 2",
        b"2,2",
        b"0x2",
        b"2.0",
        b"-2",
        b"",
        b"\x0b2",
    ],
)
def test_a_body_never_becomes_a_request(wire: Callable[[], Wire], length: bytes) -> None:
    connection = wire()
    connection.socket.sendall(HEAD + b"content-length: " + length + b"\r\n\r\n" + LIVE + LIVE)
    received = connection.rest()
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "form", ["transfer-encoding: chunked ", "Transfer-Encoding:Chunked", "TRANSFER-ENCODING:\tchunked"]
)
def test_spellings_of_chunks(gate: Service, receiver: Site, wire: Callable[[], Wire], form: str) -> None:
    connection = wire()
    body = content(gate, receiver)
    for chunks in ([body], [body[:7], body[7:]], [bytes([byte]) for byte in body]):
        framed = b"".join(b"%X;a=b\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        request = HEAD + form.encode() + b"\r\n\r\n" + framed + b"000\r\nx: y\r\n\r\n"
        assert connection.ask(request).status == 202
    assert connection.ask(LIVE).status == 200


@pytest.mark.parametrize(
    ("version", "options", "goes_on"),
    [
        ("1.1", [], True),
        ("1.1", ["keep-alive"], True),
        ("1.1", ["close"], False),
        ("1.1", ["Close"], False),
        ("1.1", ["CLOSE "], False),
        ("1.1", ["x, close"], False),
        ("1.1", ["close , x"], False),
        ("1.1", ["keep-alive", "close"], False),
        ("1.1", ["keep-alive,close"], False),
        ("1.1", ["closed"], True),
        ("1.0", [], False),
        ("1.0", ["Keep-Alive"], True),
        ("1.0", ["keep-alive, close"], False),
    ],
)
def test_whether_a_connection_goes_on(
    gate: Service, receiver: Site, wire: Callable[[], Wire], version: str, options: list[str], *, goes_on: bool
) -> None:
    body = content(gate, receiver)
    fields = "".join(f"connection: {option}\r\n" for option in options).encode()
    for head in (LIVE[:-2] + fields + b"\r\n", HEAD + fields + b"content-length: %d\r\n\r\n" % len(body) + body):
        connection = wire()
        answer = connection.ask(head.replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
        assert answer.status in (200, 202)
        assert (answer.headers.get("connection") == "close") != goes_on
        if goes_on:
            assert connection.ask(LIVE).status == 200
        else:
            assert connection.rest() == b""


def test_head_has_the_headers_and_no_body(wire: Callable[[], Wire]) -> None:
    connection = wire()
    for path in ("/health/live", "/openapi.json", "/docs", "/nothing"):
        got = connection.ask(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        asked = connection.ask(f"HEAD {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode(), "HEAD")
        assert asked.status == got.status
        assert asked.headers["content-length"] == str(len(got.body))
    assert connection.ask(LIVE).status == 200


def test_expect(gate: Service, receiver: Site, wire: Callable[[], Wire]) -> None:
    body = content(gate, receiver)
    length = b"content-length: %d\r\n\r\n" % len(body)
    connection = wire()
    assert connection.ask(HEAD + b"expect: 100-Continue\r\n" + length).status == 100
    assert connection.ask(body).status == 202
    assert connection.ask(HEAD + b"expect: 100-continue\r\n" + length + body).status in (100, 202)
    old = wire()
    request = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"expect: 100-continue\r\n" + length
    assert old.ask(request + body).status == 202


def test_old_versions_have_no_chunks(wire: Callable[[], Wire]) -> None:
    connection = wire()
    head = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")
    connection.socket.sendall(head + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + LIVE)
    received = connection.rest()
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "target", ["http://localhost{}", "HTTP://LOCALHOST:80{}", "https://localhost.{}", "{}?a=/b%20c"]
)
def test_forms_of_a_target(gate: Service, wire: Callable[[], Wire], target: str) -> None:
    connection = wire()
    line = f"GET {target.format('/health/live')} HTTP/1.1\r\nhost: localhost\r\n\r\n"
    assert connection.ask(line.encode()).status == 200


def test_a_half_closed_client_gets_every_answer(gate: Service, receiver: Site, wire: Callable[[], Wire]) -> None:
    body = content(gate, receiver)
    whole = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    for cut in (b"", b"GET /hea", whole[:-3]):
        connection = wire()
        connection.socket.sendall(LIVE + whole + LIVE + whole + cut)
        connection.socket.shutdown(socket.SHUT_WR)
        assert [connection.answer().status for _ in range(4)] == [200, 202, 200, 202]
        assert connection.rest().count(b"HTTP/1.1 2") == 0


def test_a_pipeline_is_answered_in_its_order(gate: Service, receiver: Site, wire: Callable[[], Wire]) -> None:
    connection = wire()
    asked = []
    for number in range(200):
        fields = b"x-request-id: %d\r\n" % number
        body = content(gate, receiver)
        if number % 2:
            asked.append(LIVE[:-2] + fields + b"\r\n")
        else:
            asked.append(HEAD + fields + b"content-length: %d\r\n\r\n" % len(body) + body)
    data = b"".join(asked)
    for start in range(0, len(data), 7001):
        connection.socket.sendall(data[start : start + 7001])
    for number in range(200):
        answer = connection.answer()
        assert answer.status == (200 if number % 2 else 202)
        assert answer.headers["x-request-id"] == str(number)
