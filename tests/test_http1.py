"""The HTTP client against real sockets: servers that answer raw bytes, good and bad."""

import asyncio
import datetime as dt
import errno
import gc
import ipaddress
import itertools
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargegate.http1 import (
    MAX_HEAD,
    AddressBlocked,
    BadAnswer,
    CallFailed,
    ConnectFailed,
    HttpClient,
    NotSent,
    Response,
    TimedOut,
    tls_context,
)
from chargegate.http1.client import MOST_DIALS
from chargegate.http1.connection import Connection
from chargegate.model import CallbackTarget, IPAddress, parse_callback_url
from nameserver import NameServer, name_server

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
LONG = 20.0
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs a coroutine, and fails if the loop had anything to complain about."""
    complaints: list[dict[str, Any]] = []

    def run_one(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
            runner.run(main)

    yield run_one
    gc.collect()
    assert complaints == []


@pytest.fixture
def names() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


class Peer:
    """What a server has seen: its port, connections made and ended, and requests."""

    def __init__(self) -> None:
        self.port = 0
        self.accepted = 0
        self.ended = 0
        self.requests: list[bytes] = []

    def target(self, host: str = "127.0.0.1", scheme: str = "http") -> CallbackTarget:
        return parse_callback_url(f"{scheme}://{host}:{self.port}/hook?x=1")


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    return head + await reader.readexactly(int(length[1]))


@asynccontextmanager
async def serving(answer: bytes | Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    """A server that reads requests and answers each: with these bytes, or by calling ``answer`` with the number of
    the request, from 1 on. It keeps connections open until the client ends them, or ``answer`` closes one."""
    peer = Peer()
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer.accepted += 1
        try:
            while not writer.is_closing():
                peer.requests.append(await read_request(reader))
                if isinstance(answer, bytes):
                    writer.write(answer)
                else:
                    await answer(reader, writer, len(peer.requests))
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            peer.ended += 1
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    peer.port = server.sockets[0].getsockname()[1]
    try:
        yield peer
    finally:
        server.close()
        waiting = list(tasks)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def calling(**options: Any) -> AsyncIterator[HttpClient]:
    client = HttpClient(**{"max_connections": 10, **options})
    try:
        yield client
    finally:
        await client.close()


async def post(client: HttpClient, target: CallbackTarget, timeout_s: float = LONG) -> Response:
    return await client.post(target, b"webhook-id: 7\r\n", b'{"a":1}', timeout_s)


async def failure(client: HttpClient, target: CallbackTarget, timeout_s: float = LONG) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        await post(client, target, timeout_s)
    assert str(caught.value) == caught.value.reason
    return caught.value


def dies_after(count: int, last_words: bytes) -> Answer:
    """Answers ``count`` requests; from then on sends its last words to a request and closes."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(OK if number <= count else last_words)
        if number > count:
            writer.close()

    return answer


# Requests


def test_a_request_is_exactly_this(run: Run) -> None:
    async def main() -> None:
        async with serving(OK) as peer, calling(user_agent="gate/1") as client:
            assert await post(client, peer.target()) == Response(200, b"ok", None)
            assert peer.requests == [
                b"POST /hook?x=1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nuser-agent: gate/1\r\n"
                b"content-type: application/json\r\ncontent-length: 7\r\nwebhook-id: 7\r\n\r\n"
                b'{"a":1}' % peer.port
            ]

    run(main())


def test_cookies_and_compression_are_left_alone(run: Run) -> None:
    answer = b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b"

    async def main() -> None:
        async with serving(answer) as peer, calling() as client:
            assert (await post(client, peer.target())).body == b"\x1f\x8b"
            await post(client, peer.target())
            assert peer.requests[0] == peer.requests[1]
            assert b"cookie" not in peer.requests[1]
            assert b"accept-encoding" not in peer.requests[1]

    run(main())


def test_proxies_of_the_environment_are_ignored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(OK) as proxy, serving(OK) as peer, calling() as client:
            for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            await post(client, peer.target())
            assert (proxy.accepted, peer.accepted) == (0, 1)

    run(main())


# Answers


