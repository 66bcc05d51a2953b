"""Counts what waits in a queue's table, and counts a very long queue less often."""

import asyncio
import time
from typing import Final

from chargegate.engines.postgres.store import PostgresStore

_MANY: Final = 10_000
_DEAR_S: Final = 0.05
_KEPT_FACTOR: Final = 10
"""A count that took long is kept for so many times as long: whoever looks every second takes a tenth of the server's
time at most."""


class WaitingRows:
    """How many rows are free to be taken, and the ``accepted_at`` of the oldest of them (None where there are none).

    A count is made anew for everyone who asks, unless there are 10,000 rows or more and it took longer than 50 ms: such
    a count may be ten times as old as it took.
    """

    def __init__(self, store: PostgresStore, query: str) -> None:
        self._store = store
        self._query = query
        self._lock = asyncio.Lock()
        self._counted: tuple[int, int | None] = (0, None)
        self._valid_until = float("-inf")

    async def read(self) -> tuple[int, int | None]:
        """Raises what the store raises."""
        async with self._lock:
            began = time.monotonic()
            if began >= self._valid_until:
                ((waiting, oldest),) = await self._store.read(self._query)
                self._counted = (waiting, oldest)
                took = time.monotonic() - began
                dear = waiting >= _MANY and took > _DEAR_S
                self._valid_until = began + took * (1 + _KEPT_FACTOR) if dear else began
            return self._counted
