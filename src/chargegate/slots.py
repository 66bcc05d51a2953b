"""A fixed number of things at once."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from chargegate.observe import log

_HEEDED_S: Final = 0.5  # a library may swallow a cancellation

Step = Callable[[Any], Coroutine[Any, Any, None]]


class Slots:
    """Runs steps, at most ``count`` at once, in the order in which they were begun.

    A slot is a task that lives as long as this: a task for each step would cost more. A step that raises is logged
    and counted in ``broken``; its slot goes on.
    """

    def __init__(self, count: int, on_room: Callable[[], None]) -> None:
        """``on_room`` is called when a slot has nothing to do."""
        self._count = count
        self._on_room = on_room
        self._steps: deque[tuple[Step, Any]] = deque()
        self._slots: list[asyncio.Task[None]] = []
        self._idle: list[asyncio.Future[None]] = []
        self._busy = 0
        self._ending = False
        self.broken = 0

    @property
    def free(self) -> int:
        """How many more steps would run at once now."""
        return self._count - self._busy - len(self._steps)

    def begin(self, step: Step, what: Any) -> None:
        """Run ``step(what)`` in a slot, now or when one is free. Once ``end`` was called it is left."""
        self._steps.append((step, what))
        if self._idle:
            self._idle.pop().set_result(None)
        elif len(self._slots) < self._count and not self._ending:
            self._slots.append(asyncio.create_task(self._slot()))

    async def _slot(self) -> None:
        while not self._ending:
            if not self._steps:
                self._on_room()
                waiter = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter
                continue
            step, what = self._steps.popleft()
            self._busy += 1
            try:
                await step(what)
            except Exception:  # noqa: BLE001 - one step's defect must not end the slot
                self.broken += 1
                log.exception("request left in the queue by a defect")
            finally:
                self._busy -= 1

    async def end(self, grace_s: float) -> None:
        """Begin nothing more, let what runs end within the time, cancel the rest."""
        self._ending = True
        for waiter in self._idle:
            waiter.cancel()
        self._idle.clear()
        if self._slots:
            await asyncio.wait(self._slots, timeout=grace_s)
        running = set(self._slots)
        while running:
            for slot in running:
                slot.cancel()
            _, running = await asyncio.wait(running, timeout=_HEEDED_S)
