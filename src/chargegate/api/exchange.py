"""One request on a connection and its answer, as ASGI sees them."""

import asyncio
import re
from http import HTTPStatus
from typing import Final, Protocol

from starlette.types import Message

from chargegate.api.chunked import ChunkedBody

MAX_FIELDS: Final = 100
MAX_DISCARDED: Final = 1024 * 1024
"""What is read and thrown away of a body after its answer, so that the client gets to see the answer."""

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]+)(?::[0-9]{0,5})?").fullmatch
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://[^/?#]+").match
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

    __slots__ = (
        "_chunked_answer",
        "_fields",
        "_gone",
        "_head",
        "_hosts",
        "_pieces",
        "_waiter",
        "_wire",
        "answered",
        "buffered",
        "chunks",
        "complete",
        "expects_continue",
        "fault",
        "headers",
        "keep_alive",
        "method",
        "remaining",
        "started",
        "url",
        "version",
    )

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.url = b""
        self.method = ""
        self.version = "1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.fault = ""
        """The rule that the head breaks."""
        self.remaining = 0
        """Bytes of the body that have not come, where its length is known."""
        self.chunks: ChunkedBody | None = None
        self.complete = False
        """The body has arrived whole."""
        self.buffered = 0
        self.keep_alive = True
        self.expects_continue = False
        self.started = False
        self.answered = False
        self._fields = 0
        self._hosts = 0
        self._pieces: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._gone = False
        self._head = b""
        self._chunked_answer = False

    # What httptools tells of the head

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > MAX_FIELDS:
            self.fault = f"A request may have at most {MAX_FIELDS} header fields."
            raise ValueError(self.fault)
        name = name.lower()
        self.headers.append((name, value))
        match name:
            case b"host":
                self._hosts += 1
                if not _HOST(value):
                    self.fault = "The Host header is not a host."
            case b"content-length":
                self.remaining = int(value) if _LENGTH(value) else 0
            case b"transfer-encoding":
                if self.chunks is not None or value.lower() != b"chunked":
                    self.fault = "The only transfer coding of a request is chunked."
                self.chunks = ChunkedBody()
            case b"expect":
                self.expects_continue = value.lower() == b"100-continue"

    def head_complete(self, method: bytes, version: str, *, keep_alive: bool) -> None:
        """The head was parsed; ``fault`` says whether it may go on."""
        self.method = method.decode("ascii")
        self.version = version
        self.keep_alive = keep_alive and not self._wire.stopping
        self.complete = not self.remaining and self.chunks is None
        if not self.fault:
            if self._hosts > 1:
                self.fault = "A request has only one Host header."
            elif not self._hosts and version != "1.0":
                self.fault = "A request needs a Host header."
            elif self.method == "CONNECT" or not self._find_path():
                self.fault = "This is not valid HTTP/1.1."

    def _find_path(self) -> bool:
        """Of a target in absolute form (RFC 9112, 3.2.2) its path is what is asked for."""
        if self.url[:1] not in (b"/", b"*"):
            match = _ABSOLUTE(self.url)
            if match is None:
                return False
            rest = self.url[match.end() :]
            self.url = rest if rest.startswith(b"/") else b"/" + rest
        return True

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

    # ASGI

    async def receive(self) -> Message:
        while not (self._pieces or self.complete or self._gone):
            if self.expects_continue:
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
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif self.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _framed(self, body: bytes, more: bool) -> bytes:
        """The head, if it was not sent yet, and a piece of the body, in one write."""
        head, self._head = self._head, b""
        if self.method == "HEAD":
            return head
        if self._chunked_answer:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        return head + body