@pytest.mark.parametrize(
    ("answer", "response", "reused"),
    [
        pytest.param(OK, (200, b"ok", None), True, id="content-length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\no\r\n1\r\nk\r\n0\r\nretry-after: 9\r\n\r\n",
            (200, b"ok", None),
            True,
            id="chunked",
        ),
        pytest.param(b"HTTP/1.1 204 No\r\n\r\n", (204, b"", None), True, id="no-content"),
        pytest.param(b"HTTP/1.1 304\r\n\r\n", (304, b"", None), True, id="no-reason-phrase"),
        pytest.param(
            b"HTTP/1.1 503 No\r\nRetry-After: \t120 \r\ncontent-length: 0\r\n\r\n", (503, b"", "120"), True, id="retry"
        ),
        pytest.param(
            b"HTTP/1.1 100 C\r\nretry-after: 5\r\n\r\nHTTP/1.1 103 E\r\nlink: <a>\r\n\r\nHTTP/1.1 100\r\n\r\n" + OK,
            (200, b"ok", None),
            True,
            id="informational",
        ),
        pytest.param(
            b"HTTP/1.0 100 C\r\n\r\nHTTP/1.1 102 P\r\nconnection: close\r\n\r\n" + OK,
            (200, b"ok", None),
            True,
            id="informational-that-closes",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
            (200, b"ok", None),
            False,
            id="close",
        ),
        pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", (200, b"ok", None), False, id="http-1.0"),
        pytest.param(
            b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",
            (200, b"ok", None),
            False,
            id="http-1.0-keep-alive",
        ),
        pytest.param(OK + b"\r\nHT", (200, b"ok", None), False, id="start-of-another"),
        pytest.param(OK + OK, (200, b"ok", None), False, id="two"),
        pytest.param(OK + b"?", (200, b"ok", None), False, id="stray-bytes"),
        pytest.param(b"HTTP/1.1 101 S\r\n\r\nxyz", (101, b"", None), False, id="switching"),
        pytest.param(
            b"HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nxyz", (101, b"", None), False, id="upgrade"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\nok",
            (200, b"ok", None),
            True,
            id="upgrade-offered",
        ),
    ],
)
def test_an_answer_and_whether_its_connection_is_kept(
    run: Run, answer: bytes, response: tuple[int, bytes, str | None], reused: bool
) -> None:
    async def main() -> None:
        async with serving(answer) as peer, calling() as client:
            for _ in range(3):
                assert await post(client, peer.target()) == Response(*response)
            assert peer.accepted == (1 if reused else 3)
            if not reused:
                await until(lambda: peer.ended == 3)

    run(main())


@pytest.mark.parametrize("coding", [b"", b"transfer-encoding: gzip\r\n", b"transfer-encoding: chunked, x\r\n"])
def test_a_body_may_end_with_the_connection(run: Run, coding: bytes) -> None:
    async def main() -> None:
        answer = b"HTTP/1.1 200 OK\r\n" + coding + b"\r\nsome body"
        async with serving(dies_after(0, answer)) as peer, calling() as client:
            assert await post(client, peer.target()) == Response(200, b"some body", None)
            assert (await post(client, peer.target())).body == b"some body"
            assert peer.accepted == 2

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTT",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
    ],
)
def test_an_answer_cut_short_is_no_answer(run: Run, answer: bytes) -> None:
    async def main() -> None:
        async with serving(dies_after(0, answer)) as peer, calling() as client:
            error = await failure(client, peer.target())
            assert (type(error), error.reason) == (BadAnswer, "closed_early")
            assert peer.accepted == 1

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"RTSP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/0.9 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 000 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(run: Run, answer: bytes) -> None:
    async def main() -> None:
        async with serving(answer) as peer, calling() as client:
            error = await failure(client, peer.target())
            assert (type(error), error.reason) == (BadAnswer, "bad_answer")
            await until(lambda: peer.ended == 1)

    run(main())


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "again"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\na: ", b"x" * 1000, id="one-header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 100, id="many-headers"),
        pytest.param(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10, id="informational"),
        pytest.param(b"HTTP/1.1 104 X\r\ncontent-length: 9999999\r\n\r\n", b"x" * 1000, id="informational-body"),
        pytest.param(CHUNKED + b"0\r\na: ", b"x" * 1000, id="trailer"),
        pytest.param(CHUNKED + b"1;", b"x" * 1000, id="chunk-extension"),
    ],
)
def test_headers_without_end_are_refused(run: Run, start: bytes, again: bytes) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: int) -> None:
        writer.write(start)
        while True:
            writer.write(again)
            await writer.drain()

    async def main() -> None:
        async with serving(answer) as peer, calling() as client:
            assert (await failure(client, peer.target())).reason == "bad_answer"
            await until(lambda: peer.ended == 1)

    run(main())


def test_the_header_block_has_an_exact_limit(run: Run) -> None:
    def sized(size: int) -> bytes:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\na: %b\r\n\r\n"
        return head % (b"x" * (size - len(head) + 2)) + b"y" * 200_000

    async def main() -> None:
        async with calling(max_answer_bytes=300_000) as client:
            async with serving(sized(MAX_HEAD)) as peer:
                assert len((await post(client, peer.target())).body) == 200_000
            async with serving(sized(MAX_HEAD + 1)) as peer:
                assert (await failure(client, peer.target())).reason == "bad_answer"

    run(main())


