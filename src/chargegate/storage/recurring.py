"""Work that a process does again and again beside its traffic, such as dropping what is old."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

from chargegate.observe import log
from chargegate.storage.unavailable import Unavailable

_SHORTEST_S: Final = 0.02
_AFTER_FAILURE_S: Final = 1.0


class Recurring:
    """A task that goes on until ``close``: a turn that fails is logged, and the next one is tried. While the store is
    unavailable nothing is logged, because whoever needs it at once says so."""

    def __init__(self, turn: Callable[[], Awaitable[float]], first_s: float, failure: str) -> None:
        """``turn()`` returns the seconds until the next turn. After a failure they are what they were, and at least
        one. ``first_s``: those until the first turn. ``failure``: the event that is logged."""
        self._turn = turn
        self._wait_s = first_s
        self._failure = failure
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._wait_s)
            self._wait_s = max(self._wait_s, _AFTER_FAILURE_S)  # unless the turn succeeds
            try:
                with contextlib.suppress(Unavailable):
                    self._wait_s = await self._turn()
            except Exception:  # noqa: BLE001 - whatever it is: if this task ended, the work would never be done again
                log.exception(self._failure)

    async def close(self) -> None:
        """Cancel a turn that is under way."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def rest(started: float, factor: float) -> None:
    """Wait ``factor`` times as long as the step that began at ``started`` (``time.monotonic``), so that others have the
    store meanwhile."""
    await asyncio.sleep(max(_SHORTEST_S, factor * (time.monotonic() - started)))
