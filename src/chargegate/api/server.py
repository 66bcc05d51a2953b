"""The HTTP/1.1 server: listens, counts connections, and keeps the limits that all of them share."""

import asyncio
import contextlib
import math
import os
import socket
import ssl
from collections import Counter
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from starlette.types import ASGIApp, Scope

from chargegate.api.access import network_of
from chargegate.api.connection import Connection
from chargegate.api.direct import Direct, Surface
from chargegate.api.errors import Refused
from chargegate.api.exchange import Exchange
from chargegate.api.headers import SECURITY, new_trace_id, trace_id
from chargegate.api.known_heads import KnownHeads
from chargegate.api.tls import Encrypted
from chargegate.model import MIN_DRIVER_TOKEN
from chargegate.observe import log

MAX_TURNED_AWAY: Final = 32  # at once, with an answer that they surely get

_NOTE_S: Final = 1.0


class Server:
    """Listens on one address. Signals, logging and the loop stay the caller's."""

    def __init__(self) -> None:
        self.timeout_s = 0.0
        """How long a head, a body, or a client that reads its answer may take."""
        self.scheme = "http"
        self.stopping = False
        self.date = b""
        self.direct: Direct | None = None
        self.heads = KnownHeads()
        self._app: ASGIApp | None = None
        self._tls: ssl.SSLContext | None = None
        self._max_connections = math.inf
        self._max_per_address = math.inf
        self._connections: set[Connection] = set()
        self._by_address: Counter[str] = Counter()
        self._turned_away: set[Connection] = set()
        self._next_note = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._deserted = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._clock: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port that is listened on, also where 0 was asked for."""
        if self._listener is None:
            raise RuntimeError("not started")
        return int(self._listener.sockets[0].getsockname()[1])

    @property
    def under_way(self) -> int:
        """How many requests the application is answering now."""
        return len(self._tasks)

    async def start(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        request_timeout_ms: int,
        max_connections: float = math.inf,
        max_connections_per_address: float = math.inf,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Return when connections are accepted.

        ``request_timeout_ms`` is how long the head of a request may take, then its body, and then a client that does
        not read its answer. A connection beyond ``max_connections``, or beyond ``max_connections_per_address`` of its
        address (of IPv6: its /64), is answered with 503 and closed. Raises ``OSError`` with a message for people if
        the address cannot be listened on.
        """
        self.loop = asyncio.get_running_loop()
        self._app = app
        self.direct = app.direct if isinstance(app, Surface) else None
        self.timeout_s = request_timeout_ms / 1000
        self._tls, self.scheme = tls, "http" if tls is None else "https"
        self._max_connections, self._max_per_address = max_connections, max_connections_per_address
        self._tick()

        def protocol() -> asyncio.Protocol:
            return Connection(self) if self._tls is None else Encrypted(Connection(self), self._tls)

        try:
            self._listener = await self.loop.create_server(protocol, host, port, backlog=2048)
        except OSError as error:
            self._stop_clock()
            reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
            raise OSError(f"cannot listen on {host} port {port}: {reason}") from None

    def use_tls(self, context: ssl.SSLContext) -> None:
        """Have connections that are made from now on use other certificates; those that are open keep theirs. Raises
        ``RuntimeError`` where this server speaks without TLS."""
        if self._tls is None:
            raise RuntimeError("started without TLS")
        self._tls = context

    # For connections

    def admit(self, connection: Connection) -> bool:
        """Count a new connection. False if there is no room for it."""
        self._connections.add(connection)
        address = network_of(connection.client)
        self._by_address[address] += 1
        if (
            len(self._connections) - len(self._turned_away) <= self._max_connections
            and self._by_address[address] <= self._max_per_address
        ):
            return True
        self._turned_away.add(connection)
        now = self.loop.time()
        if now >= self._next_note:
            self._next_note = now + _NOTE_S
            whose = "of one address" if self._by_address[address] > self._max_per_address else "in all"
            log.warning("connections are refused, too many are open", whose=whose)
        return False

    @property
    def too_many_turned_away(self) -> bool:
        """Whether those that are turned away are too many to wait for what they send."""
        return len(self._turned_away) > MAX_TURNED_AWAY

    def forget(self, connection: Connection) -> None:
        """The connection is lost."""
        self._connections.discard(connection)
        self._turned_away.discard(connection)
        address = network_of(connection.client)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
        if not self._connections:
            self._deserted.set()

    def start_exchange(self, scope: Scope, exchange: Exchange, connection: Connection) -> None:
        """Have the application answer."""
        task = self.loop.create_task(self._run(scope, exchange, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, scope: Scope, exchange: Exchange, connection: Connection) -> None:
        assert self._app is not None  # noqa: S101 - set before anybody connects
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection must not stay open for ever
            log.error("defect in the HTTP interface", error=type(error).__name__)
        if not exchange.answered:
            connection.unanswered()

    def refusal(self, refused: Refused, headers: Iterable[tuple[bytes, bytes]], *, body_begun: bool = False) -> bytes:
        """An answer that ends the connection, to a request with these headers. Where a body has begun, which may hold a
        token of any form, only a short trace id is echoed."""
        body = refused.body()
        trace = trace_id(dict(headers))
        if body_begun and len(trace) >= MIN_DRIVER_TOKEN:
            trace = new_trace_id()
        fields: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *SECURITY,
            (b"x-request-id", trace),
            *((name.encode(), value.encode()) for name, value in refused.headers.items()),
        ]
        line = f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}\r\n".encode()
        return b"".join((line, self.date, *(b"%b: %b\r\n" % field for field in fields), b"\r\n", body))

    # Time and the end

    def _tick(self) -> None:
        """The Date header (RFC 9110, 6.6.1), made once a second."""
        self.date = f"date: {formatdate(usegmt=True)}\r\n".encode()
        self._clock = self.loop.call_later(1, self._tick)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more, let answers under way finish for up to ``grace_s`` seconds, then cut the rest off."""
        if self._listener is None:
            return
        self.stopping = True
        self._listener.close()
        for connection in tuple(self._connections):
            connection.shutdown()
        if self._connections:
            self._deserted.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._deserted.wait(), grace_s)
        for connection in tuple(self._connections):
            connection.abort()
        await asyncio.sleep(0)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.wait_closed()
        self._stop_clock()
        self._listener = None
