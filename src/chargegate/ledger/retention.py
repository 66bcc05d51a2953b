"""Drops dead letters and finished requests that are past their retention, in small steps beside the traffic."""

import time
from collections.abc import Mapping
from typing import Final

import msgspec

from chargegate.ledger.base import Retention
from chargegate.model import now_ms
from chargegate.observe import Metrics, log
from chargegate.storage.recurring import Recurring, rest

STEP: Final = 500
"""At most so many rows are dropped in one transaction."""

_LOOK_S: Final = 1.0
_PAUSE_FACTOR: Final = 4
"""Between two steps it waits this many times as long as a step took, so that others have the database meanwhile."""


class RetentionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Times are in milliseconds. ``requests_ms`` 0: requests are kept for ever."""

    dead_letters_ms: int
    max_dead_letters: int
    requests_ms: int


class Dropping:
    """A task that looks every second for what is past its retention, and drops it."""

    def __init__(self, retention: Retention, limits: RetentionLimits, metrics: Metrics) -> None:
        self._retention = retention
        self._limits = limits
        self._old, self._excess = (metrics.dead_letters_dropped.labels(reason) for reason in ("age", "number"))
        self._requests = metrics.requests_dropped
        self._recurring = Recurring(self._drop_all, _LOOK_S, "what is past its retention cannot be dropped")

    async def _drop_all(self) -> float:
        more = True
        while more:
            started = time.monotonic()
            more = await self._drop_letters()
            more = await self._drop_requests() or more
            if more:
                await rest(started, _PAUSE_FACTOR)
        return _LOOK_S

    async def _drop_letters(self) -> bool:
        """One step. Whether there may be more."""
        before = now_ms() - self._limits.dead_letters_ms
        dropped = await self._retention.drop_dead_letters(before, self._limits.max_dead_letters, STEP)
        if dropped.old:
            self._old.inc(dropped.old)
            log.warning("dead letters dropped", reason="age", dead_letters=dropped.old)
        if dropped.excess:
            self._excess.inc(dropped.excess)
            log.warning("dead letters dropped", reason="number", dead_letters=dropped.excess)
        return dropped.old + dropped.excess >= STEP

    async def _drop_requests(self) -> bool:
        """One step. Whether there may be more."""
        if not self._limits.requests_ms:
            return False
        dropped = await self._retention.drop_finished(now_ms() - self._limits.requests_ms, STEP)
        if dropped:
            self._requests.inc(dropped)
            log.info("finished requests dropped", requests=dropped)
        return dropped >= STEP

    async def close(self) -> None:
        """A step that is under way is committed or undone by the database."""
        await self._recurring.close()


def excess_by_client(held: Mapping[str, int], most: int, limit: int) -> dict[str, int]:
    """How many dead letters each client must lose so that all hold ``most`` together, but no more than ``limit`` at
    once. Every single one is taken from the client who holds most then, so that nobody pushes out another's."""
    total = sum(held.values())
    excess = min(total - most, limit)
    if excess <= 0:
        return {}
    holders = sorted(held, key=lambda client: (-held[client], client))
    sum_of_highest = 0
    for count, client in enumerate(holders, 1):
        sum_of_highest += held[client]
        following = held[holders[count]] if count < len(holders) else 0
        if sum_of_highest - count * following >= excess:
            break
    level, spare = divmod(sum_of_highest - excess, count)
    lost = {client: held[client] - level - (place < spare) for place, client in enumerate(holders[:count])}
    return {client: letters for client, letters in lost.items() if letters}
