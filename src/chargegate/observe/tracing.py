"""What the parts of the service say about a request that is traced. Without tracing these calls do nothing.

A request is traced or not from its acceptance on: the process that accepts it decides. A traced request's
``traceparent`` is that of its span ``accept``, and every later span is that span's child. The traceparent of a request
that is not traced is the client's, unchanged. The module ``opentelemetry`` makes real spans; nothing here imports it.
"""

from typing import Any, Final, Protocol

from chargegate.model import ChargingRequest


class Span:
    """One step of a request. This one is of a request that is not traced: it does nothing, and one is enough for all.

    ``traceparent`` names the span as a parent; it is empty where there is no span. A span that is never ended is not
    sent.
    """

    __slots__ = ()

    @property
    def traceparent(self) -> str:
        return ""

    def answered(self, status_code: int, request_id: str = "", station_id: str = "") -> None:
        """The client got this HTTP status, and the request its id: the end of ``accept``."""

    def decided(self, status: str, reason: str) -> None:
        """The end of ``decide``. A status of unknown is an error, whose type is the reason."""

    def attempted(self, outcome: str, status_code: int | None, error: str | None, took_s: float) -> None:
        """An attempt at the callback has just ended."""

    def ended(self, error: str | None = None) -> None:
        """The end of any span; ``error`` is a stable code."""


NO_SPAN: Final = Span()


class Tracing(Protocol):
    """Makes the spans of requests."""

    def accepting(self, parent: str, sharer: str, /) -> Span:
        """A request is about to be put into the queue. ``parent`` is the client's traceparent, or empty; ``sharer`` is
        whom the traces that clients ask for are shared out between. ``NO_SPAN`` where it is not to be traced."""
        ...

    def received(self, request: ChargingRequest, since_ms: int, /) -> None:
        """The request came out of the queue, into which it was put at this Unix time: the span ``queue``."""

    def deciding(self, request: ChargingRequest, /) -> Span:
        """The span ``decide`` begins."""
        ...

    def recording(self, request: ChargingRequest, /) -> Span:
        """The span ``record`` begins."""
        ...

    def delivering(self, request: ChargingRequest, /) -> Span:
        """The span ``deliver`` begins. It lasts for all attempts and the waits between them."""
        ...

    async def close(self, limit_s: float, /) -> None:
        """Send what waits, for so long at most. What is left then is lost."""


class _NoTracing:
    """Makes no spans."""

    def accepting(self, *_: str) -> Span:
        return NO_SPAN

    def received(self, *_: object) -> None:
        pass

    def deciding(self, _: ChargingRequest) -> Span:
        return NO_SPAN

    recording = delivering = deciding

    async def close(self, _: float) -> None:
        pass


NO_TRACING: Final[Tracing] = _NoTracing()


def trace_field(traceparent: str) -> dict[str, str]:
    """What a log line says of a request's trace: ``trace_id`` where there is one."""
    return {"trace_id": traceparent[3:35]} if traceparent else {}


def traced(fields: dict[str, Any], traceparent: str) -> dict[str, Any]:
    """The fields of a log line, with ``trace_field`` behind them."""
    if traceparent:
        fields |= trace_field(traceparent)
    return fields
