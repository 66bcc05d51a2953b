"""``POST /api/v1/charging-session``, the hot route. It is plain ASGI, because every request pays for it, and most
requests do not even need that: see ``direct.py``."""

import re
import time
from functools import partial
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta
from starlette.types import Receive, Scope, Send

from chargegate.api.access import Guard, RateLimit, network_of
from chargegate.api.bodies import read_json
from chargegate.api.callback import DECISION
from chargegate.api.errors import ClientGone, Refused, refusal, refusal_fields, send_refusal, unavailable
from chargegate.api.exchange import Exchange
from chargegate.api.headers import SECURITY, given_trace_id, new_trace_id, trace_id
from chargegate.api.idempotency import Idempotency
from chargegate.api.origins import Origins
from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Route, header
from chargegate.api.schemas import EXAMPLE_ID, charging_request
from chargegate.api.shares import Shares
from chargegate.http1 import AddressBlocked
from chargegate.keys import ANONYMOUS
from chargegate.model import (
    ACCEPTED_MESSAGE,
    CallbackTarget,
    ChargingRequest,
    Invalid,
    Millis,
    broken,
    new_request_id,
    now_ms,
    parse_body,
    trace_context,
    within,
)
from chargegate.observe import NO_SPAN, Span, log, trace_field, traced
from chargegate.queues.envelope import carry, wrap

PATH: Final = "/api/v1/charging-session"
MAX_KEY: Final = 255

_OUTCOMES: Final = {
    "accepted": "accepted",
    "repeated": "repeated",
    "validation_error": "invalid",
    "unauthorized": "unauthorized",
    "forbidden": "forbidden",
    "payload_too_large": "too_large",
    "unsupported_media_type": "unsupported",
    "idempotency_conflict": "conflict",
    "rate_limited": "rate_limited",
    "service_unavailable": "unavailable",
    "internal_error": "internal_error",
}
_HEADERS: Final = (
    header(
        "Idempotency-Key",
        "The same key with the same body is one request, for one hour; with another body it is refused.",
        f"^[!-~]{{1,{MAX_KEY}}}$",
    ),
    header("X-Request-ID", "Comes back in the answer if it is 1 to 128 visible ASCII characters."),
    header(
        "traceparent", "W3C Trace Context, carried to the authorizer and the callback, or followed by our own spans."
    ),
    header("tracestate", "Carried with the traceparent, if it is well formed and has at most 512 characters."),
)
_KEY = re.compile(rb"[!-~]{1,%d}" % MAX_KEY).fullmatch
_BODY_START: Final = f'{{"status":"accepted","message":"{ACCEPTED_MESSAGE}","request_id":"'.encode()
_FIELDS: Final = b"content-type: application/json\r\ncontent-length: %%d\r\n%bx-request-id: %%b\r\n" % b"".join(
    b"%b: %b\r\n" % field for field in SECURITY
)
_WARN_EVERY_S: Final = 1.0
_EXAMPLE: Final = {
    "status": "accepted",
    "message": ACCEPTED_MESSAGE,
    "request_id": EXAMPLE_ID,
    "timestamp": 1769860800000,
}


class Acceptance(msgspec.Struct):
    """What a client is told when its request is safe. The message is exact."""

    status: Annotated[str, Meta(extra_json_schema={"const": "accepted"})]
    message: Annotated[str, Meta(extra_json_schema={"const": ACCEPTED_MESSAGE})]
    request_id: str
    timestamp: Millis


class _Whole(NamedTuple):
    """A request that came whole and without a fault."""

    exchange: Exchange
    request: ChargingRequest
    target: CallbackTarget
    trace: bytes
    address: tuple[str, int] | None
    span: Span


