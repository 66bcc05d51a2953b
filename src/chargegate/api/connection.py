"""One HTTP/1.1 connection: uvicorn's protocol, with limits on what a client may keep waiting."""

import asyncio
import math
from typing import Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from chargegate.api.errors import Refused, unavailable
from chargegate.api.headers import SECURITY, trace_id
from chargegate.observe import log

MAX_HEAD: Final = 32 * 1024
MAX_MESSAGE: Final = 2 * 1024 * 1024
MAX_DISCARDED: Final = 1024 * 1024
MAX_TURNED_AWAY: Final = 32  # at once, with an answer that they surely get

_PIECE: Final = 16 * 1024
_LINGER_S: Final = 2.0
_NOTE_S: Final = 1.0
_HEAD_TOO_LARGE: Final = f"The request line and headers must be at most {MAX_HEAD} bytes."


class State(ServerState):
    """What the connections of one server share. ``deserted`` is set when the last one is lost. More than ``limit``
    connections are not served; those beyond it are ``turned_away``."""

    def __init__(self) -> None:
        super().__init__()
        self.deserted = asyncio.Event()
        self.limit: float = math.inf
        self.turned_away: set[Connection] = set()
        self.next_note = 0.0


class Connection(HttpToolsProtocol):
    """One connection.

    It is watched whenever the client is to send: while a head (request line and headers) is under way, then a body,
    then what is left of a body after an answer came early (read and thrown away, so that the client gets to see the
    answer). Each of these has a limit in bytes and in time.
    """

    def __init__(self, config: Config, state: State, timeout_s: float) -> None:
        super().__init__(config, state, {})
        self._state = state
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._in_message = False
        self._pending = 0  # bytes since the head, the body or the discarding began
        self._lingering = False
        self._surplus = False
        self._catching_up = False
        self._fault = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        if len(self._state.connections) - len(self._state.turned_away) > self._state.limit:
            self._turn_away()
        else:
            self._watch(0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._state.turned_away.discard(self)
        super().connection_lost(exc)
        if not self.connections:
            self._state.deserted.set()

    def eof_received(self) -> bool:  # type: ignore[override]  # True keeps our side open, by asyncio.Protocol
        """A client that only closed its own side still gets the answer that is under way."""
        if self._answering:
            self.cycle.keep_alive = False
        return self._answering

    def data_received(self, data: bytes) -> None:
        if len(data) > _PIECE:
            for start in range(0, len(data), _PIECE):
                if not self.transport.is_closing():
                    self.data_received(data[start : start + _PIECE])
            return
        if self._lingering:
            self._watch(len(data))
            return
        if self._surplus:
            self._say_no_room()
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            self.data_received(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(400, "validation_error", self._fault or "This is not valid HTTP/1.1.")
            return
        if self._in_message or (self._idle and self.timeout_keep_alive_task is None):
            self._watch(len(data))

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def _in_body(self) -> bool:
        return self._in_message and not self._in_head

    @property
    def _answering(self) -> bool:
        """A request that has arrived whole is being answered, whatever came after it."""
        return not self._idle and not self._in_body

    @property
    def _discarding(self) -> bool:
        return self._in_body and self.cycle.response_complete

    def _watch(self, size: int) -> None:
        self._pending += size
        if self._lingering or self._discarding:
            if self._pending > MAX_DISCARDED:
                self.transport.close()
        elif self._in_head or not self._in_message:
            if self._pending > MAX_HEAD + _PIECE:
                self._refuse(400, "validation_error", _HEAD_TOO_LARGE)
                return
        elif self._pending > MAX_MESSAGE:
            self._refuse(413, "payload_too_large", "The request is too large.")
            return
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self._timeout_s, self._expired)

    def _unwatch(self) -> None:
        self._pending = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        self._timer = None
        if self._in_message and not self._lingering and not self._discarding:
            self._refuse(400, "validation_error", "The request did not arrive in time.")
        else:
            self.transport.close()

    def _ignore_upgrade(self) -> None:
        """What is not wanted is ignored (RFC 9110, 7.8), but the parser has skipped the body, which is still HTTP.

        Java's client asks for h2c with its first request. A new parser is brought to where that body begins.
        """
        if framing := self._framing():
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._catching_up = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % framing)
            self._catching_up = False

    def _framing(self) -> bytes:
        """The header line that announces a body, if there is one."""
        for name, value in self.headers:
            if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
                return b"%b: %b\r\n" % (name, value)
        return b""

    def on_message_begin(self) -> None:
        if self._catching_up:
            return
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._pending = 0

    def on_headers_complete(self) -> None:
        if self._catching_up:
            return
        if self._pending > MAX_HEAD - _PIECE and self._head_size() > MAX_HEAD:
            self._fault = _HEAD_TOO_LARGE
            raise ValueError(self._fault)
        if not self._names_host() and self.parser.get_http_version() == "1.1":
            self._fault = "A request needs a Host header."
            raise ValueError(self._fault)
        super().on_headers_complete()
        if not self.cycle.keep_alive:
            self.cycle.transport = _LastAnswer(self)  # type: ignore[assignment]  # as much of a transport as it uses
        self._in_head = False
        self._unwatch()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and self._framing():
            return
        discarded = self._discarding
        super().on_message_complete()
        self._in_message = False
        self._unwatch()
        if discarded:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._lingering:
            self._unset_keepalive_if_required()
        elif self._discarding and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._unwatch()
            if self.expect_100_continue and not self.cycle.body:
                # The client may now send this body or not (RFC 9110, 10.1.1): what follows could not be told apart.
                self._linger()
            else:
                self._watch(0)

    def _names_host(self) -> bool:
        """RFC 9112, 3.2. Most clients send it first."""
        return bool(self.headers) and (
            self.headers[0][0] == b"host" or any(name == b"host" for name, _ in self.headers)
        )

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer what is no acceptable request, and end the connection. Where an earlier one is still being answered,
        that answer is the last."""
        self._unwatch()
        cycle = self.cycle
        if self._answering:
            cycle.keep_alive = False
            self._lingering = True
            return
        if self._in_body:
            if self.pipeline or cycle.response_started:
                self.transport.close()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(self._answer(Refused(status, code, message)))
        self._linger()

    def _turn_away(self) -> None:
        """Answer the first bytes that come: some clients throw away an answer that was there before their request."""
        state, now = self._state, self.loop.time()
        state.turned_away.add(self)
        self._surplus = True
        if now >= state.next_note:
            state.next_note = now + _NOTE_S
            log.warning("connections are refused, too many are open", limit=state.limit)
        if len(state.turned_away) > MAX_TURNED_AWAY:
            self._say_no_room()
            self.transport.close()
        else:
            self._timer = self.loop.call_later(min(_LINGER_S, self._timeout_s), self.transport.close)

    def _say_no_room(self) -> None:
        self.transport.write(self._answer(unavailable("Too many connections are open.")))
        self._linger()

    def _answer(self, refused: Refused) -> bytes:
        body = refused.body()
        headers: list[tuple[bytes, bytes]] = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *SECURITY,
            (b"x-request-id", trace_id(dict(self.headers or ()))),
            *((name.encode(), value.encode()) for name, value in refused.headers.items()),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return b"%b%b\r\n%b" % (STATUS_LINE[refused.status], lines, body)

    def end(self) -> None:
        """Close after an answer, unless the client is still sending."""
        if self._in_body:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Close our side, and read on for a while: a client that is still sending would lose the answer to a reset."""
        self._unwatch()
        self._lingering = True
        if self.transport.is_closing():
            return
        self.transport.write_eof()
        self._timer = self.loop.call_later(min(_LINGER_S, self._timeout_s), self.transport.close)


class _LastAnswer:
    """The transport as the answer to a connection's last request sees it."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.end
