"""Compares this machine's clock with a server's that all processes ask, and sets the times of this process right."""

import asyncio
import contextlib
from typing import Final

from chargegate.engines import Registry
from chargegate.model import clock, machine_ms
from chargegate.observe import Metrics, log
from chargegate.storage.unavailable import Unavailable

ALLOWED_MS: Final = 2000
"""Clocks may differ by so much. A larger difference is warned of, and made up for."""

_TRIES: Final = 3
_EVERY_S: Final = 60.0
_AGAIN_S: Final = 5.0
_LOOK_S: Final = 1.0
_JUMP_MS: Final = 500


class ClockWatch:
    """Measures at the start, every minute, and when this machine's clock was set. ``ahead_ms`` is the difference that
    was measured last; None before that. ``compared_with`` names the server."""

    def __init__(self, registry: Registry, compared_with: str, metrics: Metrics) -> None:
        self.ahead_ms: int | None = None
        self.compared_with = compared_with
        self._registry = registry
        self._gauge = metrics.clock_skew
        self._watching: asyncio.Task[None] | None = None

    @property
    def differs(self) -> bool:
        return abs(self.ahead_ms or 0) > ALLOWED_MS

    async def start(self) -> None:
        """Measure, and go on with it. Without an answer the difference stays unknown for now."""
        with contextlib.suppress(Unavailable):
            await self.measure()
        self._watching = asyncio.create_task(self._watch())

    async def measure(self) -> None:
        """Raises ``Unavailable``. Of a few answers the quickest is believed, to half the time that it took."""
        loop = asyncio.get_running_loop()
        measured: list[tuple[float, float]] = []
        for _ in range(_TRIES):
            asked, began = machine_ms(), loop.time()
            server = await self._registry.server_ms()
            took = (loop.time() - began) * 1000
            measured.append((took, asked + took / 2 - server))
        took, ahead = min(measured)
        differed = self.differs
        self.ahead_ms = round(ahead) if abs(ahead) > took / 2 + 1 else 0
        self._gauge.set(self.ahead_ms / 1000)
        clock.ahead_ms = self.ahead_ms if self.differs else 0
        if self.differs and not differed:
            log.warning(
                "this machine's clock is not the server's; the server's counts",
                ahead_ms=self.ahead_ms,
                server=self.compared_with,
            )
        elif differed and not self.differs:
            log.info("this machine's clock is the server's again", ahead_ms=self.ahead_ms, server=self.compared_with)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + (_AGAIN_S if self.ahead_ms is None else _EVERY_S)
        beside = machine_ms() - loop.time() * 1000
        while True:
            await asyncio.sleep(_LOOK_S)
            now_beside = machine_ms() - loop.time() * 1000
            jumped, beside = abs(now_beside - beside) > _JUMP_MS, now_beside
            if jumped:
                due = loop.time()
            if loop.time() >= due:
                due = loop.time() + _AGAIN_S
                with contextlib.suppress(Unavailable):
                    await self.measure()
                    due = loop.time() + _EVERY_S

    async def close(self) -> None:
        clock.ahead_ms = 0
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
