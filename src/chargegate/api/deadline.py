"""A limit of time that is set anew several times a request."""

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls ``over`` when the time that was set last is over. Setting a timer costs more than all the rest, so one that
    runs is left to run, and is set anew when it ends too early."""

    __slots__ = ("_at", "_loop", "_over", "_timer", "_timer_at")

    def __init__(self, loop: asyncio.AbstractEventLoop, over: Callable[[], None]) -> None:
        self._loop = loop
        self._over: Callable[[], None] | None = over
        self._at = 0.0  # 0: no limit
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def set(self, seconds: float) -> None:
        self._at = self._loop.time() + seconds
        if self._timer is None or self._at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._start()

    def clear(self) -> None:
        """There is no limit until the next one is set."""
        self._at = 0.0

    def end(self) -> None:
        """Nothing is called any more, and nothing is kept alive."""
        self._at = 0.0
        self._over = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        self._timer_at = self._at
        self._timer = self._loop.call_at(self._at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if not self._at:
            return
        if self._at > self._loop.time():
            self._start()
        elif self._over is not None:
            self._over()
