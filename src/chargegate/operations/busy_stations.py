"""The stations with the most decisions, and those with the largest share of errors."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from chargegate.ledger.counts import HOUR_MS, DecisionCounts
from chargegate.model import now_ms
from chargegate.operations.statistics import OfStation, of_station

ORDERS: Final = ("total", "error_rate")
FEWEST_DECISIONS: Final = 5
"""A station with fewer decisions is not among the worst: one error would make it that."""

MOST: Final = 100
"""At most so many stations are told."""

_KEPT_S: Final = 15.0
_DAYS: Final = 31


class BusyStations:
    """Answers from the counts, and remembers an answer for some seconds, because the database adds up those of all
    stations."""

    def __init__(self, counts: DecisionCounts, clock: Callable[[], float] = time.monotonic) -> None:
        self._counts = counts
        self._clock = clock
        self._lock = asyncio.Lock()
        self._kept: dict[int, tuple[float, dict[str, list[OfStation]]]] = {}

    async def top(self, hours: int, order: str, limit: int) -> Sequence[OfStation]:
        """The first of them, ``MOST`` at most, in the last hours, the current one included. Raises
        ``LedgerUnavailable``."""
        async with self._lock:
            made_at, tops = self._kept.get(hours, (-_KEPT_S, {}))
            if self._clock() - made_at >= _KEPT_S:
                now = now_ms()
                since = (now // HOUR_MS - hours + 1) * HOUR_MS
                found = await self._counts.top_stations(since, now, fewest=FEWEST_DECISIONS, limit=MOST)
                tops = dict(zip(ORDERS, ([of_station(one) for one in order] for order in found), strict=True))
                self._kept = {each: kept for each, kept in self._kept.items() if self._clock() - kept[0] < _KEPT_S}
                self._kept[hours] = self._clock(), tops
            return tops[order][:limit]


MAX_HOURS: Final = _DAYS * 24
