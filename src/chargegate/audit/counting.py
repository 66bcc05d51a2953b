"""Keeps the counts of decisions up with the audit's rows, in small steps beside the traffic."""

import asyncio
import contextlib
import time
from typing import Final

from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.counts import STEP, DecisionCounts
from chargegate.observe import log

_LOOK_S: Final = 1.0
_PAUSE_S: Final = 0.02
_PAUSE_FACTOR: Final = 2
"""Between two steps it waits this many times as long as a step took, so that others have the database meanwhile."""


class Counting:
    """A task that looks every second for rows that are not counted yet. Each process on a database may have one."""

    def __init__(self, counts: DecisionCounts) -> None:
        self._counts = counts
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                with contextlib.suppress(LedgerUnavailable):  # whoever needs it at once says so in the log
                    await self._catch_up()
            except Exception:  # noqa: BLE001 - whatever it is: if this task ended, answers would become slow
                log.exception("decisions cannot be counted")

    async def _catch_up(self) -> None:
        while True:
            started = time.monotonic()
            if await self._counts.count_more(STEP) < STEP:
                return
            await asyncio.sleep(max(_PAUSE_S, _PAUSE_FACTOR * (time.monotonic() - started)))

    async def close(self) -> None:
        """A step that is under way is committed or undone by the database."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
