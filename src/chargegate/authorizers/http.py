"""The authorizer that asks an external microservice over HTTP."""

import asyncio
import re
from random import Random
from typing import Final

import msgspec

from chargegate.authorizers.base import AuthorizationError, AuthorizationTimeout, NotAsked
from chargegate.http1 import NO_SOCKET, CallFailed, HttpClient, Response, TimedOut
from chargegate.model import CallbackTarget, ChargingRequest, Status, Verdict, trace_headers

FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 2.0

_HEADERS: Final = b"accept: application/json\r\n"
_RETRIED_CLIENT_ERRORS: Final = (408, 425, 429)
_REASON = re.compile(r"[a-z0-9_]{1,64}").fullmatch


class _Question(msgspec.Struct):
    request_id: str
    station_id: str
    driver_token: str


class _Answer(msgspec.Struct):
    status: Status
    reason: str | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Answer).decode


class HttpAuthorizer:
    """Posts ``{request_id, station_id, driver_token}`` and expects ``200 {"status": …, "reason"?: …}``.

    Anything else is a failure. A failed call is repeated up to ``max_retries`` times within ``timeout_ms`` in all,
    after exponential waits with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter"). A 4xx answer
    other than 408, 425 and 429 is not retried. ``AuthorizationTimeout`` means that no time is left for another call.
    Where this process may open no more sockets, nothing was asked: that uses up no retry, and ``NotAsked`` means that
    it was so to the end. The authorizer owns the client, and closes it.
    """

    def __init__(
        self, client: HttpClient, target: CallbackTarget, *, max_retries: int, timeout_ms: int, rng: Random
    ) -> None:
        self._client = client
        self._target = target
        self._max_retries = max_retries
        self._timeout_s = timeout_ms / 1000
        self._rng = rng

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:  # noqa: ARG002 - the protocol has this parameter
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._timeout_s
        body = _encode(_Question(request.request_id, request.station_id, request.driver_token))
        headers = _HEADERS + trace_headers(request.traceparent) if request.traceparent else _HEADERS
        longest_wait_s = FIRST_WAIT_S
        retries_left, asked = self._max_retries, True
        while (remaining_s := deadline - clock()) > 0:
            try:
                response = await self._client.post(self._target, headers, body, remaining_s)
            except TimedOut:
                asked = True
                break
            except CallFailed as error:
                failure, asked = f"the call failed: {error.reason}", error.reason != NO_SOCKET
            else:
                asked = True
                if response.status == 200 and (verdict := _verdict(response.body, request.driver_token)):
                    return verdict
                failure = _failure(response)
            if asked and not retries_left and clock() < deadline:
                raise AuthorizationError(failure)
            retries_left -= asked
            wait_s = self._rng.uniform(0, longest_wait_s)
            longest_wait_s = min(2 * longest_wait_s, LONGEST_WAIT_S)
            if clock() + wait_s >= deadline:
                break
            await asyncio.sleep(wait_s)
        raise AuthorizationTimeout("no usable answer in time") if asked else NotAsked("no socket in time")

    async def check(self) -> None:
        pass

    async def close(self) -> None:
        await self._client.close()


def _verdict(body: bytes, driver_token: str) -> Verdict | None:
    try:
        answer = _decode(body)
    except (ValueError, RecursionError):
        return None
    reason = answer.reason or ""
    if not _REASON(reason) or driver_token in reason:
        reason = ""
    return Verdict(answer.status, reason)


def _failure(response: Response) -> str:
    """What is wrong with an answer. Raises ``AuthorizationError`` where a retry cannot help."""
    failure = "the answer is not a verdict" if response.status == 200 else f"the answer is HTTP {response.status}"
    if 400 <= response.status < 500 and response.status not in _RETRIED_CLIENT_ERRORS:
        raise AuthorizationError(failure)
    return failure
