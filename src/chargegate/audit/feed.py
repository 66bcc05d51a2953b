"""Keeps a sink in step with the ledger: at once while all is well, and from the ledger's rows after a failure."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Final

from chargegate.audit.base import AuditSink
from chargegate.ledger.records import AuditRow
from chargegate.observe import Metrics, log

_PAGE: Final = 1000
_CATCH_UP_S: Final = 0.5
_SAVE_TURNS: Final = 10


class AuditFeed:
    """One sink's feed. Each audit row reaches the sink once, in order, also across crashes of either.

    ``offer`` is called in the ledger's writing thread right after a commit, and never raises. Rows that the sink
    would not take are read again from the ledger; the sink's position is saved there now and then, and what the sink
    holds beyond it is recognised by its request ids.
    """

    def __init__(self, sink: AuditSink, metrics: Metrics) -> None:
        self._sink = sink
        self._written = metrics.audit_entries.labels(sink.name)
        self._lock = threading.Lock()
        self._position = 0
        self._saved = 0
        self._offered = 0
        self._behind = True
        self._failure: str | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The sink's."""
        return self._sink.name

    @property
    def failure(self) -> str | None:
        """Why the sink does not take rows now, or None."""
        return self._failure

    async def start(
        self,
        position: int,
        after: Callable[[int, int], Awaitable[list[AuditRow]]],
        save: Callable[[int], Awaitable[None]],
    ) -> None:
        """Bring the sink up to date from its saved position, and keep it so. ``after(position, limit)`` reads rows."""
        self._position = self._saved = position
        known = await asyncio.to_thread(self._sink.resume)
        with contextlib.suppress(OSError):  # kept in _failure, and tried again
            await self._catch_up(after, known)
        self._task = asyncio.create_task(self._follow(after, save, known))

    def offer(self, rows: list[AuditRow]) -> None:
        with self._lock:
            self._offered = rows[-1].sequence
            if self._behind or not self._sink.prompt or rows[0].sequence != self._position + 1:
                self._behind = True
                return
            with contextlib.suppress(OSError):
                self._write(rows)

    def _write(self, rows: list[AuditRow]) -> None:
        try:
            self._sink.write(rows)
        except OSError as error:
            self._behind = True
            if self._failure is None:
                log.error("audit sink failed, its rows wait in the ledger", sink=self._sink.name, error=str(error))
            self._failure = error.strerror or str(error)
            raise
        if self._failure is not None:
            log.info("audit sink works again", sink=self._sink.name)
            self._failure = None
        self._position = rows[-1].sequence
        self._written.inc(len(rows))

    async def _catch_up(self, after: Callable[[int, int], Awaitable[list[AuditRow]]], known: frozenset[str]) -> None:
        while self._behind:
            rows = await after(self._position, _PAGE)
            await asyncio.to_thread(self._take, rows, known)

    def _take(self, rows: list[AuditRow], known: frozenset[str]) -> None:
        with self._lock:
            new = [row for row in rows if row.decision.request_id not in known]
            if new:
                self._write(new)
            if rows:
                self._position = rows[-1].sequence
            elif self._offered <= self._position:
                self._behind = False

    async def _follow(
        self,
        after: Callable[[int, int], Awaitable[list[AuditRow]]],
        save: Callable[[int], Awaitable[None]],
        known: frozenset[str],
    ) -> None:
        turns = 0
        while True:
            await asyncio.sleep(_CATCH_UP_S)
            turns += 1
            try:
                if self._behind:
                    await self._catch_up(after, known)
                known = frozenset()
                if turns % _SAVE_TURNS == 0:
                    await self._save(save)
            except OSError:
                continue  # told when it began, by _write
            except Exception as error:  # noqa: BLE001 - whatever it is, the rows are safe in the ledger
                log.warning("audit sink is behind", sink=self._sink.name, error=type(error).__name__)

    async def _save(self, save: Callable[[int], Awaitable[None]]) -> None:
        position = self._position
        if position != self._saved:
            await asyncio.to_thread(self._sink.sync)
            await save(position)
            self._saved = position

    async def close(self, save: Callable[[int], Awaitable[None]]) -> None:
        """Save the position and close the sink."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            with contextlib.suppress(Exception):  # a position that is not saved is found again by request ids
                await self._save(save)
        self._sink.close()
