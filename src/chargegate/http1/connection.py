"""One connection of the client, over TCP or TLS, and the request and answer that are exchanged on it."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, cast

import msgspec

from chargegate.http1.answer import Answer, MalformedAnswer, common_answer
from chargegate.http1.tls import Tls

MAX_HANDSHAKE: Final = 256 * 1024
"""Bytes that a receiver may send before TLS is established, and between two exchanges."""
MAX_RECEIVED: Final = 1024 * 1024
"""Bytes that a receiver may send in one exchange, before they are decrypted."""


class Response(msgspec.Struct, frozen=True, gc=False):
    """An answer. ``body`` is cut off at the client's ``max_answer_bytes``; ``retry_after`` is the header as it came."""

    status: int
    body: bytes
    retry_after: str | None


NO_SOCKET: Final = "no_socket"


class CallFailed(Exception):
    """There is no answer. ``reason`` is a short, stable code that names no address, host or path."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotSent(CallFailed):
    """Nothing was sent, for a reason that is not the receiver's: no name server answered (``name_not_resolved``), or
    this process may open no more sockets (``no_socket``). It says nothing of the receiver."""


class NameNeeded(NotSent):
    """``name_not_resolved``: a kept connection would have been used, and there is none any more."""


class ConnectFailed(CallFailed):
    """``name_not_resolved``, ``connection_refused``, ``tls_failed``, or ``connect_failed`` for any other cause."""


class TimedOut(CallFailed):
    """``timeout``: the exchange did not end in time, from connecting to the last byte of the answer."""


class BadAnswer(CallFailed):
    """``bad_answer``: not HTTP/1.x, or too large. ``closed_early``: the connection ended first."""


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
        tls: Tls | None = None,
    ) -> None:
        self._loop = loop
        self.destination = destination
        self.idle_since = 0.0
        self.reusable = False
        self.lost: asyncio.Future[None] | None = None
        self.ready: asyncio.Future[None] = loop.create_future()
        """Done once a request can be sent. Raises ``ConnectFailed``."""
        self._max_answer = max_answer
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._tls = tls
        self._encrypted = 0  # bytes received since TLS began, or the exchange began or ended
        self._limit = MAX_HANDSHAKE
        self._done: Callable[[Outcome], None] | None = None  # while an exchange is under way
        self._answer: Answer | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @property
    def encrypted(self) -> bool:
        return self._tls is not None

    @property
    def closing(self) -> bool:
        return self._transport is not None and self._transport.is_closing()

    def send(self, request: bytes, deadline: float) -> asyncio.Future[Outcome]:
        """Start an exchange. Its outcome comes by ``deadline``, a time of the loop's clock."""
        waiter: asyncio.Future[Outcome] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if not waiter.done():
                waiter.set_result(outcome)

        self.send_then(request, deadline, done)
        return waiter

    def send_then(self, request: bytes, deadline: float, done: Callable[[Outcome], None]) -> None:
        """As ``send``, for one that is no coroutine: ``done`` is called with the outcome."""
        self._done = done
        self._deadline = deadline
        # Setting a timer costs more than the rest of this method. An earlier exchange's timer goes on where it rings
        # in time, and is set again when it rings.
        if self._timer is None or deadline < self._timer_at:
            self._set_timer()
        self.reusable = False
        self._answer = None
        transport = self._transport
        if transport is None or transport.is_closing():  # since it was connected, or used last
            self._end(None)
            return
        if self._tls is not None:
            self._encrypted, self._limit = 0, MAX_RECEIVED
            try:
                request = self._tls.encrypt(request)
            except ssl.SSLError:
                self._end(None)
                return
        transport.write(request)

    def abort(self) -> None:
        self._end(None)
        self._abort()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._done is None:
            return
        if self._deadline > self._loop.time():
            self._set_timer()
        else:
            self._end(TimedOut("timeout"))

    def _end(self, outcome: Outcome) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(outcome)

    def _complete(self, answer: Answer) -> None:
        self.reusable = answer.persistent and not answer.surplus
        self._answered(Response(answer.status, answer.body, answer.retry_after))

    def _answered(self, response: Response) -> None:
        if self._tls is not None:
            self._encrypted, self._limit = 0, MAX_HANDSHAKE
        self._end(response)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.lost = self._loop.create_future()
        if self._tls is None:
            self.ready.set_result(None)
        else:
            self._shake_hands(self._tls)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self)
        if self.lost is not None:
            self.lost.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        self._not_ready()
        if self._done is not None:
            answer = self._answer
            if answer is None:
                self._end(None)
            elif exc is None and answer.closed():
                self._complete(answer)
            else:
                self._end(BadAnswer("closed_early"))

    def data_received(self, data: bytes) -> None:
        tls = self._tls
        if tls is None:
            self._read(data)
            return
        self._encrypted += len(data)
        if self._encrypted > self._limit:
            self._not_ready()
            self._give_up(BadAnswer("bad_answer"))
            return
        tls.received(data)
        if not tls.established:
            self._shake_hands(tls)
        if tls.established:
            self._decrypt(tls)

    def _read(self, data: bytes) -> None:
        if self._done is None:  # nobody asked
            self.reusable = False
            self._abort()
            return
        answer = self._answer
        if answer is None:
            if (common := common_answer(data, self._max_answer)) is not None:
                self.reusable = True
                self._answered(Response(*common, None))
                return
            answer = self._answer = Answer(self._max_answer)
        try:
            answer.feed(data)
        except MalformedAnswer:
            self._give_up(BadAnswer("bad_answer"))
            return
        if answer.done:
            self._complete(answer)
            if answer.surplus:
                self._abort()

    def _give_up(self, failure: CallFailed) -> None:
        """What the receiver sends is no answer, or too much of it."""
        self.reusable = False
        self._end(failure)
        self._abort()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # TLS

    def _shake_hands(self, tls: Tls) -> None:
        try:
            tls.handshake()
        except ssl.SSLError:
            self._flush(tls)  # the alert that says why
            self._not_ready()
            return
        self._flush(tls)
        if tls.established and not self.ready.done():
            self._encrypted = 0
            self.ready.set_result(None)

    def _not_ready(self) -> None:
        """TLS could not be established."""
        if not self.ready.done():
            self.ready.set_exception(ConnectFailed("tls_failed"))
            self.ready.exception()  # whoever dialled may have given up, and then nobody else looks at it
            self._close()

    def _decrypt(self, tls: Tls) -> None:
        try:
            while (piece := tls.decrypt()) is not None:
                if not piece:
                    self._close()
                    break
                self._read(piece)
        except ssl.SSLError:
            # Before an answer this is the end of a handshake, such as a refused client certificate in TLS 1.3.
            self._give_up(BadAnswer("bad_answer") if self._answer else ConnectFailed("tls_failed"))
        self._flush(tls)

    def _flush(self, tls: Tls) -> None:
        if (data := tls.to_send()) and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
