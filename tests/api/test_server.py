"""The server itself, on bare sockets: what no well-behaved client sends."""

import asyncio
import gc
import json
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest
import uvloop
from starlette.types import Receive, Scope, Send
from tests.api.conftest import BODY, SESSION, TOKEN, Raw, Service, eventually

from chargegate.api import Server
from chargegate.engines.memory.queue import MemoryQueue
from chargegate.queues.base import Message, Stored, put_in_task

POST = f"POST {SESSION} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()
LIVE = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
CONTENT = json.dumps(BODY).encode()
WHOLE = POST + b"content-length: %d\r\n\r\n" % len(CONTENT) + CONTENT


def bad_request(connection: Raw) -> str:
    """Read the answer to what is no request, and see the connection close."""
    status, headers, body = connection.answer()
    assert status == 400
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"]
    assert headers["cache-control"] == "no-store"
    assert headers["date"]
    error = json.loads(body)
    assert set(error) == {"status", "message", "timestamp"}
    assert error["status"] == "validation_error"
    assert connection.end() == b""
    return str(error["message"])


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
        b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header: y\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\naccept: */*\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nhost: x\r\n\r\n",
        POST + b"content-length: x\r\n\r\n",
        POST + b"content-length: -1\r\n\r\n",
        POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
        POST + b"content-length: 9\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_what_is_no_http_gets_the_one_error_shape(service: Service, raw: Callable[..., Raw], data: bytes) -> None:
    connection = raw()
    connection.send(data)
    bad_request(connection)
    assert service.accepted() == 0
    assert service.http.get("/health/live").status_code == 200


def test_it_echoes_the_request_id_as_far_as_it_got(raw: Callable[..., Raw]) -> None:
    connection = raw()
    connection.send(b"GET / HTTP/1.1\r\nx-request-id: mine\r\n\r\n")
    assert connection.answer()[1]["x-request-id"] == "mine"


@pytest.mark.parametrize("size", [40_000, 1_000_000])
@pytest.mark.parametrize(
    "line", [b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\nx: %b\r\n\r\n"]
)
def test_heads_are_limited(raw: Callable[..., Raw], line: bytes, size: int) -> None:
    connection = raw()
    connection.send(line % (b"x" * size))
    assert "at most 32768 bytes" in bad_request(connection)


def test_many_headers_are_limited_too(raw: Callable[..., Raw]) -> None:
    for many, rule in ((6000, "at most 32768 bytes"), (100, "at most 100 header fields")):
        connection = raw()
        connection.send(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * many + b"\r\n")
        assert rule in bad_request(connection)


def test_a_head_within_the_limit_passes_in_any_pieces(raw: Callable[..., Raw]) -> None:
    head = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 32_000 + b"\r\n\r\n"
    for size in (len(head), 20_000, 3_000):
        connection = raw()
        for start in range(0, len(head), size):
            connection.send(head[start : start + size])
        assert connection.answer()[0] == 200


def test_a_body_may_come_byte_by_byte(service: Service, raw: Callable[..., Raw]) -> None:
    connection = raw()
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in WHOLE:
        connection.send(bytes([byte]))
    assert connection.answer()[0] == 202
    assert service.accepted() == 1


def test_silence_ends_the_connection(serve: Callable[..., Service], raw: Callable[..., Raw]) -> None:
    connection = raw(serve(request_timeout_ms=100).port)
    assert connection.rest() == b""


@pytest.mark.parametrize("head", [b"G", POST, POST + b"x: ", b"\r\n\r\n"])
def test_a_head_must_come_in_time(serve: Callable[..., Service], raw: Callable[..., Raw], head: bytes) -> None:
    connection = raw(serve(request_timeout_ms=100).port)
    connection.send(head)
    if head.strip():
        assert bad_request(connection) == "The request did not arrive in time."
    else:
        assert connection.rest() == b""


@pytest.mark.parametrize(
    "start",
    [b"content-length: 99\r\n\r\n", b"content-length: 99\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"],
)
@pytest.mark.parametrize("path", [SESSION, "/api/v1/acl/check"])
def test_a_body_must_come_in_time(
    serve: Callable[..., Service], raw: Callable[..., Raw], path: str, start: bytes
) -> None:
    service = serve(request_timeout_ms=100)
    connection = raw(service.port)
    connection.send(POST.replace(SESSION.encode(), path.encode()) + start)
    assert bad_request(connection) == "The request did not arrive in time."
    eventually(lambda: service.server.under_way == 0)
    assert service.accepted() == 0


def test_the_limit_holds_for_the_next_request_on_a_connection(
    serve: Callable[..., Service], raw: Callable[..., Raw]
) -> None:
    connection = raw(serve(request_timeout_ms=100).port)
    connection.send(LIVE)
    assert connection.answer()[0] == 200
    connection.send(b"GET /health")
    assert bad_request(connection) == "The request did not arrive in time."


@pytest.mark.parametrize("framing", [b"content-length: 900000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"])
def test_after_a_refusal_the_rest_is_read_and_the_connection_goes_on(raw: Callable[..., Raw], framing: bytes) -> None:
    body = b"x" * 900_000 if b"length" in framing else b"186a0\r\n" + b"x" * 100_000 + b"\r\n0\r\n\r\n"
    connection = raw()
    connection.send(POST + framing + body)
    status, _, content = connection.answer()
    assert (status, json.loads(content)["status"]) == (413, "payload_too_large")
    connection.send(LIVE)
    assert connection.answer()[0] == 200


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
def test_the_rest_is_read_too_when_the_client_wants_to_close(raw: Callable[..., Raw], version: bytes) -> None:
    connection = raw()
    head = POST.replace(b"HTTP/1.1", version) + b"connection: close\r\ncontent-length: 900000\r\n\r\n"
    connection.send(head + b"x" * 900_000)
    status, headers, _ = connection.answer()
    assert (status, headers["connection"]) == (413, "close")
    assert connection.end() == b""


def flood(connection: Raw) -> None:
    """Send up to 99 MB; the server is to cut it off before."""
    with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        connection.send(b"x" * 99_000_000)


def test_after_a_refusal_an_endless_body_is_cut_off(raw: Callable[..., Raw]) -> None:
    connection = raw()
    connection.send(POST + b"content-length: 99000000\r\n\r\n")
    assert connection.answer()[0] == 413
    flood(connection)


def test_after_a_refusal_a_body_that_stops_is_cut_off(serve: Callable[..., Service], raw: Callable[..., Raw]) -> None:
    connection = raw(serve(request_timeout_ms=100).port)
    connection.send(POST + b"content-length: 99000000\r\n\r\nx")
    assert connection.answer()[0] == 413
    assert connection.rest() == b""


def test_endless_chunk_extensions_and_trailers_are_cut_off(raw: Callable[..., Raw]) -> None:
    for endless in (b"1;" + b"x" * 100_000, b"0\r\ntrailer: " + b"x" * 100_000):
        connection = raw()
        connection.send(POST + b"transfer-encoding: chunked\r\n\r\n" + endless)
        flood(connection)


def test_expect_continue(service: Service, raw: Callable[..., Raw]) -> None:
    connection = raw()
    connection.send(POST + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(CONTENT))
    assert connection.answer()[0] == 100
    connection.send(CONTENT)
    assert connection.answer()[0] == 202
    refused = raw()
    refused.send(POST + b"expect: 100-continue\r\ncontent-length: 99999\r\n\r\n")
    assert refused.answer()[0] == 413
    assert refused.end() == b""
    assert service.accepted() == 1


def test_pipelined_requests_are_answered_in_order(service: Service, raw: Callable[..., Raw]) -> None:
    connection = raw()
    connection.send(LIVE + WHOLE + LIVE)
    assert connection.statuses(3) == [200, 202, 200]
    assert service.accepted() == 1


class Slow(MemoryQueue):
    """Puts wait until they are let in."""

    def __init__(self) -> None:
        super().__init__(9)
        self.waiting = 0
        self.open = asyncio.Event()

    async def put(self, message: Message) -> None:
        self.waiting += 1
        await self.open.wait()
        await super().put(message)

    def put_then(self, message: Message, done: Stored) -> None:
        put_in_task(self.put(message), done)


def let_in(service: Service, queue: Slow) -> None:
    service._loop.call_soon_threadsafe(queue.open.set)


def test_rubbish_behind_a_request_does_not_cost_its_answer(
    serve: Callable[..., Service], raw: Callable[..., Raw]
) -> None:
    queue = Slow()
    service = serve(queue=queue)
    connection = raw(service.port)
    connection.send(WHOLE)
    eventually(lambda: queue.waiting == 1)
    connection.send(b"\x00rubbish\r\n\r\n")
    let_in(service, queue)
    assert connection.answer()[0] == 202
    bad_request(connection)


def test_rubbish_in_the_same_packet_does_not_cost_the_answer_either(service: Service, raw: Callable[..., Raw]) -> None:
    connection = raw()
    connection.send(WHOLE + WHOLE + b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n" + LIVE)
    assert connection.statuses(2) == [202, 202]
    assert bad_request(connection) == "A request has only one Host header."
    assert service.accepted() == 2


def test_a_client_that_closes_only_its_side_gets_its_answer(
    serve: Callable[..., Service], raw: Callable[..., Raw]
) -> None:
    queue = Slow()
    service = serve(queue=queue)
    connection = raw(service.port)
    connection.send(WHOLE)
    connection.socket.shutdown(socket.SHUT_WR)
    eventually(lambda: queue.waiting == 1)
    let_in(service, queue)
    assert connection.answer()[0] == 202
    assert connection.rest() == b""


def test_an_upgrade_is_ignored(service: Service, raw: Callable[..., Raw]) -> None:
    upgrade = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    connection = raw()
    asking = WHOLE.replace(b"host: localhost\r\n", b"host: localhost\r\n" + upgrade)
    connection.send(asking)
    assert connection.answer()[0] == 202
    connection.send(asking[:-10])
    connection.send(asking[-10:])
    assert connection.answer()[0] == 202
    chunked = asking.replace(b"content-length: %d" % len(CONTENT), b"transfer-encoding: chunked")
    connection.send(chunked.replace(CONTENT, b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT), CONTENT)))
    assert connection.answer()[0] == 202
    connection.send(LIVE.replace(b"host: localhost\r\n", b"host: localhost\r\n" + upgrade) + LIVE)
    assert connection.statuses(2) == [200, 200]
    assert service.accepted() == 3


def test_http_1_0_is_answered_and_closed(raw: Callable[..., Raw]) -> None:
    connection = raw()
    connection.send(b"GET /health/live HTTP/1.0\r\n\r\n")
    assert connection.rest().startswith(b"HTTP/1.1 200 OK")


def test_stopping_finishes_what_is_under_way(serve: Callable[..., Service], raw: Callable[..., Raw]) -> None:
    queue = Slow()
    service = serve(queue=queue)
    idle, busy = raw(service.port), raw(service.port)
    idle.send(LIVE)
    assert idle.answer()[0] == 200
    busy.send(WHOLE)
    eventually(lambda: queue.waiting == 1)
    stopping = threading.Thread(target=lambda: service.run(service.server.stop(20)))
    stopping.start()
    assert idle.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", service.port)).close()
    let_in(service, queue)
    status, headers, _ = busy.answer()
    assert (status, headers["connection"]) == (202, "close")
    stopping.join()


def test_stopping_does_not_wait_longer_than_it_was_told(
    serve: Callable[..., Service], raw: Callable[..., Raw], capfd: pytest.CaptureFixture[str]
) -> None:
    queue = Slow()
    service = serve(queue=queue)
    connection = raw(service.port)
    connection.send(WHOLE)
    eventually(lambda: queue.waiting == 1)
    service.run(service.server.stop(0.05))
    assert connection.rest() == b""
    service.run(service.server.stop(0.05))
    assert TOKEN not in "".join(capfd.readouterr())


async def nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Never called."""


def test_a_port_that_is_taken_is_named() -> None:
    async def start() -> None:
        first, second = Server(), Server()
        await first.start(nothing, "127.0.0.1", 0, request_timeout_ms=1000)
        try:
            with pytest.raises(
                OSError, match=f"^cannot listen on 127.0.0.1 port {first.port}: Address already in use$"
            ):
                await second.start(nothing, "127.0.0.1", first.port, request_timeout_ms=1000)
            with pytest.raises(OSError, match=r"^cannot listen on host\.invalid port 0: "):
                await second.start(nothing, "host.invalid", 0, request_timeout_ms=1000)
            await second.stop(0)
        finally:
            await first.stop(0)

    uvloop.run(start())


def test_the_port_is_known_only_once_it_listens() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        _ = Server().port


def test_time_goes_on_in_the_date_header(raw: Callable[..., Raw]) -> None:
    connection = raw()
    dates = set()
    deadline = time.monotonic() + 20
    while len(dates) < 2 and time.monotonic() < deadline:
        connection.send(LIVE)
        dates.add(connection.answer()[1]["date"])
    assert len(dates) == 2


def test_addresses_of_one_ipv6_network_share_their_places(serve: Callable[..., Service]) -> None:
    class Peer:
        def __init__(self, address: str) -> None:
            self.client = (address, 1)

    server = serve().server
    server._max_per_address = 2  # no connection comes from such an address here
    admitted = [server.admit(Peer(f"2001:db8:1:2::{number}")) for number in range(3)]  # type: ignore[arg-type]
    assert admitted == [True, True, False]
    assert server.admit(Peer("2001:db8:1:3::1"))  # type: ignore[arg-type]
    for connection in tuple(server._connections):
        server.forget(connection)
    assert not server._by_address


@pytest.mark.parametrize(
    "data",
    [
        LIVE,
        WHOLE * 3,
        WHOLE[:-1],
        LIVE[:9],
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        POST + b"content-length: 99999\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\nx\r\n",
    ],
)
def test_nothing_is_left_for_the_garbage_collector(raw: Callable[..., Raw], service: Service, data: bytes) -> None:
    """Its settings may put it off for long, because memory comes back without it."""

    def once() -> None:
        connection = raw()
        connection.send(data)
        connection.socket.shutdown(socket.SHUT_WR)
        connection.rest()
        connection.close()

    once()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            once()
        eventually(lambda: not service.server._connections)
        service.run(asyncio.sleep(0))
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [
            each for each in gc.garbage if type(each).__module__.startswith(("chargegate.api", "httptools", "uvloop"))
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


def test_a_body_that_was_read_is_not_given_again(serve: Callable[..., Service], raw: Callable[..., Raw]) -> None:
    """An application may wait for the client to leave while it answers."""
    seen: list[str] = []

    def waiting(_app: object) -> object:
        async def application(_scope: Scope, receive: Receive, send: Send) -> None:
            seen.append((await receive())["type"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            seen.append((await receive())["type"])

        return application

    service = serve(wrap=waiting)
    connection = raw(service.port)
    connection.send(LIVE)
    status, headers, _ = connection.answer()
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert seen == ["http.request"]
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
    connection.close()
    eventually(lambda: seen == ["http.request", "http.disconnect"])
