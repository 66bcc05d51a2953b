"""Clients that mean harm, or know no better, on bare sockets: each is bounded, and stops nobody else."""

import contextlib
import hashlib
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from contract.conftest import Service
    from outside import Site

PATH = "/api/v1/charging-session"
LIVE = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()
MEBI = 1024 * 1024
IDLE = 5000
pytestmark = pytest.mark.true_start  # a fork shares memory with the process it came from, and these count it


@pytest.fixture(scope="module")
def gate(shared_service: Callable[..., "Service"]) -> "Service":
    return shared_service(server__request_timeout_ms=1000)


@pytest.fixture
def connect(gate: "Service") -> Iterator[Callable[..., socket.socket]]:
    """Opens connections, and closes them after the test."""
    opened: list[socket.socket] = []

    def connected(service: "Service | None" = None) -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", (service or gate).port), timeout=20))
        return opened[-1]

    yield connected
    for each in opened:
        each.close()


def memory(service: "Service") -> int:
    """Resident bytes of the process, now."""
    assert service.process is not None
    with open(f"/proc/{service.process.pid}/statm") as file:  # noqa: PTH123 - no file of ours
        return int(file.read().split()[1]) * 4096


def answers(connection: socket.socket) -> bytes:
    """All that comes until the server closes; a reset counts as closed."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def whole(service: "Service", receiver: "Site") -> bytes:
    """A request that is accepted."""
    content = json.dumps(service.body(receiver.url())).encode()
    return POST + b"content-length: %d\r\n\r\n" % len(content) + content


def send_until_blocked(connection: socket.socket, data: bytes) -> int:
    """As much as the server takes; how much that was."""
    connection.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError, OSError):
        while sent < len(data):
            sent += connection.send(data[sent : sent + 65536])
    return sent


def test_pipelined_requests_cost_no_memory(gate: "Service", connect: Callable[..., socket.socket]) -> None:
    before = memory(gate)
    for _ in range(2):
        send_until_blocked(connect(), LIVE * (6 * MEBI // len(LIVE)))
    assert memory(gate) - before < 24 * MEBI
    assert gate.ready() == 200


def test_a_pipeline_is_taken_no_further_ahead_than_it_is_answered(
    gate: "Service", connect: Callable[..., socket.socket]
) -> None:
    """Where its answers are read, the rest of it still waits in the network."""
    before, worst = memory(gate), 0
    for _ in range(4):
        connection = connect()
        send_until_blocked(connection, LIVE * (6 * MEBI // len(LIVE)))
        worst = max(worst, memory(gate) - before)
    assert worst < 8 * MEBI


def test_heads_that_do_not_end_cost_little_memory(gate: "Service", connect: Callable[..., socket.socket]) -> None:
    before = memory(gate)
    for _ in range(300):
        connect().sendall(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a:b\r\n" * 6200)
    assert memory(gate) - before < 48 * MEBI
    assert gate.ready() == 200


def test_idle_connections_cost_little_memory(
    service: Callable[..., "Service"], connect: Callable[..., socket.socket]
) -> None:
    gate = service(server__request_timeout_ms=60000)
    before = memory(gate)
    for _ in range(500):
        connect(gate).sendall(b"G")
    assert gate.ready() == 200
    assert memory(gate) - before < 16 * MEBI


def test_five_thousand_idle_connections(service: Callable[..., "Service"], eventually: Callable[..., Any]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * IDLE:
        pytest.skip(f"needs {2 * IDLE} open files, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * IDLE), hard))
    gate = service(server__request_timeout_ms=120_000, server__max_connections_per_address=IDLE + 100)
    before = memory(gate)
    with contextlib.ExitStack() as opened:
        for number in range(IDLE):
            idle = opened.enter_context(socket.create_connection(("127.0.0.1", gate.port), timeout=20))
            if number % 2:
                idle.sendall(b"GET /health")
        eventually(lambda: open_sockets(gate) > IDLE, 30)
        assert gate.ready() == 200
        assert memory(gate) - before < IDLE * 8 * 1024
    eventually(lambda: open_sockets(gate) < 200, 30, "they were not closed")
    assert memory(gate) - before < IDLE * 4 * 1024


def open_sockets(service: "Service") -> int:
    assert service.process is not None
    return sum(1 for _ in Path(f"/proc/{service.process.pid}/fd").iterdir())


def test_after_an_attack_its_memory_is_given_back(
    service: Callable[..., "Service"], eventually: Callable[..., Any]
) -> None:
    gate = service(server__request_timeout_ms=2000)
    assert [gate.ready() for _ in range(50)] == [200] * 50
    before = memory(gate)
    for attack in (
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a:b\r\n" * 6200,
        POST + b"content-length: 60000\r\n\r\n" + b"x" * 50_000,
        POST + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10_000,
        LIVE * 2000,
    ):
        with contextlib.ExitStack() as opened:
            for _ in range(300):
                connection = opened.enter_context(socket.create_connection(("127.0.0.1", gate.port), timeout=20))
                with contextlib.suppress(OSError):
                    connection.sendall(attack)
            assert gate.ready() == 200
    eventually(lambda: open_sockets(gate) < 100, 30, "they were not closed")
    eventually(lambda: memory(gate) - before < 24 * MEBI, 10, f"{(memory(gate) - before) / MEBI:.0f} MiB stay")


def test_trailers_are_bounded(gate: "Service", connect: Callable[..., socket.socket]) -> None:
    before = memory(gate)
    for _ in range(4):
        trailers = b"x: " + b"y" * 1000 + b"\r\n"
        connection = connect()
        send_until_blocked(connection, POST + b"transfer-encoding: chunked\r\n\r\n0\r\n" + trailers * 1900)
        assert b"HTTP/1.1 400 " in answers(connection)
    assert memory(gate) - before < 24 * MEBI


def test_a_trailer_is_never_a_header(service: Callable[..., "Service"], connect: Callable[..., socket.socket]) -> None:
    key = "cg_admin_" + "k" * 43
    gate = service(security__api_keys=[f"admin:sha256:{hashlib.sha256(key.encode()).hexdigest()}"])
    for name in (b"authorization: Bearer ", b"x-api-key: "):
        connection = connect(gate)
        body = b"{}"
        connection.sendall(
            POST + b"connection: close\r\ntransfer-encoding: chunked\r\ntrailer: authorization\r\n\r\n"
            b"2\r\n" + body + b"\r\n0\r\n" + name + key.encode() + b"\r\n\r\n"
        )
        assert answers(connection).startswith(b"HTTP/1.1 401 ")


def test_answers_that_nobody_reads_end_the_connection(
    gate: "Service", connect: Callable[..., socket.socket], eventually: Callable[..., Any]
) -> None:
    connection = connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    big = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"
    send_until_blocked(connection, big * 20_000)

    def cut_off() -> bool:
        try:
            connection.send(b"x")
        except OSError:
            return True
        time.sleep(0.05)
        return False

    eventually(cut_off, 20, "the connection was held")


@pytest.mark.parametrize("last", [b"", b"connection: close\r\n"])
def test_an_answer_that_nobody_reads_to_its_end(gate: "Service", eventually: Callable[..., Any], last: bytes) -> None:
    """Of a last answer, which fits into no buffer of the client."""
    held = open_sockets(gate)
    big = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", gate.port))
        connection.sendall((big + b"\r\n") * 200 + big + last + b"\r\n")
        eventually(lambda: open_sockets(gate) > held)
        eventually(lambda: open_sockets(gate) <= held, 20, "the connection was held")


def test_connections_of_one_address_are_limited(
    service: Callable[..., "Service"], connect: Callable[..., socket.socket], eventually: Callable[..., Any]
) -> None:
    gate = service(server__max_connections_per_address=20)
    held = [connect(gate) for _ in range(40)]
    turned_away = 0
    for each in held:
        each.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            each.sendall(LIVE)
            if b" 503 " in each.recv(4096):
                turned_away += 1
    assert 20 <= turned_away < 40
    for each in held:
        each.close()
    eventually(lambda: gate.ready() == 200, 20, "the places were not given back")


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost:\r\n\r\n",
        POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"transfer-encoding: identity\r\ncontent-length: 2\r\n\r\n{}",
        POST + b"transfer-encoding: gzip\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n0\r\n\r\n",
        POST + b"content-length: +2\r\n\r\n{}",
        POST + b"content-length: 2, 2\r\n\r\n{}",
        POST + b"transfer-encoding: chunked\r\n\r\n2 \r\n{}\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}}\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\n2\n{}\n0\n\n",
        POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nbad trailer\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost:80\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / RTSP/1.0\r\nhost: x\r\n\r\n",
        b"OPTIONS * RTSP/1.0\r\nhost: x\r\n\r\n",
        b"DESCRIBE / RTSP/1.0\r\nhost: x\r\n\r\n",
        b"SOURCE / ICE/1.0\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\nhost: x\n\n",
        b"GET  / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n host: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nfolded: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nname : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nname: a\x00b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_could_be_read_in_two_ways(
    gate: "Service", connect: Callable[..., socket.socket], request_: bytes
) -> None:
    connection = connect()
    connection.sendall(request_)
    received = answers(connection)
    assert received == b"" or received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") <= 1
    assert "Traceback" not in gate.log
    assert '"traceback"' not in gate.log


def test_what_was_accepted_is_answered_whatever_comes_behind_it(
    gate: "Service", receiver: "Site", connect: Callable[..., socket.socket]
) -> None:
    for rubbish in (b"\x00\x01", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"POST / HTTP/3\r\n\r\n"):
        connection = connect()
        connection.sendall(whole(gate, receiver) + rubbish)
        received = answers(connection)
        assert received.startswith(b"HTTP/1.1 202 ")
        assert received.count(b"HTTP/1.1 400 ") == 1


@pytest.mark.parametrize("cut", [1, 100, 250, -1])
def test_a_client_that_leaves_in_the_middle_of_a_pipeline(
    gate: "Service", receiver: "Site", connect: Callable[..., socket.socket], cut: int
) -> None:
    connection = connect()
    second = whole(gate, receiver)
    connection.sendall(whole(gate, receiver) + second[:cut])
    connection.close()
    assert gate.ready() == 200
    assert '"traceback"' not in gate.log


def test_a_refusal_says_whether_the_connection_goes_on(gate: "Service", connect: Callable[..., socket.socket]) -> None:
    def refused(framing: bytes, body: bytes) -> tuple[bool, socket.socket]:
        connection = connect()
        connection.sendall(POST + framing + b"\r\n\r\n" + body)
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1)
        assert head.startswith(b"HTTP/1.1 413 ")
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        while length:
            length -= len(connection.recv(length))
        return b"connection: close" in head.lower(), connection

    closes, connection = refused(b"content-length: 100000", b"x" * 100_000)
    assert not closes
    connection.sendall(LIVE)
    assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    closes, _ = refused(b"content-length: 9000000", b"x" * 1000)
    assert closes
    closes, _ = refused(b"transfer-encoding: chunked", b"ffff\r\n" + b"x" * 65535)
    assert closes