def test_a_body_is_read_to_its_limit(run: Run) -> None:
    async def main() -> None:
        async with serving(OK) as peer:
            async with calling(max_answer_bytes=2) as client:
                assert [(await post(client, peer.target())).body for _ in range(2)] == [b"ok", b"ok"]
                assert peer.accepted == 1
            async with calling(max_answer_bytes=1) as client:
                assert [await post(client, peer.target()) for _ in range(2)] == [Response(200, b"o", None)] * 2
                assert peer.accepted == 3
                await until(lambda: peer.ended == 3)

    run(main())


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", CHUNKED])
def test_a_body_without_end_is_cut_off(run: Run, head: bytes) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: int) -> None:
        writer.write(head)
        while True:
            writer.write((b"4\r\nabcd\r\n" if head is CHUNKED else b"abcd") * 100)
            await writer.drain()

    async def main() -> None:
        async with serving(answer) as peer, calling(max_answer_bytes=1000) as client:
            # Of 1,000 bytes, those that frame 111 chunks are not kept.
            assert (await post(client, peer.target())).body == b"abcd" * (111 if head is CHUNKED else 250)
            await until(lambda: peer.ended == 1)

    run(main())


# Time


@pytest.mark.parametrize(
    ("start", "drip"),
    [(b"", b""), (b"HTTP/1.1 200 OK\r\na: ", b"x"), (b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n", b"x")],
    ids=["silent", "header", "body"],
)
def test_the_whole_answer_must_come_in_time(run: Run, start: bytes, drip: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(start)
        while not reader.at_eof():
            writer.write(drip)
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.005)

    async def main() -> None:
        async with serving(answer) as peer, calling() as client:
            error = await failure(client, peer.target(), 0.1)
            assert (type(error), error.reason) == (TimedOut, "timeout")
            await until(lambda: peer.ended == 1)

    run(main())


def test_each_request_has_its_own_time(run: Run) -> None:
    """Longer, shorter and longer again on one connection, whose timer outlives a request."""

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            if number == 3:
                await until(lambda: loop.time() > second_ends + 0.01)
            if number < 4:
                writer.write(OK)

        async with serving(answer) as peer, calling() as client:
            await post(client, peer.target(), LONG)
            second_ends = loop.time() + 0.3
            await post(client, peer.target(), 0.3)
            await post(client, peer.target(), LONG)
            assert peer.accepted == 1
            assert isinstance(await failure(client, peer.target(), 0.05), TimedOut)

    run(main())


def test_resolving_and_shaking_hands_count_too(run: Run, names: NameServer) -> None:
    async def main() -> None:
        names.silent.add("slow.example")
        async with serving(OK) as peer, calling(name_servers=[names.address]) as client:
            # It reads the TLS greeting, finds no end of a header block in it, and says nothing.
            assert isinstance(await failure(client, peer.target(scheme="https"), 0.1), TimedOut)
            await until(lambda: peer.ended == 1)
            # Nothing was sent, so that this says nothing of the receiver.
            error = await failure(client, peer.target("slow.example"), 0.05)
            assert (type(error), error.reason) == (NotSent, "name_not_resolved")

    run(main())


# The pool


def stale(last_words: bytes) -> Answer:
    """Answers the first request of each connection. To the second it says its last words, and closes."""
    used: list[asyncio.StreamWriter] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: int) -> None:
        if writer in used:
            writer.write(last_words)
            writer.close()
        else:
            used.append(writer)
            writer.write(OK)

    return answer


def test_a_kept_connection_that_ends_without_a_byte_of_an_answer_is_no_attempt(run: Run) -> None:
    """The receiver closed it, as a rule, before it saw the request."""

    async def main() -> None:
        async with serving(stale(b"")) as peer, calling() as client:
            await post(client, peer.target())
            assert (await post(client, peer.target())).status == 200
            assert (peer.accepted, len(peer.requests)) == (2, 3)
            assert peer.requests[1] == peer.requests[2]

    run(main())


def test_a_kept_connection_that_ends_in_an_answer_is_an_attempt(run: Run) -> None:
    """The receiver has read the request."""

    async def main() -> None:
        async with serving(stale(b"HTTP/1.1 2")) as peer, calling() as client:
            await post(client, peer.target())
            assert (await failure(client, peer.target())).reason == "closed_early"
            assert (peer.accepted, len(peer.requests)) == (1, 2)
            assert (await post(client, peer.target())).status == 200
            assert (peer.accepted, len(peer.requests)) == (2, 3)

    run(main())


def test_a_new_connection_that_ends_without_a_byte_is_tried_once(run: Run) -> None:
    async def main() -> None:
        async with serving(dies_after(1, b"")) as peer, calling() as client:
            await post(client, peer.target())
            assert (await failure(client, peer.target())).reason == "closed_early"
            assert (peer.accepted, len(peer.requests)) == (2, 3)

    run(main())


@pytest.mark.parametrize("parting", [b"", b"HTTP/1.1 408 Too slow\r\ncontent-length: 0\r\n\r\n"])
def test_an_idle_connection_that_ends_or_speaks_is_dropped(run: Run, parting: bytes) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: int) -> None:
        writers.append(writer)
        writer.write(OK)

    async def main() -> None:
        async with serving(answer) as peer, calling(idle_s=10 * LONG) as client:
            await post(client, peer.target())
            writers[0].write(parting)
            if not parting:
                writers[0].close()
            await until(lambda: peer.ended == 1)
            await until(lambda: not client._open)
            await post(client, peer.target())
            assert (peer.accepted, len(peer.requests)) == (2, 2)

    run(main())


