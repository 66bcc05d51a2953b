"""The limit of how many steps run at once: decisions, and attempts at callbacks."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from chargegate.observe import log

_CANCEL_AGAIN_S: Final = 0.5  # a library may swallow a cancellation

Step = Callable[[Any], Coroutine[Any, Any, None]]


class ConcurrencyLimit:
    """Runs steps, at most ``count`` at once, in the order in which they were given.

    One long-lived task runs one step after another, because a task for each step would cost more. A step that raises
    is logged and counted in ``failed``; its task goes on with the next step.
    """

    def __init__(self, count: int, on_idle: Callable[[], None]) -> None:
        """``on_idle`` is called when a task has no step to run."""
        self.count = count
        self._on_idle = on_idle
        self._steps: deque[tuple[Step, Any]] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._idle: list[asyncio.Future[None]] = []
        self._running = 0
        self._held = 0  # of those that run, without a task
        self._none_held = asyncio.Event()
        self._draining = False
        self.failed = 0

    @property
    def free(self) -> int:
        """How many more steps would run at once now."""
        return self.count - self._running - len(self._steps)

    def run(self, step: Step, argument: Any) -> None:
        """Run ``step(argument)``, now or when a task is free. Not after ``stop`` or ``drain``."""
        self._steps.append((step, argument))
        if self.free >= 0:
            self._wake()

    def _wake(self) -> None:
        """Have a task for the step that was given last."""
        if self._idle:
            waiter = self._idle.pop()
            if not waiter.done():  # a task may be cancelled from outside, where a process ends without a drain
                waiter.set_result(None)
        elif len(self._tasks) < self.count and not self._draining:
            self._tasks.append(asyncio.create_task(self._run_steps()))

    def hold(self) -> bool:
        """Take a place for a step that needs no task of its own, until it is given back. False where none is free."""
        if self.free <= 0 or self._draining:
            return False
        self._running += 1
        self._held += 1
        return True

    def give_back(self) -> None:
        """The step for which a place was held has ended."""
        self._running -= 1
        self._held -= 1
        if not self._held:
            self._none_held.set()
        if self._draining:
            return
        if self._steps:
            self._wake()
        else:
            self._on_idle()

    async def _run_steps(self) -> None:
        while not self._draining:
            if not self._steps:
                self._on_idle()
                waiter = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter
                continue
            step, argument = self._steps.popleft()
            self._running += 1
            try:
                await self.guarded(step(argument))
            finally:
                self._running -= 1

    async def guarded(self, step: Coroutine[Any, Any, None]) -> None:
        """Run a step to its end. Its defect is logged and counted."""
        try:
            await step
        except Exception:  # noqa: BLE001 - one step's defect must not end the task
            self.broke()

    def broke(self) -> None:
        """A step has a defect: log the exception that is being handled, and count it."""
        self.failed += 1
        log.exception("request left in the queue by a defect")

    def stop(self) -> None:
        """Run no further step."""
        self._draining = True
        for waiter in self._idle:
            waiter.cancel()
        self._idle.clear()

    async def drain(self, grace_s: float) -> None:
        """Run no further step, let those that run end within ``grace_s`` seconds, and cancel the rest. Those for which
        places are held still after that are their owner's to cancel."""
        self.stop()
        ends = time.monotonic() + grace_s
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        if self._held:
            self._none_held.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._none_held.wait(), max(0.0, ends - time.monotonic()))
        running = set(self._tasks)
        while running:
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=_CANCEL_AGAIN_S)
