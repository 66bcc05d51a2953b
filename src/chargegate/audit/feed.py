"""Copies the ledger's audit rows into files: at once while all is well, and later from the ledger after a failure."""

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from typing import Final

from chargegate.audit.base import AuditSink, EndLost
from chargegate.audit.sink_state import SinkState
from chargegate.ledger.base import AuditSource
from chargegate.ledger.records import AuditRow
from chargegate.observe import Metrics, log

_PAGE: Final = 1000
_CATCH_UP_S: Final = 0.5
_AT_START_S: Final = 3.0
_TURNS_BETWEEN_SAVES: Final = 10


class AuditFeed(SinkState):
    """Gives a sink each audit row once, in order, also across crashes of either.

    The sink's position is saved in the ledger every few seconds. Rows that the sink refused are read again from the
    ledger. After a crash, the sink remembers how far it came, or else the rows that it holds beyond the saved position
    are recognised by their request ids.
    """

    def __init__(self, sink: AuditSink, metrics: Metrics) -> None:
        super().__init__(sink.name, metrics)
        self._sink = sink
        self._lock = threading.Lock()
        self._resuming = threading.Lock()
        self._position = 0
        self._saved = 0
        self._offered = 0
        self._behind = True
        self._newest: deque[AuditRow] = deque(maxlen=_PAGE)  # of those that were offered while it is behind
        self._lost = False  # rows that were written are not there any more
        self._source: AuditSource | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, source: AuditSource) -> None:
        """Bring the sink up to date, and keep it so; what takes longer than a few seconds is done beside the traffic.
        Raises ``OSError`` if the sink cannot resume."""
        self._source = source
        known = await self._resume(source)
        if not self._saved:  # A backfill leaves to the feed what it has yet to write, which this tells.
            await source.save_sink_position(self._sink.name, 0)
        with contextlib.suppress(OSError):  # _failure keeps it, and _follow tries again.
            await self._catch_up(source, known, time.monotonic() + _AT_START_S)
        self._task = asyncio.create_task(self._follow(source, known))

    async def _resume(self, source: AuditSource) -> frozenset[str]:
        """Find out after which row some may be missing. Returns the request ids of those that are not."""
        self._saved = await source.sink_position(self._sink.name)
        confirmed = [each for each in self._sink.last_written() if await self._confirms(source, *each)]
        await asyncio.to_thread(self._resume_sink, self._saved, confirmed)
        if await source.audit_after(self._position, 1):
            known = await asyncio.to_thread(self._sink.held)
        else:
            known = frozenset()
        self._lost = False  # only now: without what it holds, rows would be written twice
        return known

    def _resume_sink(self, saved: int, confirmed: list[tuple[int, str]]) -> None:
        """The thread goes on where the waiting task is cancelled, and ``close`` needs the position that it finds."""
        with self._resuming:
            self._position = self._sink.resume(saved, confirmed)

    def _resumed(self) -> None:
        """Wait until no thread resumes the sink."""
        with self._resuming:
            pass

    @staticmethod
    async def _confirms(source: AuditSource, sequence: int, request_id: str) -> bool:
        """Whether the ledger has the row that the sink remembers: not after a restore of either of them."""
        rows = await source.audit_after(sequence - 1, 1)
        return bool(rows) and (rows[0].sequence, rows[0].decision.request_id) == (sequence, request_id)

    def offer(self, rows: list[AuditRow]) -> None:
        """Write rows that were committed just now. The ledger's writing thread calls it. It raises nothing."""
        with self._lock:
            self._offered = rows[-1].sequence
            if self._behind or rows[0].sequence != self._position + 1:
                self._behind = True
                self._newest.extend(rows)
                self._waiting_since = self._waiting_since or rows[0].decision.timestamp
                return
            with contextlib.suppress(OSError):
                self._write(rows)

    def _write(self, rows: list[AuditRow]) -> None:
        try:
            self._sink.write(rows)
        except OSError as error:
            self._lost = self._lost or isinstance(error, EndLost)
            self._behind = True
            self._waiting_since = self._waiting_since or rows[0].decision.timestamp
            self._failed(error.strerror or str(error), str(error))
            raise
        self._works()
        self._position = rows[-1].sequence
        self._written.inc(len(rows))

    async def _catch_up(self, source: AuditSource, known: frozenset[str], end: float = math.inf) -> None:
        """Until the sink has all, or the monotonic clock says ``end``."""
        while self._behind:
            rows = await source.audit_after(self._position, _PAGE)
            await asyncio.to_thread(self._write_missing, rows, known)
            if time.monotonic() >= end:
                return

    def _write_missing(self, rows: list[AuditRow], known: frozenset[str]) -> None:
        with self._lock:
            if rows:
                self._waiting_since = rows[0].decision.timestamp
            missing = [row for row in rows if row.decision.request_id not in known]
            if missing:
                self._write(missing)
            if rows:
                self._position = rows[-1].sequence
            at_end = self._write_newest(known) or not rows
            if at_end and self._offered <= self._position:
                self._behind = False
                self._newest.clear()
                self._waiting_since = None

    def _write_newest(self, known: frozenset[str]) -> bool:
        """Go on with what was offered meanwhile, where nothing is missing before it: while rows go on coming, those in
        the ledger would never come to an end. False where something is missing, or nothing was offered."""
        newest = [row for row in self._newest if row.sequence > self._position]
        if not newest or newest[0].sequence != self._position + 1:
            return False
        if newest[-1].sequence != self._position + len(newest):
            return False
        missing = [row for row in newest if row.decision.request_id not in known]
        if missing:
            self._write(missing)
        self._position = newest[-1].sequence
        return True

    async def _follow(self, source: AuditSource, known: frozenset[str]) -> None:
        turns = 0
        while True:
            await asyncio.sleep(_CATCH_UP_S)
            turns += 1
            try:
                if self._lost:
                    known = await self._resume(source)
                if self._behind:
                    await self._catch_up(source, known)
                known = frozenset()
                if turns % _TURNS_BETWEEN_SAVES == 0:
                    await self._save_position(source)
            except OSError:
                continue  # _write logged the failure when it began.
            except Exception as error:  # noqa: BLE001 - whatever it is, the rows are safe in the ledger
                log.warning("audit sink is behind", sink=self._sink.name, error=type(error).__name__)

    async def _save_position(self, source: AuditSource) -> None:
        position = self._position
        if position != self._saved:
            await asyncio.to_thread(self._sink.sync)
            await source.save_sink_position(self._sink.name, position)
            self._saved = position

    async def close(self) -> None:
        """Save the position and close the sink."""
        if self._task is not None and self._source is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            await asyncio.to_thread(self._resumed)
            with contextlib.suppress(Exception):  # The next start finds an unsaved position by request ids.
                await self._save_position(self._source)
        with self._lock:  # a page may still be written in its thread
            self._sink.close()
