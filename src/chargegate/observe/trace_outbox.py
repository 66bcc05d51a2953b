"""Sends spans to a collector from a thread. Nobody waits for it, and all that it can lose is spans.

The SDK's own ``BatchSpanProcessor`` waits up to 30 s when it is closed, which cannot be changed, uses no time limit for
an export, and does not tell what it dropped (opentelemetry-python, issues 4555 and 4568).
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from chargegate.observe.event_log import log

_MAX_WAITING: Final = 4096
_BATCH: Final = 512
_EVERY_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 10.0
_WARN_EVERY_S: Final = 60.0

Count = Callable[[int], None]


class Outbox(SpanProcessor):
    """Keeps at most 4,096 spans that have ended, and sends them each second. Further ones are lost, and counted.

    While the collector takes none, the pauses between two trials grow to 10 s, and what was tried is not tried again.
    """

    def __init__(self, exporter: SpanExporter, *, on_sent: Count, on_lost: Count) -> None:
        """``on_sent`` and ``on_lost`` are told how many spans; they are called from two threads."""
        self._exporter = exporter
        self._on_sent = on_sent
        self._on_lost = on_lost
        self._waiting: deque[ReadableSpan] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._ending = False
        self._failures = 0
        self._warned_at = -_WARN_EVERY_S
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing is to do: spans are sent when they have ended."""

    def on_end(self, span: ReadableSpan) -> None:
        if self._ending or len(self._waiting) >= _MAX_WAITING:
            self._on_lost(1)
        else:
            self._waiting.append(span)

    def shutdown(self) -> None:
        """The provider of the SDK is not asked to shut down; ``close`` is."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # noqa: ARG002 - the SDK's signature
        return not self._waiting

    async def close(self, limit_s: float) -> None:
        """Send what waits, for so long at most; the rest is lost. The thread may hang for longer in a call that cannot
        be ended, and then ends with the process. This may be called twice."""
        if self._ending:
            return
        self._ending = True
        self._wake.put(None)
        await asyncio.to_thread(self._thread.join, limit_s)
        lost = len(self._waiting)
        self._waiting.clear()
        if lost:
            self._on_lost(lost)
        # It ends a wait for another trial. A collector that hangs must not keep the event loop waiting.
        threading.Thread(target=self._exporter.shutdown, name="traces-end", daemon=True).start()

    def _run(self) -> None:
        while not self._ending:
            pause_s = min(_LONGEST_PAUSE_S, _EVERY_S * 2**self._failures)
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=pause_s)
            self._send()

    def _send(self) -> None:
        """Send what waits now, or until a batch is not taken."""
        for _ in range(_MAX_WAITING // _BATCH):
            batch: list[ReadableSpan] = []
            with contextlib.suppress(IndexError):
                while len(batch) < _BATCH:
                    batch.append(self._waiting.popleft())
            if not batch:
                return
            try:
                taken = self._exporter.export(batch) is SpanExportResult.SUCCESS
            except Exception:  # noqa: BLE001 - whatever the library raises, this thread goes on
                taken = False
            if taken:
                self._failures = 0
                self._on_sent(len(batch))
            else:
                self._failures = min(self._failures + 1, 4)
                self._on_lost(len(batch))
                self._warn()
                return

    def _warn(self) -> None:
        if time.monotonic() - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = time.monotonic()
            log.warning("the collector takes no traces; they are lost, and nothing else is")
