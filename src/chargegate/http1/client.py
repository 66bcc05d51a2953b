"""The outgoing HTTP/1.1 client: one POST, one answer, on a pool of connections that are kept alive.

It is made for URLs that are not trusted. The address that is dialled is the one that was checked. The client follows
no redirect, uses no proxy, keeps no cookie and decompresses no body, and it bounds every answer in size and in time.
Messages are framed by RFC 9112.
"""

import asyncio
import ssl
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, SOCK_STREAM
from typing import Any

from chargegate import __version__
from chargegate.http1.exchange import (
    AddressBlocked,
    BadAnswer,
    CallFailed,
    ConnectFailed,
    Connection,
    Response,
    TimedOut,
)
from chargegate.model import CallbackTarget, IPAddress


class HttpClient:
    """Posts JSON. It is for use on one event loop; the caller limits how many posts run at once.

    It keeps at most ``max_connections`` connections, idle ones for at most ``idle_s`` seconds; posts beyond that
    number still run. ``check_address`` raises ``AddressBlocked`` for an address that may not be dialled.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        idle_s: float = 4.0,
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
        self._open: set[Connection] = set()
        self._idle: dict[str, list[Connection]] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()  # kept, because asking for it is a system call before Python 3.12

    async def post(self, target: CallbackTarget, headers: bytes, body: bytes, timeout_s: float) -> Response:
        """Send ``body`` with ``headers`` (lines that each end in CRLF) and wait for the answer, whatever its status.

        ``timeout_s`` covers everything from resolving the name on. The request is sent once. Where a connection that
        was kept alive turns out to be closed, the receiver may have read the request all the same, so that the caller
        decides whether to send it again. Raises ``CallFailed``.
        """
        deadline = self._loop.time() + timeout_s
        head = f"POST {target.path} HTTP/1.1\r\nhost: {target.authority}\r\n{self._fixed}{len(body)}\r\n"
        request = b"".join((head.encode(), headers, b"\r\n", body))
        connection = self._take(target.destination) or await self._connect(target, deadline)
        try:
            outcome = await connection.send(request, deadline)
        finally:
            self._release(connection)
        if isinstance(outcome, Response):
            return outcome
        raise outcome or BadAnswer("closed_early")

    async def close(self) -> None:
        """Close every idle connection now, and each other one as soon as its answer is there."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [connection for idle in self._idle.values() for connection in idle]:
            self._drop(connection)
        self._idle.clear()
        if self._closing:
            await asyncio.wait(list(self._closing))

    def _take(self, destination: str) -> "Connection | None":
        idle = self._idle.get(destination)
        while idle:
            connection = idle.pop()
            if not connection.closing:
                return connection
        return None

    def _release(self, connection: "Connection") -> None:
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

    def _oldest_idle(self) -> "Connection | None":
        return min((idle[0] for idle in self._idle.values() if idle), key=lambda c: c.idle_since, default=None)

    def _drop(self, connection: "Connection") -> None:
        self._open.discard(connection)
        connection.abort()
        lost = connection.lost
        if lost is not None and not lost.done():
            self._closing.add(lost)
            lost.add_done_callback(self._closing.discard)

    def _forget(self, connection: "Connection") -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.destination)
        if idle and connection in idle:
            idle.remove(connection)

    async def _connect(self, target: CallbackTarget, deadline: float) -> "Connection":
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

    async def _dial(self, target: CallbackTarget, address: IPAddress, deadline: float) -> "Connection":
        if len(self._open) >= self._max_connections and (oldest := self._oldest_idle()):
            self._idle[oldest.destination].remove(oldest)
            self._drop(oldest)
        tls = target.scheme == "https"
        if tls and self._ssl_context is None:
            self._ssl_context = tls_context()
        connection = Connection(self._loop, target.destination, self._max_answer, self._forget)
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
            # `_drop` would wait for `connection_lost`, which a loop need not call for a dial that was given up.
            self._open.discard(connection)
            connection.abort()
            if isinstance(error, (OSError, ValueError)):
                raise _connect_failure(error) from None
            raise
        return connection


def tls_context() -> ssl.SSLContext:
    """A context that trusts the system's authorities and checks names, alike on every interpreter.

    Python 3.13 set two more flags by default. Its strict mode refuses certificates that are not written as RFC 5280
    asks, such as those of an authority without a key usage extension, which is what ``openssl req -x509`` makes. A
    receiver with such a private authority is as safe as before, and Python 3.11 and 3.12 accept it. The other flag lets
    an intermediate authority be trusted without its root.
    """
    context = ssl.create_default_context()
    context.verify_flags = (context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
    return context


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
    """The address in a resolver's answer; one with a zone, or of another family, is refused."""
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
