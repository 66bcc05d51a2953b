"""Every metric, named once, and the log: one line an event, JSON where nobody watches.

No label has unbounded values, and nothing here is ever given a driver token.
"""

import contextlib
import itertools
import logging
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, Final, Literal

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from chargegate.model import one_line, to_iso

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series a counter, that nobody asked for

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


_encode = msgspec.json.Encoder(enc_hook=str).encode
_MAX_LINES: Final = 10_000
_GATHER_S: Final = 0.01
_PATIENCE_S: Final = 1.0
_COLOURS: Final = {"warning": "33", "error": "31"}


def _to_json(level: str, event: str, fields: dict[str, Any]) -> bytes:
    line = {"timestamp": to_iso(time.time_ns() // 1_000_000), "level": level, "event": event, **fields}
    try:
        return _encode(line) + b"\n"
    except UnicodeEncodeError:  # a lone surrogate
        return _encode({name: ascii(value) for name, value in line.items()}) + b"\n"


def _to_console(level: str, event: str, fields: dict[str, Any], *, colours: bool) -> bytes:
    trace = fields.pop("traceback", None)
    values = " ".join(f"{name}={value}" for name, value in fields.items() if value not in ("", None))
    text = one_line(f"{time.strftime('%H:%M:%S')} {level:7} {event:32} {values}".rstrip())
    if colours and level in _COLOURS:
        text = f"\x1b[{_COLOURS[level]}m{text}\x1b[0m"
    return f"{text}\n{trace or ''}".encode(errors="replace")


class Log:
    """The log: ``log.info("request accepted", request_id=…)`` is one line, the event first.

    Our own because it is written for every request: a third of what structlog costs, measured.
    """

    def __init__(self) -> None:
        self._level = logging.INFO
        self._render: Callable[[str, str, dict[str, Any]], bytes] = _to_json
        self._stream: BinaryIO | None = None
        self._waiting: deque[bytes] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._woken = self._ending = False
        self._losses = itertools.count(1)  # counted by whoever loses one, in any thread
        self._lost = 0

    def configure(self, level: int, stream: BinaryIO, *, console: bool, colours: bool) -> None:
        self._level = level
        self._stream = stream
        self._render = partial(_to_console, colours=colours) if console else _to_json

    def attach(self) -> None:
        """From here on a thread writes, so that an event loop never waits for whoever takes the log. What nobody takes
        is bounded: past 10,000 lines new ones are lost and counted."""
        self._ending = False
        self._writer = threading.Thread(target=self._run, name="log", daemon=True)
        self._writer.start()

    def detach(self) -> None:
        """Write what is waiting, unless nobody takes it, and write at once again."""
        if self._writer is not None:
            self._ending = True
            self._wake.put(None)
            self._writer.join(_PATIENCE_S)
            self._writer = None

    def debug(self, event: str, **fields: Any) -> None:
        if self._level <= logging.DEBUG:
            self._emit("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        if self._level <= logging.INFO:
            self._emit("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        if self._level <= logging.WARNING:
            self._emit("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._emit("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._emit("error", event, {**fields, "traceback": traceback.format_exc()})

    def _emit(self, level: str, event: str, fields: dict[str, Any]) -> None:
        line = self._render(level, event, fields)
        if self._writer is None:
            self._write(line)
        elif len(self._waiting) < _MAX_LINES:
            self._waiting.append(line)
            if not self._woken:
                self._woken = True
                self._wake.put(None)
        else:
            self._lost = next(self._losses)

    def _run(self) -> None:
        """The writing thread: only it waits for whoever takes the log."""
        told = self._lost
        while True:
            self._wake.get()
            ending = self._ending
            if not ending:
                time.sleep(_GATHER_S)
            self._woken = False
            lines, lost = [], self._lost - told
            with contextlib.suppress(IndexError):
                while True:
                    lines.append(self._waiting.popleft())  # safe between threads, as a look at its length is not
            if lost:
                told += lost
                lines.append(self._render("warning", "log lines lost, nobody took them", {"lines": lost}))
            self._write(b"".join(lines))
            if ending:
                return

    def _write(self, text: bytes) -> None:
        # A log on a full disk or into a closed pipe must not stop the service.
        with contextlib.suppress(OSError, ValueError):
            # Not through a buffer, whose lock a thread that is never let go would hold at the end of the process.
            stream = self._stream or sys.stderr.buffer
            stream = getattr(stream, "raw", stream)
            while text:
                text = text[stream.write(text) :]


log = Log()


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    form: Literal["auto", "json", "console"] = "auto",
    stream: BinaryIO | None = None,
) -> None:
    """Send every event, ours and those of libraries that use ``logging``, to ``stream`` (default: standard error)."""
    out = stream or sys.stderr.buffer
    number = logging.getLevelNamesMapping()[level.upper()]
    console = form == "console" or (form == "auto" and out.isatty())
    log.configure(number, out, console=console, colours=out.isatty())
    logging.basicConfig(handlers=[_FromLibraries()], level=max(number, logging.WARNING), force=True)


class _FromLibraries(logging.Handler):
    """Their events as ours. What is wrong with a record must not fall back on the library."""

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name}
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit, or that cannot be shown
            message = str(record.msg)
        if record.exc_info and record.exc_info[1]:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        (log.error if record.levelno >= logging.ERROR else log.warning)(message, **fields)
