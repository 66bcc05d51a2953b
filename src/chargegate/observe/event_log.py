"""The log: one line an event, JSON unless it goes to a terminal. No driver token may be passed to it."""

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
from functools import lru_cache, partial
from typing import Any, BinaryIO, Final, Literal

import msgspec

from chargegate.model import one_line, printable_json, to_iso

_encode = msgspec.json.Encoder(enc_hook=str).encode
_MAX_LINES: Final = 10_000
_THREAD: Final = "log"
_BATCH_S: Final = 0.01  # each waking of the thread takes the interpreter's lock from whoever has it
_DETACH_S: Final = 1.0
_COLOURS: Final = {"warning": "33", "error": "31"}


@lru_cache(maxsize=16)
def _time_field(ms: int) -> bytes:
    """How a line begins, for the many lines of one millisecond."""
    return b'{"timestamp":"' + to_iso(ms).encode() + b'",'


@lru_cache(maxsize=256)
def _event_fields(level: str, event: str) -> bytes:
    """What comes next, for the many lines of one event."""
    return _encode({"level": level, "event": event})[1:-1]


def _to_json(level: str, event: str, fields: dict[str, Any]) -> bytes:
    try:
        begin = _time_field(time.time_ns() // 1_000_000) + _event_fields(level, event)
        text = begin + b"," + _encode(fields)[1:] if fields else begin + b"}"
        # Asking for this is cheap; what is ASCII is written as it is, but for one character.
        if not text.isascii() or b"\x7f" in text:
            text = printable_json(text.decode()).encode()
        return text + b"\n"
    except UnicodeEncodeError:  # a lone surrogate
        line = {"timestamp": to_iso(time.time_ns() // 1_000_000), "level": level, "event": event, **fields}
        return _encode({name: ascii(value) for name, value in line.items()}) + b"\n"


def _to_console(level: str, event: str, fields: dict[str, Any], *, colours: bool) -> bytes:
    trace = fields.pop("traceback", None)
    values = " ".join(f"{name}={value}" for name, value in fields.items() if value not in ("", None))
    text = one_line(f"{time.strftime('%H:%M:%S')} {level:7} {event:32} {values}".rstrip())
    if colours and level in _COLOURS:
        text = f"\x1b[{_COLOURS[level]}m{text}\x1b[0m"
    return f"{text}\n{trace or ''}".encode(errors="replace")


class Log:
    """The log: ``log.info("request accepted", request_id=…)`` writes one line.

    It is our own because every request writes to it: structlog takes three times as long (docs/decisions/0004).
    """

    def __init__(self) -> None:
        self._level = logging.INFO
        self._render: Callable[[str, str, dict[str, Any]], bytes] = _to_json
        self._stream: BinaryIO | None = None
        self._waiting: deque[bytes] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._woken = self._ending = False
        self._loss_numbers = itertools.count(1)  # a plain += would lose counts between threads
        self._lost = 0
        self._stuck = False

    def configure(self, level: int, stream: BinaryIO, *, console: bool, colours: bool) -> None:
        self._level = level
        self._stream = stream
        self._render = partial(_to_console, colours=colours) if console else _to_json

    def attach(self) -> None:
        """Write from a thread from now on, so that an event loop never waits for the reader of the log. At most 10,000
        lines wait for a slow reader: further ones are dropped, and counted."""
        self._ending = self._stuck = False
        self._writer = threading.Thread(target=self._run, name=_THREAD, daemon=True)
        self._writer.start()

    def detach(self) -> None:
        """End the thread once the waiting lines are written, or after a second. Later lines are written at once."""
        if self._writer is not None:
            self._ending = True
            self._wake.put(None)
            self._writer.join(_DETACH_S)
            self._stuck = self._writer.is_alive()
            self._writer = None

    def info(self, event: str, **fields: Any) -> None:
        if self._level <= logging.INFO:
            self._emit("info", event, fields)

    def step(self, event: str, fields: dict[str, Any]) -> None:
        """As ``info``, for what each request logs: a dictionary that is there already costs half of named arguments.
        The log may change it."""
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
            self._lost = next(self._loss_numbers)

    def _run(self) -> None:
        """The writing thread. Nobody else waits for the reader of the log."""
        reported = self._lost
        while True:
            self._wake.get()
            ending = self._ending
            if not ending:
                time.sleep(_BATCH_S)
            self._woken = False
            lines, lost = [], self._lost - reported
            with contextlib.suppress(IndexError):
                while True:
                    lines.append(self._waiting.popleft())  # Unlike a check of the length, this is safe between threads.
            if lost:
                reported += lost
                lines.append(self._render("warning", "log lines lost, nobody took them", {"lines": lost}))
            self._write(b"".join(lines))
            if ending:
                return

    def _write(self, text: bytes) -> None:
        if self._stuck and threading.current_thread().name != _THREAD:
            return  # nobody reads, and this process is to end
        # A full disk or a closed pipe must not stop the service.
        with contextlib.suppress(OSError, ValueError):
            # A stuck thread would hold a buffer's lock until the process ends, so the raw stream is used.
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
    """Send our events and those of libraries that use ``logging`` to ``stream`` (default: standard error)."""
    out = stream or sys.stderr.buffer
    number = logging.getLevelNamesMapping()[level.upper()]
    console = form == "console" or (form == "auto" and out.isatty())
    log.configure(number, out, console=console, colours=out.isatty())
    logging.basicConfig(handlers=[_FromLibraries()], level=max(number, logging.WARNING), force=True)


class _FromLibraries(logging.Handler):
    """Writes the events of libraries as ours. A malformed record raises nothing into the library."""

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name}
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - the arguments may not fit the message, or their __str__ may raise anything
            message = str(record.msg)
        if record.exc_info and record.exc_info[1]:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        (log.error if record.levelno >= logging.ERROR else log.warning)(message, **fields)