def test_the_connection_used_last_is_used_next(run: Run) -> None:
    ports: list[int] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: int) -> None:
        ports.append(writer.get_extra_info("peername")[1])
        await until(lambda: len(ports) >= 2)
        writer.write(OK)

    async def main() -> None:
        async with serving(answer) as peer, calling() as client:
            await asyncio.gather(post(client, peer.target()), post(client, peer.target()))
            for _ in range(3):
                await post(client, peer.target())
            assert (peer.accepted, len(set(ports[:2])), len(set(ports[2:]))) == (2, 2, 1)

    run(main())


def test_idle_connections_are_closed_after_a_while(run: Run) -> None:
    async def main() -> None:
        async with serving(OK) as peer, calling(idle_s=0.05) as client:
            await asyncio.gather(*(post(client, peer.target()) for _ in range(3)))
            await until(lambda: peer.ended == peer.accepted)
            await until(lambda: client._sweeper is None)
            assert client._idle == {}
            assert (await post(client, peer.target())).status == 200
            await until(lambda: peer.ended == peer.accepted)

    run(main())


def test_a_new_connection_displaces_the_oldest_idle_one(run: Run) -> None:
    async def tick() -> None:
        then = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > then)

    async def main() -> None:
        async with serving(OK) as a, serving(OK) as b, serving(OK) as c, calling(max_connections=2) as client:
            await post(client, a.target())
            await post(client, b.target())
            await tick()
            await post(client, a.target())
            await tick()
            await post(client, c.target())
            await until(lambda: b.ended == 1)
            await post(client, a.target())
            await post(client, c.target())
            assert (a.accepted, b.accepted, c.accepted) == (1, 1, 1)

    run(main())


def test_busy_connections_beyond_the_limit_are_not_kept(run: Run) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        seen.add(number)
        await until(lambda: len(seen) == 5)
        writer.write(OK)

    seen: set[int] = set()

    async def main() -> None:
        async with serving(answer) as peer, calling(max_connections=2) as client:
            await asyncio.gather(*(post(client, peer.target()) for _ in range(5)))
            await until(lambda: peer.ended == 3)
            assert len(client._open) == 2

    run(main())


