"""One request on a connection and its answer, as ASGI sees them."""

import asyncio
import re
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

from starlette.types import Message, Scope

from chargegate.api.chunked import ChunkedBody

MAX_FIELDS: Final = 100
MAX_DISCARDED: Final = 1024 * 1024
"""What is read and thrown away of a body after its answer, so that the client gets to see the answer."""

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]+)(?::[0-9]{0,5})?").fullmatch
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#]+)").match
_MAX_PIECES: Final = 64  # of a body that waits to be read; more are joined, because each costs as much as 40 bytes
_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch


class Wire(Protocol):
    """The connection as an exchange uses it."""

    blocked: asyncio.Event | None
    """Set once the client has read enough of what was written; None while it reads."""

    @property
    def date(self) -> bytes:
        """The line of the Date header."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether this exchange is to be the connection's last."""
        ...

    def write(self, data: bytes) -> None: ...

    def read_on(self) -> None:
        """The application waits for more of the body."""

    def answered(self) -> None:
        """The answer is written."""


class Exchange:
    """A request whose head is being parsed, then its body, then its answer."""

    # Most exchanges repeat a head that was parsed before, and change few of these.
    url = b""
    method = ""
    version = "1.1"
    headers: list[tuple[bytes, bytes]]
    fields: dict[bytes, bytes] | None = None
    """The headers by their names, once it is known that this head has nothing unusual."""
    fault = ""
    """The rule that the head breaks."""
    length = 0
    """Bytes of the body, where its length is known."""
    remaining = 0
    """Those of them that have not come."""
    chunks: ChunkedBody | None = None
    complete = False
    """The body has arrived whole."""
    buffered = 0
    lasts = True
    """Whether the client wants the connection to last."""
    keep_alive = True
    expects_continue = False
    started = False
    answered = False
    _connection = b""
    _hosts = 0
    _pieces: list[bytes]
    _delivered = False
    _waiter: asyncio.Future[None] | None = None
    _gone = False
    _head = b""
    _chunked_answer = False

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.headers = []
        self._pieces = []

    # What httptools tells of the head

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) > MAX_FIELDS:
            return  # it is refused; an error raised here would stay in memory for long
        name = name.lower()
        value = value.rstrip(b" \t")  # httptools does so only in front
        self.headers.append((name, value))
        match name:
            case b"host":
                self._hosts += 1
                if not _HOST(value):
                    self.fault = "The Host header is not a host."
            case b"content-length":
                if not _LENGTH(value):
                    self.fault = "Content-Length is not a length."
                else:
                    self.length = self.remaining = int(value)
            case b"transfer-encoding":
                if self.chunks is not None or value.lower() != b"chunked":
                    self.fault = "The only transfer coding of a request is chunked."
                self.chunks = ChunkedBody()
            case b"connection":
                self._connection += value.lower() + b","
            case b"expect":
                self.expects_continue = value.lower() == b"100-continue"

    def head_complete(self, method: bytes, version: str) -> None:
        """The head was parsed; ``fault`` says whether it may go on."""
        self.method = method.decode("ascii")
        self.version = version
        options = {option.strip(b" \t") for option in self._connection.split(b",")} if self._connection else ()
        self.lasts = b"close" not in options and (version == "1.1" or b"keep-alive" in options)
        self.keep_alive = self.lasts and not self._wire.stopping
        self.expects_continue = self.expects_continue and version == "1.1"
        self.complete = not self.remaining and self.chunks is None
        self.fault = self.fault or self._find_fault()

    def repeated(self, wire: Wire) -> "Exchange":
        """A new exchange with the same head, which has no fault and no chunks."""
        again = Exchange(wire)
        again.url, again.method, again.version = self.url, self.method, self.version
        again.fields, again.headers, again.length, again.remaining = self.fields, self.headers, self.length, self.length
        again.lasts, again.expects_continue = self.lasts, self.expects_continue
        again.keep_alive = self.lasts and not wire.stopping
        return again

    def _find_fault(self) -> str:
        if len(self.headers) > MAX_FIELDS:
            return f"A request may have at most {MAX_FIELDS} header fields."
        if self._hosts > 1:
            return "A request has only one Host header."
        if self.version == "1.1" and not self._hosts:
            return "A request needs a Host header."
        if self.version == "1.0" and self.chunks is not None:
            return "HTTP/1.0 has no transfer codings."
        if self.method == "CONNECT" or not self._find_path():
            return "This is not valid HTTP/1.1."
        return ""

    def _find_path(self) -> bool:
        """Of a target in absolute form (RFC 9112, 3.2.2) its path is what is asked for, and its host counts."""
        if self.url[:1] not in (b"/", b"*"):
            match = _ABSOLUTE(self.url)
            if match is None or not _HOST(match[1]):
                return False
            rest = self.url[match.end() :]
            self.url = rest if rest.startswith(b"/") else b"/" + rest
            self.headers = [(name, value) for name, value in self.headers if name != b"host"]
            self.headers.append((b"host", match[1]))
        return True

    def scope(self, scheme: str, client: tuple[str, int] | None, local: tuple[str, int] | None) -> Scope:
        """The request for the application."""
        path, _, query = self.url.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self.version,
            "scheme": scheme,
            "method": self.method,
            "root_path": "",
            "path": unquote_to_bytes(path).decode("utf-8", "replace") if b"%" in path else path.decode("ascii"),
            "raw_path": path,
            "query_string": query,
            "headers": list(self.headers),
            "client": client,
            "server": local,
        }

    # What the connection tells of the body

    def body_received(self, received: bytearray) -> int:
        """Take from what was received what belongs to the body; how many bytes that was. Raises ``ValueError``."""
        before = len(received)
        if self.chunks is not None:
            piece = self.chunks.take(received)
            self.complete = self.chunks.ended
        else:
            piece = bytes(received[: self.remaining])
            del received[: len(piece)]
            self.remaining -= len(piece)
            self.complete = not self.remaining
        if piece and not self.answered:
            self._pieces.append(piece)
            self.buffered += len(piece)
            if len(self._pieces) > _MAX_PIECES:
                self._pieces = [b"".join(self._pieces)]
        if piece or self.complete:
            self._wake()
        return before - len(received)

    def disconnected(self) -> None:
        """The client is gone, or was refused."""
        self._gone = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Without ASGI

    def respond(self, status: int, fields: bytes, body: bytes) -> None:
        """Answer at once and whole, where the request came whole. ``fields`` are header lines, with the length."""
        if self.answered or self._gone:
            return
        self.started = self.answered = True
        wire = self._wire
        wire.write(b"".join((_STATUS_LINES[status], wire.date, fields, self._connection_line(), b"\r\n", body)))
        wire.answered()

    # ASGI

    async def receive(self) -> Message:
        while not (self._pieces or self._gone or self.answered or (self.complete and not self._delivered)):
            if self.expects_continue and not self.complete:
                self.expects_continue = False
                self._wire.write(_CONTINUE)
            self._wire.read_on()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        if self._gone or self.answered:
            return {"type": "http.disconnect"}
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self.buffered = 0
        self._delivered = self.complete
        return {"type": "http.request", "body": body, "more_body": not self.complete}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = self._answer_head(message)
            return
        if self.answered:
            return
        more = message.get("more_body", False)
        self.started = True
        self._wire.write(self._framed(message.get("body", b""), more))
        if self._wire.blocked is not None:
            await self._wire.blocked.wait()
        if not more:
            self.answered = True
            self._wake()
            self._wire.answered()

    def _answer_head(self, message: Message) -> bytes:
        status = message["status"]
        lines = [_STATUS_LINES[status], self._wire.date]
        framed = False
        for name, value in message["headers"]:
            lines.append(b"%b: %b\r\n" % (name, value))
            framed = framed or name == b"content-length"
        if not framed and status not in (204, 304):
            if self.version == "1.1":
                self._chunked_answer = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False
        if not self.complete and (self.expects_continue or self.chunks or self.remaining > MAX_DISCARDED):
            # The rest of the body may be cut off, or may not come at all (RFC 9110, 10.1.1).
            self.keep_alive = False
        lines += self._connection_line(), b"\r\n"
        return b"".join(lines)

    def _connection_line(self) -> bytes:
        if not self.keep_alive:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self.version == "1.0" else b""

    def _framed(self, body: bytes, more: bool) -> bytes:
        """The head, if it was not sent yet, and a piece of the body, in one write."""
        head, self._head = self._head, b""
        if self.method == "HEAD":
            return head
        if self._chunked_answer:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        return head + body
