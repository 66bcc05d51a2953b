"""Keeps the counts of decisions up with the audit's rows, in small steps beside the traffic."""

import asyncio
import time
from typing import Final

from chargegate.ledger.counts import STEP, DecisionCounts
from chargegate.model import now_ms
from chargegate.observe import log
from chargegate.storage.recurring import Recurring, rest

_LOOK_S: Final = 1.0
_PAUSE_S: Final = 0.02
_PAUSE_FACTOR: Final = 2
"""Between two steps it waits this many times as long as a step took, so that others have the database meanwhile."""

_SMALL_STEPS: Final = 60  # some seconds' rows under a heavy load

_DROPPED_AT_ONCE: Final = 500
_DROP_S: Final = 600.0
_JUMP_MS: Final = 60_000


class Counting:
    """A task that looks every second for rows that are not counted yet, and now and then for counts that are older than
    they are kept. Each process on a database may have one."""

    def __init__(self, counts: DecisionCounts, *, keep_ms: int) -> None:
        self._counts = counts
        self._keep_ms = keep_ms
        self._dropped_at = float("-inf")
        self._offset = _offset()
        self._recurring = Recurring(self._look, _LOOK_S, "decisions cannot be counted")

    async def _look(self) -> float:
        await self._catch_up()
        if time.monotonic() - self._dropped_at >= _DROP_S:
            await self._drop_old()
        return _LOOK_S

    async def _catch_up(self) -> None:
        """In steps that others hardly notice, and in larger ones where these do not come to an end."""
        step, steps = self._counts.step, 0
        while True:
            started = time.monotonic()
            if await self._counts.count_more(step) < step:
                return
            steps += 1
            if steps % _SMALL_STEPS == 0:
                step = min(2 * step, STEP)
            await rest(started, _PAUSE_FACTOR)

    async def _drop_old(self) -> None:
        """Not while the clock may be wrong: one that was set forward would make all counts old."""
        before, self._offset = self._offset, _offset()
        self._dropped_at = time.monotonic()
        if abs(self._offset - before) > _JUMP_MS:
            log.warning("the clock was set; no old counts are dropped for now", by_ms=self._offset - before)
            return
        dropped = 1
        while dropped:
            dropped = await self._counts.drop_before(now_ms() - self._keep_ms, _DROPPED_AT_ONCE)
            await asyncio.sleep(_PAUSE_S)

    async def close(self) -> None:
        """A step that is under way is committed or undone by the database."""
        await self._recurring.close()


def _offset() -> int:
    """By how much the wall clock is ahead of the monotonic one (ms)."""
    return now_ms() - int(time.monotonic() * 1000)