def test_cancelling_closes_the_connection(run: Run) -> None:
    async def silent(_: asyncio.StreamReader, __: asyncio.StreamWriter, ___: int) -> None:
        await asyncio.Event().wait()

    async def first_only(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        if number == 1:
            writer.write(OK)

    async def main() -> None:
        async with calling() as client:
            async with serving(first_only) as peer:  # kept alive
                await post(client, peer.target())
                task = asyncio.create_task(post(client, peer.target()))
                await until(lambda: len(peer.requests) == 2)
                await cancelled(task)
                await until(lambda: peer.ended == 1 and not client._open)
            async with serving(silent) as peer:  # shaking hands, to one who says nothing
                task = asyncio.create_task(post(client, peer.target(scheme="https")))
                await until(lambda: peer.accepted == 1)
                await cancelled(task)
                await until(lambda: peer.ended == 1 and not client._open)
            async with serving(OK) as peer:  # at every step of a whole exchange
                for steps in range(40):
                    task = asyncio.create_task(post(client, peer.target()))
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                await until(lambda: len(client._open) <= 1)
                assert (await post(client, peer.target())).status == 200

    async def cancelled(task: asyncio.Task[Response]) -> None:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_close_leaves_nothing_open(run: Run) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        if number == 3:
            await go_on.wait()
        writer.write(OK)

    go_on = asyncio.Event()

    async def main() -> None:
        async with serving(answer) as peer:
            unused = HttpClient(max_connections=10)
            await unused.close()
            client = HttpClient(max_connections=10, idle_s=10 * LONG)
            await post(client, peer.target())
            await client.close()
            assert (client._open, client._closing) == (set(), set())
            await client.close()
            client = HttpClient(max_connections=10, idle_s=10 * LONG)
            await post(client, peer.target())
            busy = asyncio.create_task(post(client, peer.target()))
            await until(lambda: len(peer.requests) == 3)
            await client.close()
            assert peer.ended == 1
            go_on.set()
            assert (await busy).status == 200
            await until(lambda: peer.ended == peer.accepted == 2)
            del busy
            # Not even a timer holds on to a connection that is gone.
            gc.collect()
            assert [thing for thing in gc.get_objects() if type(thing) is Connection] == []

    run(main())


# Connecting


def test_nobody_listens(run: Run, names: NameServer) -> None:
    async def main() -> None:
        async with serving(OK) as peer, calling(name_servers=[names.address]) as client:
            target = peer.target("127.0.0.2")
            error = await failure(client, target)
            assert (type(error), error.reason) == (ConnectFailed, "connection_refused")
            error = await failure(client, peer.target("secret.example"))
            assert (type(error), error.reason) == (ConnectFailed, "name_not_resolved")
            names.names["empty.example"] = []
            assert (await failure(client, peer.target("empty.example"))).reason == "name_not_resolved"
            assert client._open == set()

    run(main())


def guard(*blocked: str) -> tuple[Callable[[IPAddress], None], list[str]]:
    checked: list[str] = []

    def check(address: IPAddress) -> None:
        checked.append(str(address))
        if str(address) in blocked:
            raise AddressBlocked("address_blocked")

    return check, checked


def test_a_real_name_is_resolved_checked_and_dialled(run: Run) -> None:
    async def main() -> None:
        check, checked = guard()
        async with serving(OK) as peer, calling(check_address=check) as client:
            assert (await post(client, peer.target("LocalHost"))).status == 200
            assert "127.0.0.1" in checked
            assert peer.requests[0].split(b"\r\n")[1] == b"host: localhost:%d" % peer.port

    run(main())


@pytest.mark.parametrize(
    ("answers", "blocked"),
    [(["8.8.8.8", "127.0.0.1"], "127.0.0.1"), (["127.0.0.1", "10.0.0.1"], "10.0.0.1"), (["127.0.0.1", "::1"], "::1")],
)
def test_one_blocked_address_blocks_a_name(run: Run, names: NameServer, answers: list[str], blocked: str) -> None:
    names.names["two.example"] = answers

    async def main() -> None:
        check, _ = guard(blocked)
        async with serving(OK) as peer, calling(check_address=check, name_servers=[names.address]) as client:
            error = await failure(client, peer.target("two.example"))
            assert (type(error), error.reason) == (AddressBlocked, "address_blocked")
            assert peer.accepted == 0

    run(main())


def test_a_blocked_literal_is_not_dialled(run: Run) -> None:
    async def main() -> None:
        check, checked = guard("127.0.0.1")
        async with serving(OK) as peer, calling(check_address=check) as client:
            assert isinstance(await failure(client, peer.target()), AddressBlocked)
            assert isinstance(await failure(client, peer.target("0x7f.1")), AddressBlocked)
            assert (peer.accepted, checked) == (0, ["127.0.0.1", "127.0.0.1"])

    run(main())


def test_the_address_dialled_is_the_one_checked(run: Run, names: NameServer) -> None:
    """A name that changes its mind between check and dial is not asked twice."""
    names.names["rebind.example"] = ["127.0.0.1"]
    checked: list[str] = []

    def check(address: IPAddress) -> None:
        checked.append(str(address))
        names.names["rebind.example"] = ["127.0.0.3"]

    async def main() -> None:
        async with serving(OK) as peer, calling(check_address=check, name_servers=[names.address]) as client:
            assert (await post(client, peer.target("rebind.example"))).status == 200
            assert (len(names.asked), checked, peer.accepted) == (2, ["127.0.0.1"], 1)  # once for each family

    run(main())


def test_addresses_are_dialled_in_turn(run: Run, names: NameServer) -> None:
    names.names["many.example"] = ["127.0.0.2", "127.0.0.2", "127.0.0.1"]

    async def main() -> None:
        check, checked = guard()
        async with serving(OK) as peer, calling(check_address=check, name_servers=[names.address]) as client:
            assert (await post(client, peer.target("many.example"))).status == 200
            assert checked == ["127.0.0.2", "127.0.0.1"]

    run(main())


def test_both_families_are_dialled_in_turn_and_ipv6_first(run: Run, names: NameServer) -> None:
    names.names["both.example"] = ["127.0.0.2", "127.0.0.1", "::1", "::2"]

    async def main() -> None:
        check, checked = guard()
        async with serving(OK) as peer, calling(check_address=check, name_servers=[names.address]) as client:
            assert (await post(client, peer.target("both.example"))).status == 200
            assert checked == ["::1", "127.0.0.2", "::2", "127.0.0.1"]

    run(main())


def test_a_dead_address_does_not_hold_up_the_next(run: Run, names: NameServer) -> None:
    """The first accepts nothing: its line of connections is full."""
    names.names["half.example"] = ["127.0.0.3", "127.0.0.1"]

    async def main() -> None:
        async with serving(OK) as peer, calling(name_servers=[names.address]) as client:
            with full_backlog("127.0.0.3", peer.port):
                assert (await post(client, peer.target("half.example"), 4)).status == 200
                assert len(client._open) == 1

    run(main())


def test_when_every_address_is_dead_the_time_is_over(run: Run, names: NameServer) -> None:
    names.names["dead.example"] = [f"127.0.0.{last}" for last in range(3, 11)]

    async def main() -> None:
        with ExitStack() as stack:
            port = 0
            for address in names.names["dead.example"]:
                port = stack.enter_context(full_backlog(address, port))
            target = parse_callback_url(f"http://dead.example:{port}/")
            async with calling(name_servers=[names.address]) as client:
                task = asyncio.create_task(failure(client, target, 2.5))
                most = 0
                while not task.done():
                    most = max(most, len(client._open))
                    await asyncio.sleep(0.02)
                assert isinstance(await task, TimedOut)
                assert most == MOST_DIALS
                await until(lambda: not client._open)

    run(main())


@contextmanager
def full_backlog(address: str, port: int) -> Iterator[int]:
    """A port that neither accepts nor refuses a connection."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        place = listener.getsockname()
        while True:
            one = stack.enter_context(socket.socket())
            one.settimeout(0.2)
            try:
                one.connect(place)
            except TimeoutError:
                break
        yield int(place[1])


@pytest.mark.parametrize(
    ("number", "address", "kind", "reason"),
    [
        (errno.ECONNREFUSED, "192.0.2.1", ConnectFailed, "connection_refused"),
        (errno.EHOSTUNREACH, "192.0.2.1", ConnectFailed, "connect_failed"),
        (errno.EADDRNOTAVAIL, "2001:db8::1", ConnectFailed, "connect_failed"),
        (errno.EADDRNOTAVAIL, "192.0.2.1", NotSent, "no_socket"),
        (errno.EMFILE, "192.0.2.1", NotSent, "no_socket"),
        (errno.ETIMEDOUT, "192.0.2.1", TimedOut, "timeout"),
    ],
)
def test_what_this_process_lacks_says_nothing_of_the_receiver(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: int, address: str, kind: type[CallFailed], reason: str
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise OSError(number, "simulated")  # a whole machine's sockets are too many for a test

    async def main() -> None:
        async with calling() as client:
            monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fail)
            host = f"[{address}]" if ":" in address else address
            error = await failure(client, parse_callback_url(f"http://{host}/"))
            assert (type(error), error.reason) == (kind, reason)
            assert client._open == set()

    run(main())


@pytest.mark.parametrize("odd", ["::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1", "2606:4700::1111"])
def test_an_address_of_another_kind_is_checked_too(run: Run, names: NameServer, odd: str) -> None:
    names.names["odd.example"] = ["127.0.0.1", odd]

    async def main() -> None:
        check, _ = guard(str(ipaddress.ip_address(odd)))
        async with serving(OK) as peer, calling(check_address=check, name_servers=[names.address]) as client:
            assert isinstance(await failure(client, peer.target("odd.example")), AddressBlocked)
            assert peer.accepted == 0

    run(main())


# TLS


class Tls:
    """An authority, a server's certificate for ``localhost`` and 127.0.0.1, and a client that trusts the authority.

    With ``strict`` they are written as RFC 5280 asks. Without it the authority has no key usage extension, as a private
    authority often has none: ``openssl req -x509`` makes it so.
    """

    def __init__(self, folder: Path, *, strict: bool) -> None:
        key, own_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        now = dt.datetime.now(dt.UTC)
        base = (
            x509.CertificateBuilder()
            .issuer_name(authority)
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )
        root = (
            base.subject_name(authority)
            .serial_number(1)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if strict:
            root = root.add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
        leaf = (
            base.subject_name(x509.Name([]))
            .serial_number(2)
            .public_key(own_key.public_key())
            .add_extension(names, critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .add_extension(key_usage("digital_signature"), critical=True)
        )
        pem = serialization.Encoding.PEM
        private = own_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        chain = folder / "server.pem"
        chain.write_bytes(private + leaf.sign(key, hashes.SHA256()).public_bytes(pem))
        self._chain = chain
        self.server = self.serving_context()
        self.client = tls_context()
        self.client.load_verify_locations(cadata=root.sign(key, hashes.SHA256()).public_bytes(pem).decode())

    def serving_context(self) -> ssl.SSLContext:
        """Another one for the server, to change."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._chain)
        return context


def key_usage(*allowed: str) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: name in allowed for name in names})


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"), strict=True)


