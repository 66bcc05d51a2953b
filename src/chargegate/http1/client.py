"""The outgoing HTTP/1.1 client: one POST, one answer, on a pool of connections that are kept alive.

It is made for URLs that are not trusted. The address that is dialled is the one that was checked. The client follows
no redirect, uses no proxy, keeps no cookie and decompresses no body, and it bounds every answer in size and in time.
"""

import asyncio
import errno
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from chargegate import __version__
from chargegate.http1.connection import (
    NO_SOCKET,
    BadAnswer,
    CallFailed,
    ConnectFailed,
    Connection,
    NameNeeded,
    NotSent,
    Outcome,
    Response,
    TimedOut,
)
from chargegate.http1.names import Resolver
from chargegate.http1.tls import Tls, tls_context
from chargegate.model import CallbackTarget, IPAddress

MOST_DIALS: Final = 6
"""Addresses of one name that are dialled at once."""

_NAME_S: Final = 2.0  # a question that takes longer goes on, and its answer is there for the next attempt
_NEXT_ADDRESS_S: Final = 0.25  # RFC 8305, 5: the connection attempt delay
_OUR_FAULT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_PORT_LEFT: Final = (errno.EADDRNOTAVAIL, 4)  # with IPv6 it may also mean that this machine has none


class HttpClient:
    """Posts bodies of one ``content_type``. It is for use on one event loop; the caller limits how many run at once.

    It keeps at most ``max_connections`` connections, idle ones for at most ``idle_s`` seconds; posts beyond that
    number still run. ``check_address`` raises ``AddressBlocked`` for an address that may not be dialled.
    ``name_servers``: see ``Resolver``.
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
        content_type: str = "application/json",
        name_servers: Sequence[str] = (),
    ) -> None:
        self._max_connections = max_connections
        self._idle_s = idle_s
        self._max_answer = max_answer_bytes
        self._check_address = check_address
        self._ssl_context = ssl_context
        self._fixed = f"user-agent: {user_agent}\r\ncontent-type: {content_type}\r\ncontent-length: "
        self._open: set[Connection] = set()
        self._idle: dict[str, list[Connection]] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()  # kept, because asking for it is a system call before Python 3.12
        self._resolver = Resolver(name_servers)

    def known(self, host: str) -> Sequence[IPAddress] | CallFailed | None:
        """The addresses of a name, or why it has none, where a look-up of late said so. None: ``resolve`` it."""
        return self._resolver.known(host)

    async def resolve(self, host: str) -> Sequence[IPAddress]:
        """The addresses of a name. See ``Resolver.resolve``."""
        return await self._resolver.resolve(host)

    def keeps(self, destination: str) -> bool:
        """Whether a connection to the destination is kept for the next post."""
        return bool(self._idle.get(destination))

    async def post(
        self,
        target: CallbackTarget,
        headers: bytes,
        body: bytes,
        timeout_s: float,
        addresses: Sequence[IPAddress] | None = None,
    ) -> Response:
        """Send ``body`` with ``headers`` (lines that each end in CRLF) and wait for the answer, whatever its status.

        ``addresses``: those that may be dialled, once they are checked. Without any of them only a kept connection is
        used, and ``NameNeeded`` is raised where there is none. With None the name is resolved here.

        ``timeout_s`` covers everything from resolving the name on. Where a connection that was kept alive ends without
        a byte of an answer, the receiver had closed it, as a rule, before it saw the request. The request is then sent
        again at once, on a new connection. Raises ``CallFailed``; ``NotSent`` where the name is not known after two
        seconds.
        """
        deadline = self._loop.time() + timeout_s
        request = self._request(target, headers, body)
        connection = self._take(target.destination)
        if connection is not None:
            try:
                outcome = await connection.send(request, deadline)
            finally:
                self._release(connection)
            if outcome is not None and type(outcome) is not ConnectFailed:
                return _given(outcome)
        if addresses is None:
            addresses = [target.literal] if target.literal else await self._resolve(target.host, deadline)
        connection = await self._connect(target, addresses, deadline)
        try:
            outcome = await connection.send(request, deadline)
        finally:
            self._release(connection)
        return _given(outcome)

    def post_kept(
        self, target: CallbackTarget, headers: bytes, body: bytes, timeout_s: float, done: Callable[[Outcome], None]
    ) -> Callable[[], None] | None:
        """As ``post`` on a connection that was kept, for one that is no coroutine. ``done`` is called with the answer,
        the failure, or None where the connection ended without a byte of an answer: then it is to be posted again.

        What is returned gives the post up. None: nothing is sent, because no connection without TLS is kept.
        """
        idle = self._idle.get(target.destination)
        if not idle or idle[-1].closing or idle[-1].encrypted:
            return None
        connection = idle.pop()

        def ended(outcome: Outcome) -> None:
            self._release(connection)
            done(None if type(outcome) is ConnectFailed else outcome)

        connection.send_then(self._request(target, headers, body), self._loop.time() + timeout_s, ended)
        return connection.abort

    def _request(self, target: CallbackTarget, headers: bytes, body: bytes) -> bytes:
        head = f"POST {target.path} HTTP/1.1\r\nhost: {target.authority}\r\n{self._fixed}{len(body)}\r\n"
        return b"".join((head.encode(), headers, b"\r\n", body))

    async def close(self) -> None:
        """Close every idle connection now, and each other one as soon as its answer is there."""
        self._closed = True
        self._resolver.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [connection for idle in self._idle.values() for connection in idle]:
            self._drop(connection)
        self._idle.clear()
        if self._closing:
            await asyncio.wait(list(self._closing))

    def _take(self, destination: str) -> Connection | None:
        idle = self._idle.get(destination)
        while idle:
            connection = idle.pop()
            if not connection.closing:
                return connection
        return None

    def _release(self, connection: Connection) -> None:
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

    def _oldest_idle(self) -> Connection | None:
        return min((idle[0] for idle in self._idle.values() if idle), key=lambda c: c.idle_since, default=None)

    def _drop(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.abort()
        lost = connection.lost
        if lost is not None and not lost.done():
            self._closing.add(lost)
            lost.add_done_callback(self._closing.discard)

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.destination)
        if idle and connection in idle:
            idle.remove(connection)

    async def _connect(self, target: CallbackTarget, addresses: Sequence[IPAddress], deadline: float) -> Connection:
        """Dial the target, once all its addresses are checked."""
        if not addresses:
            raise NameNeeded("name_not_resolved")
        if self._check_address is not None:
            for address in addresses:
                self._check_address(address)
        if len(addresses) == 1:
            return await self._dial(target, addresses[0], deadline)
        return await self._race(target, addresses, deadline)

    async def _resolve(self, host: str, deadline: float) -> Sequence[IPAddress]:
        try:
            async with asyncio.timeout_at(min(deadline, self._loop.time() + _NAME_S)):
                return await self._resolver.resolve(host)
        except TimeoutError:
            raise NotSent("name_not_resolved") from None

    async def _race(self, target: CallbackTarget, addresses: Sequence[IPAddress], deadline: float) -> Connection:
        """The first of several addresses to answer (RFC 8305): each next one is dialled when the one before failed, or
        has not answered in a quarter of a second."""
        dialling: set[asyncio.Task[Connection]] = set()
        failure: CallFailed | None = None
        waiting = list(reversed(addresses))
        try:
            while waiting or dialling:
                if waiting and len(dialling) < MOST_DIALS:
                    dialling.add(self._loop.create_task(self._dial(target, waiting.pop(), deadline)))
                more_may_come = waiting and len(dialling) < MOST_DIALS
                done, dialling = await asyncio.wait(
                    dialling, timeout=_NEXT_ADDRESS_S if more_may_come else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    error = task.exception()
                    if not isinstance(error, CallFailed):
                        dialling |= done - {task}
                        return task.result()
                    if failure is None or not isinstance(error, NotSent):
                        failure = error
        finally:
            for task in dialling:
                task.cancel()
                task.add_done_callback(self._too_late)
        raise failure or ConnectFailed("connect_failed")

    def _too_late(self, task: "asyncio.Task[Connection]") -> None:
        """Another address was quicker."""
        if not task.cancelled() and task.exception() is None:
            self._drop(task.result())

    async def _dial(self, target: CallbackTarget, address: IPAddress, deadline: float) -> Connection:
        if len(self._open) >= self._max_connections and (oldest := self._oldest_idle()):
            self._idle[oldest.destination].remove(oldest)
            self._drop(oldest)
        tls = None
        if target.scheme == "https":
            if self._ssl_context is None:
                self._ssl_context = tls_context()
            tls = Tls(self._ssl_context, target.host.removesuffix("."))
        connection = Connection(self._loop, target.destination, self._max_answer, self._forget, tls)
        self._open.add(connection)
        try:
            async with asyncio.timeout_at(deadline):
                await self._loop.create_connection(lambda: connection, str(address), target.port)
                if tls is not None:
                    await connection.ready
        except BaseException as error:
            # `_drop` would wait for `connection_lost`, which a loop need not call for a dial that was given up.
            self._open.discard(connection)
            connection.abort()
            if isinstance(error, (OSError, ValueError)):
                raise _connect_failure(error, address) from None
            raise
        return connection


def _given(outcome: Outcome) -> Response:
    """The answer, or the failure raised."""
    if isinstance(outcome, Response):
        return outcome
    raise outcome or BadAnswer("closed_early")


def _connect_failure(error: OSError | ValueError, address: IPAddress) -> CallFailed:
    if isinstance(error, TimeoutError):
        return TimedOut("timeout")
    if isinstance(error, ConnectionRefusedError):
        return ConnectFailed("connection_refused")
    if isinstance(error, OSError) and (error.errno in _OUR_FAULT or (error.errno, address.version) == _NO_PORT_LEFT):
        return NotSent(NO_SOCKET)
    return ConnectFailed("connect_failed")
