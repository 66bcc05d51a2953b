"""One HTTP/1.1 connection of a client: what it sends becomes one exchange after another.

One request is parsed at a time. What a client sends ahead of the answer stays unparsed, and past 64 KiB it stays in the
network, because reading is paused. So a pipeline costs no more memory than one request, and rubbish behind a request
does not cost that request its answer.
"""

import asyncio
import enum
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from chargegate.api.deadline import Deadline
from chargegate.api.direct import Direct
from chargegate.api.errors import Refused, unavailable
from chargegate.api.exchange import MAX_DISCARDED, Exchange
from chargegate.api.heads import NOT_HTTP, HeadFinder

if TYPE_CHECKING:
    from chargegate.api.server import Server

MAX_BODY: Final = 2 * 1024 * 1024  # as it comes, with the framing of chunks
KEEP_ALIVE_S: Final = 75.0  # longer than the 60 s of most load balancers, so that they close first

_LINGER_S: Final = 2.0
_AHEAD: Final = 64 * 1024


class State(enum.Enum):
    """What a connection waits for."""

    IDLE = enum.auto()  # the first byte of a request
    HEAD = enum.auto()  # the rest of a head
    BODY = enum.auto()  # the rest of a body, whose answer may be under way already
    ANSWER = enum.auto()  # the application; the server sets it no limit of time, it has its own
    DISCARDING = enum.auto()  # the rest of a body after its answer
    LINGERING = enum.auto()  # the client to close: our side is, and what still comes is thrown away
    CLOSING = enum.auto()  # the client to read the rest of what was written
    CLOSED = enum.auto()


_ENDED: Final = (State.LINGERING, State.CLOSING, State.CLOSED)
# Every request needs these, and Python 3.11 looks them up slowly.
_IDLE, _BODY, _ANSWER, _LINGERING, _CLOSING = State.IDLE, State.BODY, State.ANSWER, State.LINGERING, State.CLOSING