@pytest.mark.parametrize("strict", [True, False])
def test_a_certificate_that_only_the_strict_mode_refuses_is_accepted(run: Run, tmp_path: Path, strict: bool) -> None:
    """Python 3.13 turns the strict mode on by default; the client turns it off."""
    tls = Tls(tmp_path, strict=strict)

    async def main() -> None:
        async with serving(OK, tls.server) as peer, calling(ssl_context=tls.client) as client:
            assert (await post(client, peer.target("localhost", "https"))).status == 200
        tls.client.verify_flags |= ssl.VERIFY_X509_STRICT
        async with serving(OK, tls.server) as peer, calling(ssl_context=tls.client) as client:
            if strict:
                assert (await post(client, peer.target("localhost", "https"))).status == 200
            else:
                assert (await failure(client, peer.target("localhost", "https"))).reason == "tls_failed"

    run(main())


@pytest.mark.parametrize("host", ["localhost", "localhost.", "127.0.0.1"])
def test_tls_with_the_right_name(run: Run, tls: Tls, host: str) -> None:
    async def main() -> None:
        async with serving(OK, tls.server) as peer, calling(ssl_context=tls.client) as client:
            for _ in range(2):
                assert await post(client, peer.target(host, "https")) == Response(200, b"ok", None)
            assert peer.accepted == 1
        ends = dies_after(0, b"HTTP/1.1 200 OK\r\n\r\nall")
        async with serving(ends, tls.server) as peer, calling(ssl_context=tls.client) as client:
            assert (await post(client, peer.target(host, "https"))).body == b"all"

    run(main())


