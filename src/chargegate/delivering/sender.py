"""One attempt at one callback."""

import contextlib
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

import msgspec

from chargegate.delivering.retry import says_when
from chargegate.delivering.signing import Signer
from chargegate.http1 import CallFailed, ConnectFailed, HttpClient, NameNeeded, NotSent, Response, TimedOut
from chargegate.model import NO_USABLE_ADDRESS, CallbackTarget, IPAddress, now_ms, trace_headers
from chargegate.observe import Metrics, log

_NO_ADDRESS: Final = frozenset({"address_blocked", "name_not_resolved"})


class Outcome(Enum):
    """How an attempt ended.

    ``UNREACHABLE``: it could not be connected to, or did not answer in time. ``NO_ADDRESS``: its name has no address
    that may be called. ``REFUSED``: the receiver wants to be left alone for a while (429, or 503 with ``Retry-After``),
    ``GONE``: for ever (410). ``NOT_SENT``: nothing was sent, for a reason that is not the receiver's. ``NAME_NEEDED``:
    nothing was sent, because the connection that was kept is gone and its name is not known any more. ``FAILED``: it
    answered anything else that is no success.
    """

    DELIVERED = 0
    FAILED = 1
    UNREACHABLE = 2
    REFUSED = 3
    GONE = 4
    NOT_SENT = 5
    NAME_NEEDED = 6
    NO_ADDRESS = 7


Way = Sequence[IPAddress] | CallFailed
"""The addresses of a target, none where a kept connection will do, or why it cannot be reached."""

_KEPT: Final = ()
_DELIVERED = Outcome.DELIVERED  # every delivery needs it, and Python 3.11 looks it up slowly


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """What came of an attempt. ``error`` is a stable code. ``retry_after`` is the header as it was sent."""

    outcome: Outcome
    status_code: int | None
    error: str | None
    retry_after: str | None = None


class Sender:
    """Sends callbacks. Success is 2xx, read to the end of the answer within the time limit."""

    def __init__(self, client: HttpClient, signer: Signer, metrics: Metrics, *, timeout_ms: int) -> None:
        self._client = client
        self._signer = signer
        self._timeout = timeout_ms / 1000
        self._observe = metrics.callback_duration.observe

    def way(self, target: CallbackTarget) -> Way | None:
        """How the target is reached; None where its name must be looked up first."""
        if target.literal is not None:
            return (target.literal,)
        known = self._client.known(target.host)
        if isinstance(known, list):
            return known
        return _KEPT if self._client.keeps(target.destination) else known

    async def look_up(self, target: CallbackTarget) -> None:
        """Ask for the target's name. Afterwards ``way`` knows what came of it, for a second at least."""
        with contextlib.suppress(CallFailed):
            await self._client.resolve(target.host)

    async def send(
        self, request_id: str, target: CallbackTarget, body: bytes, traceparent: str, way: Way | None = None
    ) -> Attempt:
        """Try once, on the way that was found before. This never raises for what the receiver or the network does."""
        if isinstance(way, CallFailed):
            return _not_called(way, request_id)
        headers = self._headers(request_id, body, traceparent, now_ms())
        started = time.perf_counter()
        try:
            answer = await self._client.post(target, headers, body, self._timeout, way)
        except CallFailed as failure:
            return _not_called(failure, request_id)
        finally:
            self._observe(time.perf_counter() - started)
        return _called(answer)

    def send_kept(
        self,
        request_id: str,
        target: CallbackTarget,
        body: bytes,
        traceparent: str,
        done: Callable[[Attempt | None], None],
        *,
        at: int,
    ) -> Callable[[], None] | None:
        """As ``send`` on a connection that was kept, for one that is no coroutine: ``done`` is called with what came of
        it, or with None where it is to be sent again at once. ``at``: the time now (Unix ms). See
        ``HttpClient.post_kept``."""
        if not self._client.keeps(target.destination):
            return None
        started = time.perf_counter()

        def ended(outcome: Response | CallFailed | None) -> None:
            self._observe(time.perf_counter() - started)
            if type(outcome) is Response:
                done(_called(outcome))
            else:
                done(None if outcome is None else _not_called(outcome, request_id))  # type: ignore[arg-type]  # no Response

        headers = self._headers(request_id, body, traceparent, at)
        return self._client.post_kept(target, headers, body, self._timeout, ended)

    def _headers(self, request_id: str, body: bytes, traceparent: str, at: int) -> bytes:
        headers = self._signer.headers(request_id, at // 1000, body)
        return headers + trace_headers(traceparent) if traceparent else headers


def told(failure: CallFailed) -> str:
    """The failure's code as clients see it: not whether a name has no address, or only one that may not be called."""
    return NO_USABLE_ADDRESS if failure.reason in _NO_ADDRESS else failure.reason


def _called(answer: Response) -> Attempt:
    """What an answer means."""
    status, retry_after = answer.status, answer.retry_after
    if 200 <= status < 300:
        return Attempt(_DELIVERED, status, None)
    return Attempt(_refusal(status, retry_after), status, f"http_{status}", retry_after)


def _not_called(failure: CallFailed, request_id: str) -> Attempt:
    """What it means that there was no answer."""
    error = told(failure)
    if isinstance(failure, NameNeeded):
        return Attempt(Outcome.NAME_NEEDED, None, error)
    if error is NO_USABLE_ADDRESS:
        log.info("callback has no usable address", request_id=request_id, why=failure.reason)
    if isinstance(failure, NotSent):
        return Attempt(Outcome.NOT_SENT, None, error)
    if error is NO_USABLE_ADDRESS:
        return Attempt(Outcome.NO_ADDRESS, None, error)
    return Attempt(
        Outcome.UNREACHABLE if isinstance(failure, ConnectFailed | TimedOut) else Outcome.FAILED, None, error
    )


def _refusal(status: int, retry_after: str | None) -> Outcome:
    if status == 410:
        return Outcome.GONE
    if status == 429 or (status == 503 and says_when(retry_after)):
        return Outcome.REFUSED
    return Outcome.FAILED
