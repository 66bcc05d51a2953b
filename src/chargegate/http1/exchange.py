"""One connection of the client, and the request and answer that are exchanged on it."""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools
import msgspec

MAX_HEADER_BLOCK: Final = 65536


class Response(msgspec.Struct, frozen=True):
    """An answer. ``body`` is cut off at the client's ``max_answer_bytes``; ``retry_after`` is the header as it came."""

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


Outcome = Response | CallFailed | None


class Connection(asyncio.Protocol):
    """One connection, with at most one exchange at a time.

    An exchange's outcome is a ``Response``, the failure, or None if the connection ended before any byte of an answer.
    A failure is the future's result and not its exception, because asyncio reports an exception that nobody fetches.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        destination: str,
        max_answer: int,
        on_lost: "Callable[[Connection], None]",
    ) -> None:
        self._loop = loop
        self.destination = destination
        self.idle_since = 0.0
        self.reusable = False
        self.lost: asyncio.Future[None] | None = None
        self._max_answer = max_answer
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Outcome] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._body = bytearray()
        self._parser = httptools.HttpResponseParser(self)
        # An informational answer may say `connection: close` although the final answer still follows.
        self._parser.set_dangerous_leniencies(lenient_keep_alive=True)

    @property
    def closing(self) -> bool:
        return self._transport is not None and self._transport.is_closing()

    def send(self, request: bytes, deadline: float) -> asyncio.Future[Outcome]:
        """Start an exchange. Its outcome comes by ``deadline``, a time of the loop's clock."""
        self._waiter = waiter = self._loop.create_future()
        self._deadline = deadline
        # Setting a timer costs more than the rest of this method. An earlier exchange's timer goes on where it rings
        # in time, and is set again when it rings.
        if self._timer is None or deadline < self._timer_at:
            self._set_timer()
        self._answered = self.reusable = False
        self._allowance = MAX_HEADER_BLOCK
        self._status = 0
        self._transport.write(request)  # type: ignore[union-attr]  # it is connected before the client uses it
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

    def _end(self, outcome: Outcome) -> None:
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
        del self._parser  # it refers back to this object

    def data_received(self, data: bytes) -> None:
        # The parser (llhttp) would accept RTSP and ICE too.
        if self._waiter is not None and not self._answered and not data.startswith(b"H"):
            self._end(BadAnswer("bad_answer"))
        self._answered = True
        try:
            while data and self._waiter is not None:
                # The parser gets no more than the allowance before the end of the header block, and then between
                # two pieces of the body, because it limits neither header lines nor trailers nor chunk extensions.
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