def test_tls_with_a_wrong_name_or_none(run: Run, tls: Tls, names: NameServer) -> None:
    names.names["other.example"] = ["127.0.0.1"]

    async def main() -> None:
        async with serving(OK, tls.server) as peer:
            async with calling() as untrusting:
                errors = [await failure(untrusting, peer.target("localhost", "https"))]
            async with calling(ssl_context=tls.client, name_servers=[names.address]) as client:
                errors.append(await failure(client, peer.target("other.example", "https")))
                assert client._open == set()
            assert [(type(error), error.reason) for error in errors] == [(ConnectFailed, "tls_failed")] * 2
            assert peer.requests == []

    run(main())


def test_a_plain_server_fails_the_handshake(run: Run, tls: Tls) -> None:
    async def main() -> None:
        async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(speak, "127.0.0.1", 0)
        target = parse_callback_url(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        async with calling(ssl_context=tls.client) as client:
            assert (await failure(client, target)).reason == "tls_failed"
        server.close()

    run(main())


def test_tls_that_does_not_come_about_fails_at_once(run: Run, tls: Tls) -> None:
    """A receiver that hangs up, one that wants a certificate of the client, and one that sends too much."""

    async def main() -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.close()

        async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while True:
                    writer.write(b"\x16\x03\x03\x40\x00" + bytes(16384))
                    await writer.drain()

        async with calling(ssl_context=tls.client) as client:
            for misbehave in (hang_up, talk):
                server = await asyncio.start_server(misbehave, "127.0.0.1", 0)
                target = parse_callback_url(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
                error = await failure(client, target)
                assert (type(error), error.reason) == (ConnectFailed, "tls_failed")
                server.close()
            strict = tls.serving_context()
            strict.verify_mode = ssl.CERT_REQUIRED
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):  # refused after the handshake in 1.3
                strict.maximum_version = version
                with socket.create_server(("127.0.0.1", 0)) as listener:
                    refusing = asyncio.create_task(asyncio.to_thread(refuse, listener, strict))
                    target = parse_callback_url(f"https://localhost:{listener.getsockname()[1]}/")
                    error = await failure(client, target)
                    await refusing
                assert (type(error), error.reason) == (ConnectFailed, "tls_failed")

    def refuse(listener: socket.socket, context: ssl.SSLContext) -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as wrapped:
            with pytest.raises(ssl.SSLError):
                wrapped.do_handshake()
            with suppress(OSError):  # closing before all is read would reset the connection, and the alert be lost
                while socket.socket.recv(wrapped, 65536):
                    pass

    run(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_carries_much_in_both_directions(run: Run, tls: Tls, version: ssl.TLSVersion) -> None:
    """More than a record holds, and more often than once."""
    context = tls.serving_context()
    context.maximum_version = version
    long = b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n" + b"y" * 60_000

    async def main() -> None:
        async with serving(long, context) as peer, calling(ssl_context=tls.client) as client:
            for _ in range(5):
                answer = await client.post(peer.target("localhost", "https"), b"", b"x" * 100_000, LONG)
                assert answer.body == b"y" * 60_000
            assert peer.accepted == 1
            assert all(request.endswith(b"\r\n\r\n" + b"x" * 100_000) for request in peer.requests)

    run(main())


def test_a_tls_connection_that_ended_is_replaced(run: Run, tls: Tls) -> None:
    async def main() -> None:
        async with serving(stale(b""), tls.server) as peer, calling(ssl_context=tls.client) as client:
            await post(client, peer.target("localhost", "https"))
            assert (await post(client, peer.target("localhost", "https"))).status == 200
            assert (peer.accepted, len(peer.requests)) == (2, 3)

    run(main())


def test_what_a_tls_receiver_sends_is_bounded(run: Run, tls: Tls) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: int) -> None:
        writer.write(CHUNKED)
        while True:
            writer.write(b"1;" + b"x" * 1000 + b"\r\ny\r\n")
            await writer.drain()

    async def main() -> None:
        async with serving(answer, tls.server) as peer, calling(ssl_context=tls.client) as client:
            assert (await post(client, peer.target("localhost", "https"))).status == 200
            await until(lambda: peer.ended == 1)

    run(main())


# The parser, fed piece by piece. Where a socket would cut is not for a test to choose, so that these look inside.


async def fed(pieces: list[bytes], *, then_closed: bool = False, max_answer: int = 65536) -> tuple[Any, bool]:
    """The outcome of an exchange whose answer comes in these pieces, and whether the connection could be kept."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    connection = Connection(loop, "", max_answer, lambda _: None)
    with theirs:
        await loop.create_connection(lambda: connection, sock=ours)
        assert connection.lost is not None
        try:
            waiter = connection.send(b"", loop.time() + LONG)
            for piece in pieces:
                if not connection.closing:
                    connection.data_received(piece)
            if then_closed:
                theirs.close()
            outcome = (await waiter) if then_closed or waiter.done() else "more"
            return outcome, connection.reusable and not connection.closing
        finally:
            connection.abort()
            await connection.lost


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, int, bytes, str | None, bool]:
    """Bytes of an answer, and what they mean: status, body, Retry-After, and whether it ends by itself."""
    status = draw(st.integers(200, 599).filter(lambda n: n not in (204, 304)))
    body = draw(st.binary(max_size=60))
    retry_after = draw(st.none() | st.sampled_from(["1", "120", "Wed, 21 Oct 2026 07:28:00 GMT"]))
    interim = draw(st.lists(st.sampled_from([b"HTTP/1.1 100 Go\r\n\r\n", b"HTTP/1.1 103 E\r\nlink: x\r\n\r\n"])))
    fields = [b"x-note: %b" % draw(st.from_regex(rb"[a-z ]{0,9}", fullmatch=True))]
    if retry_after:
        fields.append(b"Retry-After: " + retry_after.encode())
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    payload = body
    if framing == "length":
        fields.append(b"Content-Length: %d" % len(body))
    elif framing == "chunked":
        fields.append(b"Transfer-Encoding: Chunked")
        size = draw(st.integers(1, 20))
        chunks = [body[start : start + size] for start in range(0, len(body), size)]
        payload = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    order = draw(st.permutations(fields))
    head = b"HTTP/1.1 %d Reason\r\n" % status + b"".join(field + b"\r\n" for field in order) + b"\r\n"
    return b"".join(interim) + head + payload, status, body, retry_after, framing != "close"


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    edges = [0, *sorted({position % len(data) for position in positions} - {0}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=answers(), positions=st.lists(st.integers(0, 2000), max_size=40), everywhere=st.booleans())
def test_where_an_answer_is_split_does_not_matter(
    answer: tuple[bytes, int, bytes, str | None, bool], positions: list[int], everywhere: bool
) -> None:
    data, status, body, retry_after, ends_by_itself = answer
    pieces = cut(data, list(range(len(data))) if everywhere else positions)
    outcome, reusable = uvloop.run(fed(pieces, then_closed=not ends_by_itself))
    assert outcome == Response(status, body, retry_after)
    assert reusable == ends_by_itself


@settings(max_examples=150, deadline=None)
@given(answer=answers(), end=st.integers(0, 2000))
def test_every_beginning_of_an_answer_is_no_answer(
    answer: tuple[bytes, int, bytes, str | None, bool], end: int
) -> None:
    data, _, _, _, ends_by_itself = answer
    limit = len(data) if ends_by_itself else data.rindex(b"\r\n\r\n", 0, len(data) - len(answer[2])) + 4
    part = data[: end % limit]
    outcome, _ = uvloop.run(fed([part] if part else [], then_closed=True))
    assert outcome is None if not part else outcome.reason == "closed_early"


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(
        st.binary(min_size=1, max_size=30)
        | st.sampled_from([OK, CHUNKED, b"HTTP/1.1 ", b"200 OK\r\n", b"a: b\r\n", b"\r\n", b"5\r\n", b"0\r\n"]),
        max_size=12,
    )
)
def test_no_bytes_bring_it_down(pieces: list[bytes]) -> None:
    outcome, reusable = uvloop.run(fed(pieces, then_closed=True, max_answer=16))
    assert outcome is None or isinstance(outcome, (Response, BadAnswer))
    assert not reusable or isinstance(outcome, Response)
