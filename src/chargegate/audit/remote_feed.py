"""Copies the ledger's audit rows to a server, which may be slow or away: a decision never waits for it."""

import asyncio
import contextlib
import threading
import time
from typing import Final

from chargegate.audit.base import RemoteSink, SinkUnavailable
from chargegate.audit.sink_state import SinkState
from chargegate.audit.together import write_together
from chargegate.ledger.base import AuditSource, LedgerUnavailable
from chargegate.ledger.records import AuditRow
from chargegate.observe import Metrics

_PAGE: Final = 2000
_TURN_S: Final = 0.5
_SAVE_S: Final = 5.0
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 10.0
_LONGEST_ASKED_S: Final = 60.0
_LAST_S: Final = 3.0


class RemoteFeed(SinkState):
    """Gives a server each audit row, in order, and again where it is not known whether the server has it.

    Rows that were committed just now are kept in memory, up to ``_PAGE`` of them; others are read from the ledger, so
    that a backlog lies on disk. The position is saved in the ledger every few seconds; after a crash the rows since
    then are written again, which changes nothing in the server.
    """

    def __init__(self, sink: RemoteSink, metrics: Metrics) -> None:
        super().__init__(sink.name, metrics)
        self._sink = sink
        self._position = self._saved = 0
        self._behind = True
        self._fresh: list[AuditRow] = []  # the newest rows without a gap, unless they became too many
        self._lock = threading.Lock()
        self._saved_at = 0.0
        self._wait_s = _FIRST_WAIT_S
        self._source: AuditSource | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, source: AuditSource) -> None:
        """Go on after the saved position. Returns at once, whether the server answers or not."""
        self._source = source
        self._position = self._saved = await source.sink_position(self._sink.name)
        self._task = asyncio.create_task(self._follow(source))

    def offer(self, rows: list[AuditRow]) -> None:
        """Rows were committed just now. Another thread calls it; they are sent later."""
        with self._lock:
            if len(self._fresh) + len(rows) > _PAGE or (
                self._fresh and self._fresh[-1].sequence + 1 != rows[0].sequence
            ):
                self._fresh = []
            if len(rows) <= _PAGE:
                self._fresh += rows
            self._waiting_since = self._waiting_since or rows[0].decision.timestamp
            self._behind = True

    async def _next(self, source: AuditSource) -> list[AuditRow]:
        """The rows after the position: those at hand, if no other is missing before them."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
        if fresh and fresh[0].sequence <= self._position + 1 <= fresh[-1].sequence:
            return fresh[self._position + 1 - fresh[0].sequence :]
        return await source.audit_after(self._position, _PAGE)

    async def _follow(self, source: AuditSource) -> None:
        wait_s = 0.0
        while True:
            await asyncio.sleep(wait_s)
            wait_s = await self._turn(source)

    async def _turn(self, source: AuditSource) -> float:
        """Write what is there, and save how far it came. Returns the seconds until the next turn."""
        try:
            while self._behind and await self._page(source):
                pass
            await self._save(source)
        except SinkUnavailable as error:
            self._failed(str(error))
            waits, self._wait_s = self._wait_s, min(2 * self._wait_s, _LONGEST_WAIT_S)
            return waits if error.wait_s is None else min(max(error.wait_s, _TURN_S), _LONGEST_ASKED_S)
        except LedgerUnavailable:
            pass  # The database's part of /health says so.
        except Exception as error:  # noqa: BLE001 - whatever it is, the rows are safe in the ledger
            self._failed(type(error).__name__)
        return _TURN_S

    async def _page(self, source: AuditSource) -> bool:
        """Write the next rows. Whether more are there already: those that come one by one wait for the next turn, so
        that they are sent together."""
        self._behind = False  # an offer may come while the page is read
        rows: list[AuditRow] = []
        try:
            rows = await self._next(source)
            if rows:
                await self._write(source, rows)
        except BaseException:
            self._behind = True
            raise
        full = len(rows) == _PAGE
        if full:
            self._behind = True
        elif not self._behind:
            self._waiting_since = None
        if time.monotonic() - self._saved_at >= _SAVE_S:
            await self._save(source)
        return full

    async def _write(self, source: AuditSource, rows: list[AuditRow]) -> None:
        self._waiting_since = rows[0].decision.timestamp
        refused = await write_together(self._sink, source, rows)
        self._position = rows[-1].sequence
        self._written.inc(len(rows) - refused)
        self._refused.inc(refused)
        self._wait_s = _FIRST_WAIT_S
        self._works()

    async def _save(self, source: AuditSource) -> None:
        if self._position != self._saved and time.monotonic() - self._saved_at >= _SAVE_S:
            position = self._position
            await source.save_sink_position(self._sink.name, position)
            self._saved, self._saved_at = position, time.monotonic()

    async def close(self) -> None:
        """Write what is left if the server takes it soon, save the position, and close the sink."""
        if self._task is not None and self._source is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            with contextlib.suppress(Exception):  # The rest is written after the next start.
                if self._failure is None:
                    async with asyncio.timeout(_LAST_S):
                        await self._turn(self._source)
            with contextlib.suppress(Exception):
                self._saved_at = 0.0
                await self._save(self._source)
        await self._sink.close()