class Connection(asyncio.Protocol):
    """One connection, and the exchange on it, if any. Each state has its limit of bytes and of time."""

    __slots__ = (
        "_answered_blocked",
        "_client_done",
        "_counted",
        "_deadline",
        "_exchange",
        "_finder",
        "_local",
        "_paused",
        "_received",
        "_server",
        "_state",
        "_transport",
        "_turned_away",
        "blocked",
        "client",
    )

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.client: tuple[str, int] | None = None
        self._local: tuple[str, int] | None = None
        self._state = State.IDLE
        self._turned_away = False
        self._received = bytearray()  # and not parsed yet
        self._finder = HeadFinder()
        self._counted = 0  # bytes of the body, of what is discarded, or of what comes while lingering
        self._paused = False
        self._client_done = False
        self._answered_blocked = False
        self._exchange: Exchange | None = None
        self._deadline = Deadline(server.loop, self._time_is_over)
        self.blocked: asyncio.Event | None = None
        """Set once the client has read enough; None while nothing waits for that."""

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.client = _address(transport.get_extra_info("peername"))
        self._local = _address(transport.get_extra_info("sockname"))
        self._turned_away = not self._server.admit(self)
        if not self._turned_away:
            self._deadline.set(self._server.timeout_s)
        elif self._server.too_many_turned_away:
            self._say_no_room()
            self._close()
        else:
            self._deadline.set(min(_LINGER_S, self._server.timeout_s))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self._state = State.CLOSED
        self._deadline.end()
        if self._exchange is not None:
            self._exchange.disconnected()
            self._exchange = None
        self._unblock()
        self._received.clear()
        self._server.forget(self)

    def eof_received(self) -> bool:
        """A client that only closed its own side still gets the answers to what it sent whole."""
        self._client_done = True
        self._advance()
        return self._state is State.ANSWER or self._paused or self._state is State.CLOSING

    def pause_writing(self) -> None:
        """The client does not read what it asked for. It has as long as a request may take."""
        self.blocked = asyncio.Event()
        self._deadline.set(self._server.timeout_s)

    def resume_writing(self) -> None:
        self._unblock()
        if self._state is State.ANSWER:
            self._deadline.clear()
        if self._answered_blocked:
            self._answered_blocked = False
            self.answered()

    def _unblock(self) -> None:
        blocked, self.blocked = self.blocked, None
        if blocked is not None:
            blocked.set()

    def data_received(self, data: bytes) -> None:
        if self._state is _LINGERING:
            self._counted += len(data)
            if self._counted > MAX_DISCARDED:
                self._close()
        elif self._state is _CLOSING:
            pass
        elif self._turned_away:
            self._say_no_room()
        elif self._state is not _IDLE or self._received or not self._take_common(data):
            self._received += data
            self._advance()

    # From bytes to an exchange

    def _advance(self) -> None:
        """Go on with what was received, as far as the state allows."""
        while self._received and self._take():
            pass
        if self._paused and len(self._received) <= _AHEAD and not self._is_body_ahead():
            self._resume_reading()
        if self._client_done and not self._paused and self._state in (State.IDLE, State.HEAD, State.BODY):
            self._close()  # the rest will never come

    def _is_body_ahead(self) -> bool:
        """Whether the application has yet to take what came of a body."""
        return self._state is State.BODY and self._exchange is not None and self._exchange.buffered > _AHEAD

    def _take(self) -> bool:
        """Take a part of what was received. False if nothing more can be taken now."""
        match self._state:
            case State.IDLE | State.HEAD:
                return self._take_head()
            case State.BODY | State.DISCARDING:
                return self._take_body()
            case _:
                if len(self._received) > _AHEAD:
                    self._pause_reading()
                return False

    def _take_common(self, data: bytes) -> bool:
        """Take a whole request to the hot route whose head was parsed before, as ``_begin`` would. False leaves it all
        to ``_advance``."""
        end = data.find(b"\r\n\r\n") + 4
        known = self._server.heads.get(data[:end])
        direct = self._server.direct
        if known is None or direct is None or known.length != len(data) - end:
            return False
        exchange = known.repeated(self)
        whole = direct.examine(exchange, data[end:], self.client)
        if whole is None:
            return False
        self._exchange = exchange
        self._accept(direct, whole, exchange)
        return True

    def _accept(self, direct: Direct, whole: Any, exchange: Exchange) -> None:
        exchange.remaining, exchange.complete = 0, True
        self._await_answer()
        direct.accept(whole)

    def _take_head(self) -> bool:
        """Begin an exchange if a whole head is there."""
        received = self._received
        if self._state is State.IDLE:
            while received.startswith(b"\r\n"):  # RFC 9112, 2.2
                del received[:2]
            if not received or received == b"\r":
                return False
            self._state = State.HEAD
            self._deadline.set(self._server.timeout_s)
        try:
            head = self._finder.take(received)
        except ValueError as error:
            self._refuse(400, str(error))
            return False
        return head is not None and self._begin(head)

    def _begin(self, head: bytes) -> bool:
        exchange = self._exchange = Exchange(self)
        # A parser for each head: it never sees a body, and so never the request behind it.
        parser = httptools.HttpRequestParser(exchange)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # an upgrade that is not wanted is ignored (RFC 9110, 7.8); Java's client asks for one
        except httptools.HttpParserError:
            exchange.fault = exchange.fault or NOT_HTTP
        exchange.head_complete(parser.get_method(), parser.get_http_version())
        if exchange.fault:
            self._refuse(400, exchange.fault)
            return False
        self._counted = 0
        direct = self._server.direct
        if direct is not None and 0 < exchange.remaining <= len(self._received) and direct.path == exchange.url:
            whole = direct.examine(exchange, bytes(self._received[: exchange.remaining]), self.client)
            if whole is not None:
                self._server.heads.keep(head, exchange)
                del self._received[: exchange.remaining]
                self._accept(direct, whole, exchange)
                return True
        if exchange.complete:
            self._await_answer()
        else:
            self._state = State.BODY
            self._deadline.set(self._server.timeout_s)
        self._server.start_exchange(exchange.scope(self._server.scheme, self.client, self._local), exchange, self)
        return True

    def _take_body(self) -> bool:
        exchange = self._exchange
        if exchange is None:
            return False
        if self._is_body_ahead():
            self._pause_reading()
            return False
        try:
            taken = exchange.body_received(self._received)
        except ValueError:
            self._refuse(400, NOT_HTTP)
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
            self._close()
            return False
        return taken > 0

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
        # An application may still answer what was refused here meanwhile.
        if self._state not in _ENDED and not self._transport.is_closing():
            self._transport.write(data)

    def read_on(self) -> None:
        """The application has taken what there was of a body, and waits for more."""
        if self._paused and self._state is State.BODY:
            self._server.loop.call_soon(self._advance)

    def answered(self) -> None:
        """The application has given its whole answer."""
        exchange = self._exchange
        if exchange is None or self._transport.is_closing() or self._state is _LINGERING:
            return
        if self.blocked is not None:  # the next request is read once the client has read this answer
            self._answered_blocked = True
            return
        if self._state is _BODY:
            if exchange.keep_alive:
                self._state = State.DISCARDING
                self._counted = 0
                self._deadline.set(self._server.timeout_s)
                self._server.loop.call_soon(self._advance)
            else:
                self._linger()
        elif exchange.keep_alive and (self._received or not self._client_done):
            self._await_next()
        elif self._received or self._paused:
            self._linger()
        else:
            self._close()

    def _await_answer(self) -> None:
        self._state = _ANSWER
        self._deadline.clear()

    def _await_next(self) -> None:
        self._exchange = None
        self._state = _IDLE
        if self._server.stopping:
            self._close()
            return
        self._deadline.set(KEEP_ALIVE_S)
        if self._received or self._paused:
            self._server.loop.call_soon(self._advance)

    # The end

    def shutdown(self) -> None:
        """The server stops: the answer under way is the last, and without one the connection is closed."""
        if self._exchange is None or self._state is State.DISCARDING:
            self._close()
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
                self._close()
                return
        code = "payload_too_large" if status == 413 else "validation_error"
        refused = Refused(status, code, message)
        headers = exchange.headers if exchange else []
        self.write(self._server.refusal(refused, headers, body_begun=self._state is State.BODY))
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
        if not self._transport.is_closing():
            self._transport.write_eof()
            self._resume_reading()
            self._deadline.set(min(_LINGER_S, self._server.timeout_s))

    def _close(self) -> None:
        """Close, once the client has read what was written, or its time for that is over."""
        if self._state is not State.CLOSED:
            self._state = State.CLOSING
            self._deadline.set(self._server.timeout_s)
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

    def _time_is_over(self) -> None:
        if self.blocked is not None or self._state is State.CLOSING:
            self._transport.abort()
        elif self._state in (State.HEAD, State.BODY) and not self._turned_away:
            self._refuse(400, "The request did not arrive in time.")
        else:
            self._close()


def _address(name: object) -> tuple[str, int] | None:
    """Host and port of a socket's name."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) and len(name) >= 2 else None
