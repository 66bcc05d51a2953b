"""One HTTP/1.1 connection of a client: heads are found and bounded here, and parsed by httptools.

One request is parsed at a time. What a client sends ahead of the answer stays unparsed, and past 64 KiB it stays in the
network, because reading is paused. So a pipeline costs no more memory than one request, and rubbish behind a request
does not cost that request its answer.
"""

import asyncio
import enum
import re
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import unquote_to_bytes

import httptools
from starlette.types import Scope

from chargegate.api.errors import Refused, unavailable
from chargegate.api.exchange import MAX_DISCARDED, Exchange

if TYPE_CHECKING:
    from chargegate.api.server import Server

MAX_HEAD: Final = 32 * 1024
MAX_BODY: Final = 2 * 1024 * 1024  # as it comes, with the framing of chunks
KEEP_ALIVE_S: Final = 75.0  # longer than the 60 s of most load balancers, so that they close first

_LINGER_S: Final = 2.0
_AHEAD: Final = 64 * 1024
_TOO_LARGE_HEAD: Final = f"The request line and headers must be at most {MAX_HEAD} bytes."
_NOT_HTTP: Final = "This is not valid HTTP/1.1."
_TOKEN: Final = rb"[!#-'*+.0-9A-Z^-z|~-]{1,32}"
_request_line = re.compile(_TOKEN + rb" [!-~]+ HTTP/1\.[01]\r\n").match
_line_so_far = re.compile(_TOKEN + rb"(?: [!-~]*(?: [!-~]*)?)?\r?").fullmatch


class State(enum.Enum):
    """What a connection waits for."""

    IDLE = enum.auto()  # the first byte of a request
    HEAD = enum.auto()  # the rest of a head
    BODY = enum.auto()  # the rest of a body, whose answer may be under way already
    ANSWER = enum.auto()  # the application; the server sets it no limit of time, it has its own
    DISCARDING = enum.auto()  # the rest of a body after its answer
    LINGERING = enum.auto()  # the client to close: our side is, and what still comes is thrown away
    CLOSED = enum.auto()


