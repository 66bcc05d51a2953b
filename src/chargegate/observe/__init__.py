"""What operators see of a running service: metrics, the log and traces."""

from chargegate.observe.event_log import Log, configure_logging, log
from chargegate.observe.metrics import Metrics
from chargegate.observe.tracing import NO_SPAN, NO_TRACING, Span, Tracing, trace_field, traced

__all__ = [
    "NO_SPAN",
    "NO_TRACING",
    "Log",
    "Metrics",
    "Span",
    "Tracing",
    "configure_logging",
    "log",
    "trace_field",
    "traced",
]
