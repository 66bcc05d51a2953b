"""Every metric, named once, and the log: one line an event, JSON where nobody watches.

No label has unbounded values, and nothing here is ever given a driver token.
"""

import asyncio
import io
import logging
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, Literal, TextIO

import msgspec
import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from chargegate.model import to_iso

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5, 10, 30)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """One process's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "charging_requests_total", "Requests to charge, by how they were answered.", ["outcome"], registry=registry
        )
        self.decisions = Counter(
            "authorization_status_total", "Decisions recorded, by status.", ["status"], registry=registry
        )
        self.processing_time = Histogram(
            "authorization_processing_time_seconds",
            "From asking the authorizer to its verdict.",
            buckets=_SHORT,
            registry=registry,
        )
        self.audit_entries = Counter(
            "audit_log_entries_total", "Decisions written, by audit sink.", ["sink"], registry=registry
        )
        self.deliveries = Counter(
            "callback_deliveries_total",
            "Callback attempts by how they ended: delivered, retry (will be tried again), dead_letter (given up).",
            ["outcome"],
            registry=registry,
        )
        self.callback_duration = Histogram(
            "callback_duration_seconds", "One callback attempt.", buckets=_SHORT, registry=registry
        )
        self.end_to_end = Histogram(
            "end_to_end_seconds", "From accepted to callback delivered.", buckets=_LONG, registry=registry
        )
        self.in_flight = Gauge(
            "requests_in_flight", "Requests taken from the queue and not finished, parked ones too.", registry=registry
        )
        self.queue_depth = Gauge("queue_depth", "Requests that no worker has taken yet.", registry=registry)
        self.queue_oldest_age = Gauge(
            "queue_oldest_age_seconds", "Age of the oldest request that no worker has taken.", registry=registry
        )
        self.breaker_state = Gauge(
            "circuit_breaker_state", "0 closed, 1 half open, 2 open.", ["name"], registry=registry
        )
        self.breaker_transitions = Counter(
            "circuit_breaker_transitions_total", "Changes of state.", ["name", "to"], registry=registry
        )
        self.dead_letters = Gauge("dead_letters", "Callbacks given up and not replayed.", registry=registry)

    def circuit(self, name: str) -> Callable[[str], None]:
        """A listener for one circuit's changes of state: ``closed``, ``half_open`` or ``open``."""
        self.breaker_state.labels(name).set(0)

        def changed(to: str) -> None:
            self.breaker_state.labels(name).set({"closed": 0, "half_open": 1, "open": 2}[to])
            self.breaker_transitions.labels(name, to).inc()

        return changed

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self.registry)


def configure_logging(
    level: str, form: Literal["auto", "json", "console"] = "auto", stream: TextIO | None = None
) -> None:
    """Send every event, ours and those of libraries that use ``logging``, to ``stream`` (default: standard error)."""
    out = stream or sys.stderr
    console = form == "console" or (form == "auto" and out.isatty())
    processors: Iterable[Any] = (
        [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=out.isatty()),
        ]
        if console
        else [structlog.processors.format_exc_info, _to_json]
    )
    lines = _Lines(out.buffer if isinstance(out, io.TextIOWrapper) else out)
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=list(processors),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_FromLibraries()], level=max(number, logging.WARNING), force=True)


def _to_json(_logger: Any, method: str, event: dict[str, Any]) -> bytes:
    line = {"timestamp": to_iso(time.time_ns() // 1_000_000), "level": method, "event": event.pop("event")}
    line.update(event)
    return msgspec.json.encode(line, enc_hook=str)


class _Lines:
    """Writes what one turn of the event loop logs in one go; outside a loop, each line at once."""

    def __init__(self, stream: BinaryIO | TextIO) -> None:
        self._stream = stream
        self._binary = not isinstance(stream, io.TextIOBase)
        self._waiting: list[bytes] = []

    def _line(self, line: bytes | str) -> None:
        self._waiting.append(line if isinstance(line, bytes) else line.encode())
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write()
        else:
            if len(self._waiting) == 1:
                loop.call_soon(self._write)

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            text = b"\n".join(waiting) + b"\n"
            self._stream.write(text if self._binary else text.decode())  # type: ignore[arg-type]  # as _binary says
            self._stream.flush()

    msg = log = debug = info = warn = warning = error = critical = exception = fatal = failure = err = _line


class _FromLibraries(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None
        )