class Intake:
    """Accepts requests to charge: answers 202 when the queue has the request, and never before."""

    def __init__(self, parts: Parts, origins: Origins) -> None:
        self._origins = origins
        self._admit = Guard(parts.access_keys).admit
        self._draining = parts.draining
        self._limit = parts.max_body_bytes
        self._rate = RateLimit(parts.rate_limit_per_second, parts.rate_limit_burst)
        self._require_https = parts.require_https
        self._check_address = parts.check_address
        self._keyring = parts.keyring
        self._shares = Shares(parts.queue, parts.access_keys, parts.queue_size, parts.queue_share)
        self._put = self._shares.put
        self._at_once = parts.at_once
        # Where the queue cannot say that it holds a request, the ledger can.
        self._note_accepted = None if parts.queue.capabilities.find else parts.ledger.accepted
        self._idempotency = Idempotency(parts.ledger, parts.queue, parts.keyring, self._put, parts.claims)
        self._accepting = parts.tracing.accepting
        self._count = {code: parts.metrics.requests.labels(outcome).inc for code, outcome in _OUTCOMES.items()}
        self._warned_at = -_WARN_EVERY_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        trace = (given_trace_id(headers) or new_trace_id()) if b"x-request-id" in headers else b""
        shared = self._origins.shared_with(headers) if b"origin" in headers else ()
        body, span = b"", NO_SPAN
        try:
            self._origins.check(scope, headers)
            if self._draining():
                raise unavailable("The service is shutting down.")
            caller = self._admit(headers, "client")
            # Without keys, rates are by address, and idempotency keys are where older releases had them.
            named = caller.name if caller is not ANONYMOUS else ""
            self._rate.take(named, scope["client"])
            body = await read_json(receive, headers, self._limit)
            key = headers.get(b"idempotency-key")
            station, token, url = self._validate(body, key)
            if token in trace.decode():
                trace = b""
            parent = _context(scope, token) if b"traceparent" in headers else ""
            span = self._accepting(parent, (named or network_of(scope["client"])) if parent else "")
            parent = within(span.traceparent, parent)
            request = ChargingRequest(
                new_request_id(), station, token, url, now_ms(), parent, caller.name, span is not NO_SPAN
            )
            if key is None:
                await self._put(caller.name, wrap(self._keyring, request))
                request_id, at, repeated = request.request_id, request.accepted_at, False
            else:
                request_id, at, repeated = await self._idempotency.accept(named, key.decode(), request)
            if self._note_accepted is not None and not repeated:
                self._note_accepted(request_id, station, at, caller.name)
        except ClientGone:
            return
        except Exception as fault:  # noqa: BLE001 - whatever it is, it is logged and the client gets an answer
            await self._refuse(fault, send, span, (b"x-request-id", trace_id(headers, body)), *shared)
            return
        trace = trace or request_id.encode()
        outcome = "repeated" if repeated else "accepted"
        self._count[outcome]()
        span.answered(202, request_id, station)
        log.info(
            "request " + outcome,
            request_id=request_id,
            station_id=station,
            x_request_id=trace.decode(),
            **trace_field(parent),
        )
        answer = _acceptance(request_id.encode(), at)
        await send(
            {
                "type": "http.response.start",
                "status": 202,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", b"%d" % len(answer)),
                    *SECURITY,
                    (b"x-request-id", trace),
                    *shared,
                ],
            }
        )
        await send({"type": "http.response.body", "body": answer})

    # Without ASGI: see Direct

    path = PATH.encode()

    def examine(self, exchange: Exchange, body: bytes, client: tuple[str, int] | None) -> _Whole | None:
        headers = exchange.fields
        if headers is None:
            headers = dict(exchange.headers)
            if (
                exchange.method != "POST"
                or len(headers) != len(exchange.headers)
                or headers.get(b"content-type") != b"application/json"
                or b"idempotency-key" in headers
                or b"traceparent" in headers
            ):
                return None
            exchange.fields = headers
        if len(body) > self._limit or not self._origins.known_good(headers) or self._draining():
            return None
        try:
            caller = self._admit(headers, "client")
            station, token, url, target = parse_body(body, self._target_fault)
        except (Refused, Invalid):
            return None
        if not self._shares.admits_at_once(caller.name):
            return None
        trace = (given_trace_id(headers) or new_trace_id()) if b"x-request-id" in headers else b""
        if token in trace.decode():
            trace = b""
        span = self._accepting("", "")
        now = now_ms()
        request = ChargingRequest(
            new_request_id(now), station, token, url, now, span.traceparent, caller.name, span is not NO_SPAN
        )
        return _Whole(exchange, request, target, trace, client, span)

    def accept(self, whole: _Whole) -> None:
        request = whole.request
        try:
            self._rate.take(request.client if request.client != ANONYMOUS.name else "", whole.address)
            message = carry(self._keyring, request, whole.target)
            done = partial(self._stored, whole)
            if self._at_once is None or not self._at_once(message, done):
                self._shares.put_then(request.client, message, done)
        except Exception as fault:  # noqa: BLE001 - as in ``__call__``
            self._refuse_whole(whole, fault)

    def _stored(self, whole: _Whole, fault: Exception | None) -> None:
        if fault is not None:
            self._refuse_whole(whole, fault)
            return
        request = whole.request
        request_id = request.request_id
        if self._note_accepted is not None:
            self._note_accepted(request_id, request.station_id, request.accepted_at, request.client)
        written = request_id.encode()
        answer = _acceptance(written, request.accepted_at)
        self._count["accepted"]()
        whole.span.answered(202, request_id, request.station_id)
        fields = {
            "request_id": request_id,
            "station_id": request.station_id,
            "x_request_id": whole.trace.decode() if whole.trace else request_id,
        }
        log.step("request accepted", traced(fields, request.traceparent))
        whole.exchange.respond(202, _FIELDS % (len(answer), whole.trace or written), answer)

    def _refuse_whole(self, whole: _Whole, fault: Exception) -> None:
        refused = self._refused(fault)
        whole.span.answered(refused.status)
        body = refused.body()
        fields = [*refusal_fields(refused, len(body)), *SECURITY, (b"x-request-id", whole.trace or new_trace_id())]
        whole.exchange.respond(refused.status, b"".join([b"%b: %b\r\n" % field for field in fields]), body)

    def _validate(self, body: bytes, key: bytes | None) -> tuple[str, str, str]:
        if key is None or _KEY(key):
            return parse_body(body, self._target_fault)[:3]
        details = {"Idempotency-Key": f"must be 1 to {MAX_KEY} visible ASCII characters"}
        try:
            parse_body(body, self._target_fault)
        except Invalid as fault:
            if not fault.details:
                raise Invalid(str(fault), details) from None
            details = {**fault.details, **details}
        raise broken(details)

    def _target_fault(self, target: CallbackTarget) -> str | None:
        if self._require_https and target.scheme != "https":
            return "must be an https URL"
        if target.literal is not None:
            try:
                self._check_address(target.literal)
            except AddressBlocked:
                return "leads to a blocked network"
        return None

    async def _refuse(self, fault: Exception, send: Send, span: Span, *more: tuple[bytes, bytes]) -> None:
        refused = self._refused(fault)
        span.answered(refused.status)
        await send_refusal(send, refused, *SECURITY, *more)

    def _refused(self, fault: Exception) -> Refused:
        refused = refusal(fault)
        self._count[refused.code]()
        if refused.status == 503 and time.monotonic() - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = time.monotonic()
            log.warning("requests are refused", message=refused.message)
        return refused


def _acceptance(request_id: bytes, at: int) -> bytes:
    """The body of a 202."""
    return b'%b%b","timestamp":%d}' % (_BODY_START, request_id, at)


def _context(scope: Scope, token: str) -> str:
    """The client's trace context."""
    parents, states = (
        [value for name, value in scope["headers"] if name == which] for which in (b"traceparent", b"tracestate")
    )
    return trace_context(parents, states, token)


def route(parts: Parts) -> Route:
    """The route as the document shows it. It has no handler: ``Intake`` answers before the router is asked."""
    return Route(
        method="POST",
        path=PATH,
        name="requestCharging",
        handler=None,
        access="client",
        tag="Charging sessions",
        summary="Ask whether a driver may charge",
        description="Answered as soon as the request is safely in the queue; the decision is posted to callback_url"
        f" later. Unknown fields are ignored. The body may have at most {parts.max_body_bytes} bytes.",
        parameters=_HEADERS,
        body=charging_request(require_https=parts.require_https),
        answers={202: Answer("The request is safe.", Acceptance, example=_EXAMPLE)},
        errors=[422, *([429] if parts.rate_limit_per_second else [])],
        callback=DECISION,
    )
