"""Real spans, with the SDK of OpenTelemetry. Imported only where ``tracing.otlp_endpoint`` is set.

Names of attributes are those of the semantic conventions for HTTP, messaging and databases, and ``chargegate.…`` for
what they do not know. No attribute holds a token, a URL, or the name of a host; stations only where that is asked for.
"""

import random
import time
from collections.abc import Mapping
from typing import Final

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as Recording

from chargegate.model import ChargingRequest, parent_of
from chargegate.observe.trace_outbox import Outbox
from chargegate.observe.trace_shares import TraceShares
from chargegate.observe.tracing import NO_SPAN, Span

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_ASKS: Final = 1  # the flag with which a client asks for a trace (W3C Trace Context, 3.2.2.5)

Attributes = Mapping[str, str | int | bool]


class TracedSpan(Span):
    """A span that is sent when it has ended."""

    __slots__ = ("_last_code", "_span", "_stations")

    def __init__(self, span: Recording, *, stations: bool) -> None:
        self._span = span
        self._stations = stations
        self._last_code: int | None = None

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"

    def answered(self, status_code: int, request_id: str = "", station_id: str = "") -> None:
        self._span.set_attribute("http.response.status_code", status_code)
        if request_id:
            self._span.set_attribute("chargegate.request_id", request_id)
        if station_id and self._stations:
            self._span.set_attribute("chargegate.station_id", station_id)
        # By the conventions, a client's error is none of the server's span.
        self.ended(str(status_code) if status_code >= 500 else None)

    def decided(self, status: str, reason: str) -> None:
        self._span.set_attribute("chargegate.status", status)
        if reason:
            self._span.set_attribute("chargegate.reason", reason)
        self.ended(reason if status == "unknown" else None)

    def attempted(self, outcome: str, status_code: int | None, error: str | None, took_s: float) -> None:
        attributes: dict[str, str | int] = {
            "chargegate.outcome": outcome,
            "chargegate.duration_ms": round(took_s * 1000),
        }
        if status_code is not None:
            attributes["http.response.status_code"] = status_code
        if error:
            attributes["error.type"] = error
        self._last_code = status_code  # that of the span is of its last attempt, and cannot be taken back
        self._span.add_event("attempt", attributes)

    def ended(self, error: str | None = None) -> None:
        if self._last_code is not None:
            self._span.set_attribute("http.response.status_code", self._last_code)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class OpenTelemetry:
    """Makes spans and hands them to an outbox.

    A request is traced where its client asks for that and has a share left, or by chance. A client that asks for none
    (flag 00) gets none.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        version: str,
        role: str,
        queue: str,
        database: str,
        sample_ratio: float,
        shares: TraceShares,
        station_ids: bool,
        rng: random.Random,
    ) -> None:
        """``queue`` and ``database`` are the names of their engines. ``sample_ratio`` is of what no client decides."""
        # What the environment says (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) is the operator's own wish.
        ours = {"service.name": "chargegate", "service.version": version, "chargegate.role": role}
        resource = Resource.create(ours).merge(OTELResourceDetector().detect())
        provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(outbox)
        self._tracer = provider.get_tracer("chargegate", version)
        self._outbox = outbox
        self._ratio = sample_ratio
        self._shares = shares
        self._rng = rng
        self._station_ids = station_ids
        self._messaging: Attributes = {"messaging.system": queue, "messaging.destination.name": "charging-requests"}
        self._recording: Attributes = {"db.system.name": database, "db.operation.name": "record"}

    def accepting(self, parent: str, sharer: str) -> Span:
        if parent and not int(parent[-2:], 16) & _ASKS:
            return NO_SPAN
        # The client has chosen its trace's id, so that the id must not decide: it could be chosen to pass.
        if not (parent and self._shares.take(sharer)) and self._rng.random() >= self._ratio:
            return NO_SPAN
        attributes = {"http.request.method": "POST", "http.route": "/api/v1/charging-session"}
        return self._begin("accept", parent, SpanKind.SERVER, attributes)

    def received(self, request: ChargingRequest, since_ms: int) -> None:
        if not request.traced:
            return
        now = time.time_ns()
        begun = min(since_ms * 1_000_000, now)  # by another machine's clock, perhaps
        attributes = {**self._messaging, "messaging.operation.type": "receive", "messaging.operation.name": "receive"}
        span = self._tracer.start_span(
            "queue",
            set_span_in_context(NonRecordingSpan(_context_of(request.traceparent))),
            SpanKind.CONSUMER,
            {**attributes, **self._of(request), "messaging.message.id": request.request_id},
            links=[Link(_context_of(request.traceparent))],
            start_time=begun,
        )
        span.end(now)

    def deciding(self, request: ChargingRequest) -> Span:
        return self._child("decide", request, SpanKind.INTERNAL, {})

    def recording(self, request: ChargingRequest) -> Span:
        return self._child("record", request, SpanKind.INTERNAL, self._recording)

    def delivering(self, request: ChargingRequest) -> Span:
        return self._child("deliver", request, SpanKind.CLIENT, {"http.request.method": "POST"})

    async def close(self, limit_s: float) -> None:
        await self._outbox.close(limit_s)

    def _child(self, name: str, request: ChargingRequest, kind: SpanKind, attributes: Attributes) -> Span:
        if not request.traced:
            return NO_SPAN
        return self._begin(name, request.traceparent, kind, {**attributes, **self._of(request)})

    def _of(self, request: ChargingRequest) -> Attributes:
        if self._station_ids:
            return {"chargegate.request_id": request.request_id, "chargegate.station_id": request.station_id}
        return {"chargegate.request_id": request.request_id}

    def _begin(self, name: str, parent: str, kind: SpanKind, attributes: Attributes) -> Span:
        context = set_span_in_context(NonRecordingSpan(_context_of(parent))) if parent else None
        span = self._tracer.start_span(name, context, kind, dict(attributes))
        # Where the environment turns the SDK off there is none.
        return TracedSpan(span, stations=self._station_ids) if span.is_recording() else NO_SPAN


def _context_of(traceparent: str) -> SpanContext:
    _, trace_id, span_id, _ = parent_of(traceparent).split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=_SAMPLED)
