"""One attempt at one callback."""

import time

import msgspec

from chargegate.delivering.signing import Signer
from chargegate.http1 import CallFailed, ConnectFailed, HttpClient, NotSent, TimedOut
from chargegate.model import CallbackTarget
from chargegate.observe import Metrics


class Attempt(msgspec.Struct, frozen=True):
    """How an attempt ended.

    ``gone``: the receiver answered 410 and wants no more. ``reachable``: it was connected to and answered in time,
    whatever it said. ``error`` is a stable code. ``retry_after`` is the header as it was sent. ``sent`` is false where
    nothing was sent for a reason that is not the receiver's. That is no attempt, and says nothing of the destination.
    """

    delivered: bool
    gone: bool
    reachable: bool
    status_code: int | None
    error: str | None
    retry_after: str | None
    sent: bool = True


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
            return Attempt(False, False, False, None, failure.reason, None, sent=False)
        except CallFailed as failure:
            unreachable = isinstance(failure, ConnectFailed | TimedOut)
            return Attempt(False, False, not unreachable, None, failure.reason, None)
        finally:
            self._observe(time.perf_counter() - started)
        status = answer.status
        if 200 <= status < 300:
            return Attempt(True, False, True, status, None, None)
        return Attempt(False, status == 410, True, status, f"http_{status}", answer.retry_after)
