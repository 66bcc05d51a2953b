"""The outgoing HTTP/1.1 client: one POST, one answer, on a pool of connections kept alive.

Made for URLs that are not trusted: the address that is dialled is the one that was checked, redirects, proxies,
cookies and compressed bodies are not followed, used, kept or undone, and every answer is bounded in size and time.
Messages are framed by RFC 9112.
"""

import asyncio
import ssl
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, SOCK_STREAM
from typing import Any, Final, cast

import httptools
import msgspec

from chargegate import __version__
from chargegate.model import CallbackTarget, IPAddress

MAX_HEADER_BLOCK: Final = 65536


class Response(msgspec.Struct, frozen=True):
    """An answer. ``body`` is cut off at the client's ``max_answer_bytes``; ``retry_after`` is the header as sent."""

    status: int
    body: bytes
    retry_after: str | None


class CallFailed(Exception):
    """There is no answer. ``reason`` is a short, stable code that names no address, host or path."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ConnectFailed(CallFailed):
    """``name_not_resolved``, ``connection_refused``, ``tls_failed``, or ``connect_failed`` for any other cause."""


class TimedOut(CallFailed):
    """``timeout``: the exchange did not end in time, from resolving the name to the last byte of the answer."""


class BadAnswer(CallFailed):
    """``bad_answer``: not HTTP/1.x, or its headers are too large. ``closed_early``: the connection ended first."""


class AddressBlocked(CallFailed):
    """``address_blocked``: the host is, or resolves to, an address that may not be called."""


class HttpClient:
    """Posts JSON. Use it on one event loop; how many posts run at once is the caller's to limit.

    It keeps at most ``max_connections`` connections, idle ones for at most ``idle_s`` seconds; posts beyond that
    number still run. ``check_address`` raises ``AddressBlocked`` for an address that may not be dialled.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        idle_s: float = 5.0,
        max_answer_bytes: int = 65536,
        check_address: Callable[[IPAddress], None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        user_agent: str = f"chargegate/{__version__}",
    ) -> None:
        self._max_connections = max_connections
        self._idle_s = idle_s
        self._max_answer = max_answer_bytes
        self._check_address = check_address
        self._ssl_context = ssl_context
        self._fixed = f"user-agent: {user_agent}\r\ncontent-type: application/json\r\ncontent-length: "
        self._open: set[_Connection] = set()
        self._idle: dict[str, list[_Connection]] = {}
        self._leaving: set[asyncio.Future[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()  # kept, because asking for it is a system call before Python 3.12

    async def post(self, target: CallbackTarget, headers: bytes, body: bytes, timeout_s: float) -> Response:
        """Send ``body`` with ``headers`` (lines that each end in CRLF) and wait for the answer, whatever its status.

        ``timeout_s`` covers everything. The request is sent a second time only where a connection kept alive proves
        closed before any byte of an answer (RFC 9112, 9.3.1). Raises ``CallFailed``.
        """
        deadline = self._loop.time() + timeout_s
        head = f"POST {target.path} HTTP/1.1\r\nhost: {target.authority}\r\n{self._fixed}{len(body)}\r\n"
        request = b"".join((head.encode(), headers, b"\r\n", body))
        connection = self._take(target.destination)
        while True:
            reused = connection is not None
            if connection is None:
                connection = await self._connect(target, deadline)
            try:
                outcome = await connection.send(request, deadline)
            finally:
                self._release(connection)
            if isinstance(outcome, Response):
                return outcome
            if outcome is not None:
                raise outcome
            if not reused:
                raise BadAnswer("closed_early")
            connection = None

    async def close(self) -> None:
        """Close every idle connection, and from now on each other one as soon as its answer is there."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [connection for idle in self._idle.values() for connection in idle]:
            self._drop(connection)
        self._idle.clear()
        if self._leaving:
            await asyncio.wait(list(self._leaving))

    def _take(self, destination: str) -> "_Connection | None":
        idle = self._idle.get(destination)
        while idle:
            connection = idle.pop()
            if not connection.closing:
                return connection
        return None

    def _release(self, connection: "_Connection") -> None:
        if not connection.reusable or self._closed or len(self._open) > self._max_connections:
            self._drop(connection)
            return
        connection.idle_since = self._loop.time()
        idle = self._idle.get(connection.destination)
        if idle is None:
            self._idle[connection.destination] = [connection]
        else:
            idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._idle_s, self._sweep)

    def _sweep(self) -> None:
        expired = self._loop.time() - self._idle_s
        for destination, idle in list(self._idle.items()):
            while idle and idle[0].idle_since <= expired:
                self._drop(idle.pop(0))
            if not idle:
                del self._idle[destination]
        oldest = self._oldest_idle()
        self._sweeper = self._loop.call_at(oldest.idle_since + self._idle_s, self._sweep) if oldest else None

    def _oldest_idle(self) -> "_Connection | None":
        return min((idle[0] for idle in self._idle.values() if idle), key=lambda c: c.idle_since, default=None)

    def _drop(self, connection: "_Connection") -> None:
        self._open.discard(connection)
        connection.abort()
        lost = connection.lost
        if lost is not None and not lost.done():
            self._leaving.add(lost)
            lost.add_done_callback(self._leaving.discard)

    def _forget(self, connection: "_Connection") -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.destination)
        if idle and connection in idle:
            idle.remove(connection)

    async def _connect(self, target: CallbackTarget, deadline: float) -> "_Connection":
        """Dial the target's addresses in turn, once all of them are checked; each gets its share of the time left."""
        addresses = [target.literal] if target.literal else await _resolve(target, deadline)
        if self._check_address is not None:
            for address in addresses:
                self._check_address(address)
        failure: CallFailed = ConnectFailed("name_not_resolved")
        for tried, address in enumerate(addresses):
            now = self._loop.time()
            try:
                return await self._dial(target, address, now + (deadline - now) / (len(addresses) - tried))
            except CallFailed as error:
                failure = error
        raise failure

    async def _dial(self, target: CallbackTarget, address: IPAddress, deadline: float) -> "_Connection":
        if len(self._open) >= self._max_connections and (oldest := self._oldest_idle()):
            self._idle[oldest.destination].remove(oldest)
            self._drop(oldest)
        tls = target.scheme == "https"
        if tls and self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        connection = _Connection(self._loop, target.destination, self._max_answer, self._forget)
        self._open.add(connection)
        try:
            async with asyncio.timeout_at(deadline):
                await self._loop.create_connection(
                    lambda: connection,
                    str(address),
                    target.port,
                    ssl=self._ssl_context if tls else None,
                    server_hostname=target.host.removesuffix(".") if tls else None,
                )
        except BaseException as error:
            # Not dropped: a loop need not call `connection_lost` for a dial that was given up.
            self._open.discard(connection)
            connection.abort()
            if isinstance(error, (OSError, ValueError)):
                raise _connect_failure(error) from None
            raise
        return connection


_Outcome = Response | CallFailed | None


class _Connection(asyncio.Protocol):
    """One connection and the exchange on it, if any. An outcome of None: closed before any byte of an answer.

    An outcome is a result even where it is a failure: a future's exception that nobody fetches is reported as lost.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        destination: str,
        max_answer: int,
        on_lost: "Callable[[_Connection], None]",
    ) -> None:
        self._loop = loop
        self.destination = destination
        self.idle_since = 0.0
        self.reusable = False
        self.lost: asyncio.Future[None] | None = None
        self._max_answer = max_answer
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[_Outcome] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._body = bytearray()
        self._parser = httptools.HttpResponseParser(self)
        # An informational answer may say `connection: close`, and the answer still follows it.
        self._parser.set_dangerous_leniencies(lenient_keep_alive=True)

    @property
    def closing(self) -> bool:
        return self._transport is not None and self._transport.is_closing()

    def send(self, request: bytes, deadline: float) -> asyncio.Future[_Outcome]:
        """Start an exchange; its outcome comes by ``deadline`` (the loop's clock)."""
        self._waiter = waiter = self._loop.create_future()
        self._deadline = deadline
        # A timer costs more than the rest of this method, so one that is running is left to run and set anew then.
        if self._timer is None or deadline < self._timer_at:
            self._set_timer()
        self._answered = self.reusable = False
        self._allowance = MAX_HEADER_BLOCK
        self._status = 0
        self._transport.write(request)  # type: ignore[union-attr]  # connected before anyone gets hold of it
        return waiter

    def abort(self) -> None:
        self._end(None)
        if self._transport is not None:
            self._transport.abort()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if self._deadline > self._loop.time():
            self._set_timer()
        else:
            self._end(TimedOut("timeout"))

    def _end(self, outcome: _Outcome) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(outcome)

    def _complete(self) -> None:
        self._end(Response(self._status, bytes(self._body), self._retry_after))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.lost = self._loop.create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self)
        if self.lost is not None:
            self.lost.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if self._waiter is not None:
            if not self._answered:
                self._end(None)
            elif exc is None and self._status >= 200 and not self._framed:
                self._complete()
            else:
                self._end(BadAnswer("closed_early"))
        del self._parser  # it holds this object's methods

    def data_received(self, data: bytes) -> None:
        # llhttp would take RTSP and ICE too.
        if self._waiter is not None and not self._answered and not data.startswith(b"H"):
            self._end(BadAnswer("bad_answer"))
        self._answered = True
        try:
            while data and self._waiter is not None:
                # Until the final header block is there, and from then on between pieces of the body, the parser
                # sees no more than the allowance: header lines, trailers and chunk extensions have no other limit.
                if not self._allowance:
                    self._end(BadAnswer("bad_answer"))
                    break
                piece = data[: self._allowance]
                data = data[len(piece) :]
                self._allowance -= len(piece)
                self._parser.feed_data(piece)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.reusable = False
            self._end(BadAnswer("bad_answer"))
        if data:
            self.reusable = False
            if self._transport is not None:
                self._transport.abort()

    def on_message_begin(self) -> None:
        if self._waiter is None:
            self.reusable = False
            return
        self._status = 0
        self._retry_after: str | None = None
        self._framed = False
        self._body.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status or len(name) not in (11, 14, 17):
            return
        name = name.lower()
        if name == b"retry-after":
            self._retry_after = value.decode("latin-1").strip()
        elif name == b"content-length":
            self._framed = True
        elif name == b"transfer-encoding":
            self._framed = value.strip().lower().endswith(b"chunked")

    def on_headers_complete(self) -> None:
        if self._waiter is None:
            return
        self._status = status = self._parser.get_status_code()
        version = self._parser.get_http_version()
        if status < 100 or not version.startswith("1."):
            self._end(BadAnswer("bad_answer"))
        elif status == 101:
            self._complete()
        elif status >= 200:
            self._allowance = MAX_HEADER_BLOCK
            self._persistent = version == "1.1"

    def on_body(self, piece: bytes) -> None:
        if self._waiter is None or self._status < 200:
            return
        self._allowance = MAX_HEADER_BLOCK
        self._body += piece
        if len(self._body) > self._max_answer:
            del self._body[self._max_answer :]
            self._complete()

    def on_message_complete(self) -> None:
        if self._waiter is not None and self._status >= 200:
            self.reusable = self._persistent and self._parser.should_keep_alive()
            self._complete()


async def _resolve(target: CallbackTarget, deadline: float) -> list[IPAddress]:
    try:
        async with asyncio.timeout_at(deadline):
            answers = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=SOCK_STREAM)
    except TimeoutError:
        raise TimedOut("timeout") from None
    except (OSError, UnicodeError):
        raise ConnectFailed("name_not_resolved") from None
    return list(dict.fromkeys(_address(answer[0], answer[4]) for answer in answers))


def _address(family: int, sockaddr: tuple[Any, ...]) -> IPAddress:
    """The address that a resolver's answer stands for; anything with a zone, or of another family, is refused."""
    try:
        if family == AF_INET and len(sockaddr) == 2:
            return IPv4Address(sockaddr[0])
        if family == AF_INET6 and sockaddr[2:] == (0, 0) and "%" not in sockaddr[0]:
            return IPv6Address(sockaddr[0])
    except ValueError:
        pass
    raise AddressBlocked("address_blocked")


def _connect_failure(error: OSError | ValueError) -> CallFailed:
    if isinstance(error, TimeoutError):
        return TimedOut("timeout")
    if isinstance(error, ConnectionRefusedError):
        return ConnectFailed("connection_refused")
    if isinstance(error, ssl.SSLError):
        return ConnectFailed("tls_failed")
    return ConnectFailed("connect_failed")
