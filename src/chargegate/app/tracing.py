"""Traces, where the settings name a collector. Otherwise nothing of OpenTelemetry is imported."""

import logging
import random
import time
from importlib import import_module
from typing import TYPE_CHECKING, Final

import chargegate
from chargegate.app.opening import StartError
from chargegate.config import Settings
from chargegate.engines import engine_of
from chargegate.observe import NO_TRACING, Metrics, Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_SPANS: Final = "opentelemetry.sdk.trace"
_EXPORTERS: Final = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}
_EXPORT_S: Final = 5
_LAST_SPANS_S: Final = 2.0
_PATH: Final = "/v1/traces"
_OFFICIAL: Final = {"postgres": "postgresql"}
"""What the semantic conventions call an engine, where that is not its name here."""


class LastSpans:
    """Sends the spans that wait when the process ends, in two seconds or what is then left of the time that a shutdown
    may take."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._end = 0.0

    def begin(self, grace_s: float) -> None:
        """The shutdown begins, and may take so long."""
        self._end = time.monotonic() + grace_s

    async def close(self) -> None:
        await self._tracing.close(max(0.0, min(_LAST_SPANS_S, self._end - time.monotonic())))


def check_tracing(settings: Settings) -> None:
    """Raises ``StartError`` where traces are wanted and what makes them is not installed."""
    if not settings.tracing.otlp_endpoint:
        return
    try:
        for module in (_SPANS, _EXPORTERS[settings.tracing.protocol]):
            import_module(module)
    except ImportError as error:
        missing = error.name or "a module"
        raise StartError(
            f"tracing.otlp_endpoint: needs `pip install 'chargegate[otel]'` ({missing} is missing)"
        ) from None


def open_tracing(settings: Settings, role: str, metrics: Metrics) -> Tracing:
    """What makes the spans of this process. It is to be closed when all else has ended. Raises ``StartError``."""
    chosen = settings.tracing
    if not chosen.otlp_endpoint:
        return NO_TRACING
    from chargegate.observe.opentelemetry import OpenTelemetry  # noqa: PLC0415 - an extra that may be missing
    from chargegate.observe.trace_outbox import Outbox  # noqa: PLC0415 - as above
    from chargegate.observe.trace_shares import TraceShares  # noqa: PLC0415 - loaded with them only

    try:
        exporter = _exporter(chosen.protocol, chosen.otlp_endpoint)
    except Exception as error:  # noqa: BLE001 - the library reads variables, and raises many classes
        raise StartError(f"tracing.otlp_endpoint: a variable OTEL_… is at fault ({type(error).__name__})") from None
    # The outbox says itself, once a minute, that spans are lost; the library would say it for every one.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    sent, lost = (metrics.trace_spans.labels(outcome).inc for outcome in ("sent", "lost"))
    rng = random.Random()  # noqa: S311 - a sample
    return OpenTelemetry(
        Outbox(exporter, on_sent=sent, on_lost=lost),
        version=chargegate.__version__,
        role=role,
        queue=_called(settings.queue.url),
        database=_called(settings.database.url),
        sample_ratio=chosen.sample_ratio,
        shares=TraceShares(chosen.max_requested_per_second, rng),
        station_ids=chosen.station_ids,
        rng=rng,
    )


def _exporter(protocol: str, endpoint: str) -> "SpanExporter":
    """Headers, certificates and compression are those of the variables ``OTEL_EXPORTER_OTLP_…``."""
    if protocol != "grpc" and not endpoint.rstrip("/").endswith(_PATH):
        endpoint = endpoint.rstrip("/") + _PATH
    exporter: SpanExporter = import_module(_EXPORTERS[protocol]).OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_S)
    return exporter


def _called(url: str) -> str:
    name = engine_of(url).name
    return _OFFICIAL.get(name, name)
