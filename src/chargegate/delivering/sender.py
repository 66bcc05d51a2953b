"""One attempt at one callback."""

import time
from enum import Enum
from typing import Final

import msgspec

from chargegate.delivering.retry import says_when
from chargegate.delivering.signing import Signer
from chargegate.http1 import CallFailed, ConnectFailed, HttpClient, NotSent, TimedOut
from chargegate.model import NO_USABLE_ADDRESS, CallbackTarget
from chargegate.observe import Metrics, log

_NO_ADDRESS: Final = frozenset({"address_blocked", "name_not_resolved"})


class Outcome(Enum):
    """How an attempt ended.

    ``UNREACHABLE``: it could not be connected to, or did not answer in time. ``NO_ADDRESS``: its name has no address
    that may be called. ``REFUSED``: the receiver wants to be left alone for a while (429, or 503 with ``Retry-After``),
    ``GONE``: for ever (410). ``NOT_SENT``: nothing was sent, for a reason that is not the receiver's. ``FAILED``: it
    answered anything else that is no success.
    """

    DELIVERED = 0
    FAILED = 1
    UNREACHABLE = 2
    REFUSED = 3
    GONE = 4
    NOT_SENT = 5
    NO_ADDRESS = 6


_DELIVERED = Outcome.DELIVERED  # every delivery needs it, and Python 3.11 looks it up slowly


class Attempt(msgspec.Struct, frozen=True):
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

    async def send(self, request_id: str, target: CallbackTarget, body: bytes, traceparent: str) -> Attempt:
        """Try once. This never raises for what the receiver or the network does."""
        headers = self._signer.headers(request_id, int(time.time()), body)
        if traceparent:
            headers += b"traceparent: " + traceparent.encode() + b"\r\n"
        started = time.perf_counter()
        try:
            answer = await self._client.post(target, headers, body, self._timeout)
        except NotSent as failure:
            return Attempt(Outcome.NOT_SENT, None, _error(failure, request_id))
        except CallFailed as failure:
            if failure.reason in _NO_ADDRESS:
                return Attempt(Outcome.NO_ADDRESS, None, _error(failure, request_id))
            unreachable = isinstance(failure, ConnectFailed | TimedOut)
            return Attempt(Outcome.UNREACHABLE if unreachable else Outcome.FAILED, None, failure.reason)
        finally:
            self._observe(time.perf_counter() - started)
        status, retry_after = answer.status, answer.retry_after
        if 200 <= status < 300:
            return Attempt(_DELIVERED, status, None)
        return Attempt(_refusal(status, retry_after), status, f"http_{status}", retry_after)


def _error(failure: CallFailed, request_id: str) -> str:
    """The failure's code as clients see it."""
    if failure.reason not in _NO_ADDRESS:
        return failure.reason
    log.info("callback has no usable address", request_id=request_id, why=failure.reason)
    return NO_USABLE_ADDRESS


def _refusal(status: int, retry_after: str | None) -> Outcome:
    if status == 410:
        return Outcome.GONE
    if status == 429 or (status == 503 and says_when(retry_after)):
        return Outcome.REFUSED
    return Outcome.FAILED