class Connection(asyncio.Protocol):
    """One connection, and the exchange on it, if any. Each state has its limit of bytes and of time."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.client: tuple[str, int] | None = None
        self._local: tuple[str, int] | None = None
        self._state = State.IDLE
        self._turned_away = False
        self._received = bytearray()  # and not parsed yet
        self._searched = 0  # there is no end of a head before this place
        self._counted = 0  # bytes of the body, of what is discarded, or of what comes while lingering
        self._paused = False
        self._client_done = False
        self._exchange: Exchange | None = None
        self._deadline = 0.0  # 0: there is none
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.blocked: asyncio.Event | None = None
        """Set once the client has read enough; None while nothing waits for that."""

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.client = _address(transport.get_extra_info("peername"))
        self._local = _address(transport.get_extra_info("sockname"))
        self._turned_away = not self._server.admit(self)
        if self._turned_away:
            if self._server.too_many_turned_away:
                self._say_no_room()
                self._transport.close()
            else:
                self._limit(min(_LINGER_S, self._server.timeout_s))
        else:
            self._limit(self._server.timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self._state = State.CLOSED
        self._deadline = 0.0
        if self._timer is not None:
            self._timer.cancel()
        if self._exchange is not None:
            self._exchange.disconnected()
        self._unblock()
        self._received.clear()
        self._server.forget(self)

    def eof_received(self) -> bool:
        """A client that only closed its own side still gets the answer that is under way."""
        self._client_done = True
        return self._state is State.ANSWER

    def pause_writing(self) -> None:
        """The client does not read what it asked for. It has as long as a request may take."""
        self.blocked = asyncio.Event()
        self._limit(self._server.timeout_s)

    def resume_writing(self) -> None:
        self._unblock()
        if self._state is State.ANSWER:
            self._deadline = 0.0

    def _unblock(self) -> None:
        blocked, self.blocked = self.blocked, None
        if blocked is not None:
            blocked.set()

    def data_received(self, data: bytes) -> None:
        if self._state is State.LINGERING:
            self._counted += len(data)
            if self._counted > MAX_DISCARDED:
                self._transport.close()
        elif self._turned_away:
            self._say_no_room()
        else:
            self._received += data
            self._advance()

    # From bytes to an exchange

    def _advance(self) -> None:
        """Go on with what was received, as far as the state allows."""
        while self._received:
            match self._state:
                case State.IDLE | State.HEAD:
                    if not self._take_head():
                        return
                case State.BODY | State.DISCARDING:
                    if not self._take_body():
                        return
                case _:
                    if len(self._received) > _AHEAD:
                        self._pause_reading()
                    return

    def _take_head(self) -> bool:
        """Begin an exchange if a whole head is there."""
        received = self._received
        if self._state is State.IDLE:
            while received.startswith(b"\r\n"):  # RFC 9112, 2.2
                del received[:2]
            if not received or received == b"\r":
                return False
            self._state = State.HEAD
            self._limit(self._server.timeout_s)
        end = received.find(b"\r\n\r\n", max(0, self._searched - 3))
        self._searched = len(received)
        if end > MAX_HEAD - 4 or (end < 0 and len(received) > MAX_HEAD):
            self._refuse(400, _TOO_LARGE_HEAD)
            return False
        line = received.find(b"\r\n", 0, MAX_HEAD)
        if not (_request_line(received) if line >= 0 else _line_so_far(received)):
            self._refuse(400, _NOT_HTTP)
            return False
        if end < 0:
            return False
        head = bytes(received[: end + 4])
        del received[: end + 4]
        self._searched = 0
        return self._begin(head)

    def _begin(self, head: bytes) -> bool:
        exchange = self._exchange = Exchange(self)
        # A parser for each head: it never sees a body, and so never the request behind it.
        parser = httptools.HttpRequestParser(exchange)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # an upgrade that is not wanted is ignored (RFC 9110, 7.8); Java's client asks for one
        except httptools.HttpParserError:
            exchange.fault = exchange.fault or _NOT_HTTP
        exchange.head_complete(parser.get_method(), parser.get_http_version(), keep_alive=parser.should_keep_alive())
        if exchange.fault:
            self._refuse(400, exchange.fault)
            return False
        self._counted = 0
        if exchange.complete:
            self._await_answer()
        else:
            self._state = State.BODY
            self._limit(self._server.timeout_s)
        self._server.start_exchange(self._scope(exchange), exchange, self)
        return True

    def _take_body(self) -> bool:
        exchange = self._exchange
        if exchange is None:
            return False
        if self._state is State.BODY and exchange.buffered > _AHEAD:
            self._pause_reading()
            return False
        try:
            taken = exchange.body_received(self._received)
        except ValueError:
            self._refuse(400, _NOT_HTTP)
            return False
        self._counted += taken
        if self._state is State.BODY:
            if self._counted > MAX_BODY:
                self._refuse(413, "The request is too large.")
                return False
            if exchange.complete:
                self._await_answer()
        elif exchange.complete:
            self._await_next()
        elif self._counted > MAX_DISCARDED:
            self._transport.close()
            return False
        return taken > 0

    def _scope(self, exchange: Exchange) -> Scope:
        path, _, query = exchange.url.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": exchange.version,
            "scheme": self._server.scheme,
            "method": exchange.method,
            "root_path": "",
            "path": unquote_to_bytes(path).decode("utf-8", "replace") if b"%" in path else path.decode("ascii"),
            "raw_path": path,
            "query_string": query,
            "headers": exchange.headers,
            "client": self.client,
            "server": self._local,
        }

    # From an answer to the next exchange

    @property
    def date(self) -> bytes:
        """The Date header's line."""
        return self._server.date

    @property
    def stopping(self) -> bool:
        """Whether this exchange is to be the connection's last."""
        return self._server.stopping

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def read_on(self) -> None:
        """The application has taken what there was of a body, and waits for more."""
        if self._paused and self._state is State.BODY:
            self._resume_reading()
            asyncio.get_running_loop().call_soon(self._advance)

    def answered(self) -> None:
        """The application has given its whole answer."""
        exchange = self._exchange
        if exchange is None or self._transport.is_closing() or self._state is State.LINGERING:
            return
        if self._state is State.BODY:
            if exchange.keep_alive:
                self._state = State.DISCARDING
                self._counted = 0
                self._limit(self._server.timeout_s)
                self._resume_reading()
                asyncio.get_running_loop().call_soon(self._advance)
            else:
                self._linger()
        elif exchange.keep_alive and not self._client_done:
            self._await_next()
        else:
            self._transport.close()

    def _await_answer(self) -> None:
        self._state = State.ANSWER
        self._deadline = 0.0

    def _await_next(self) -> None:
        self._exchange = None
        self._state = State.IDLE
        if self._server.stopping:
            self._transport.close()
            return
        self._limit(KEEP_ALIVE_S)
        self._resume_reading()
        if self._received:
            asyncio.get_running_loop().call_soon(self._advance)

    # The end

    def shutdown(self) -> None:
        """The server stops: the answer under way is the last, and without one the connection is closed."""
        if self._exchange is None or self._state is State.DISCARDING:
            self._transport.close()
        else:
            self._exchange.keep_alive = False

    def abort(self) -> None:
        self._transport.abort()

    def unanswered(self) -> None:
        """The application ended without an answer: the client left, was refused here, or met a defect."""
        if self._state in (State.BODY, State.ANSWER):
            self._transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is no acceptable request, and end the connection."""
        exchange = self._exchange
        if exchange is not None:
            exchange.disconnected()
            if exchange.started:
                self._transport.close()
                return
        code = "payload_too_large" if status == 413 else "validation_error"
        self.write(self._server.refusal(Refused(status, code, message), exchange.headers if exchange else []))
        self._linger()

    def _say_no_room(self) -> None:
        """Answer the first bytes that come: some clients throw away an answer that was there before their request."""
        self.write(self._server.refusal(unavailable("Too many connections are open."), []))
        self._linger()

    def _linger(self) -> None:
        """Close our side, and read on for a while: a client that is still sending would lose the answer to a reset."""
        self._state = State.LINGERING
        self._received.clear()
        self._counted = 0
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._resume_reading()
            self._limit(min(_LINGER_S, self._server.timeout_s))
        else:  # TLS cannot close one side
            self._transport.close()

    # Reading and time

    def _pause_reading(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _limit(self, seconds: float) -> None:
        """What is waited for must have come by then. Setting a timer costs more than the rest of this method, so one
        that runs is left to run, and is set anew when it ends too early."""
        loop = self._server.loop
        self._deadline = loop.time() + seconds
        if self._timer is None or self._deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = self._deadline
            self._timer = loop.call_at(self._deadline, self._time_is_over)

    def _time_is_over(self) -> None:
        self._timer = None
        if not self._deadline:
            return
        loop = self._server.loop
        if self._deadline > loop.time():
            self._timer_at = self._deadline
            self._timer = loop.call_at(self._deadline, self._time_is_over)
        elif self.blocked is not None:
            self._transport.abort()
        elif self._state in (State.HEAD, State.BODY) and not self._turned_away:
            self._refuse(400, "The request did not arrive in time.")
        else:
            self._transport.close()


def _address(name: object) -> tuple[str, int] | None:
    """Host and port of a socket's name."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) and len(name) >= 2 else None
