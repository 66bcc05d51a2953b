"""Asyncio tasks that outlive whoever waits for them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

F = TypeVar("F", bound="asyncio.Future[Any]")


def observed(future: F) -> F:
    """The same future, of which asyncio does not complain if nobody asks how it failed."""
    future.add_done_callback(_look_at)
    return future


def _look_at(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()


class SharedRead:
    """One read from a server at a time. It goes on when whoever waits for it is cancelled: what it brings is for the
    next one, so that no message is taken and then lost."""

    def __init__(self, read: Callable[[int], Awaitable[None]]) -> None:
        """``read(limit)`` keeps what it reads where its owner finds it."""
        self._read = read
        self._task: asyncio.Task[None] | None = None

    async def wait(self, limit: int) -> None:
        """Wait for the read that is under way, or for a new one. Raises what the read raises."""
        if self._task is None or self._task.done():
            self._task = observed(asyncio.create_task(self._run(limit)))
        task = self._task
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result()

    async def _run(self, limit: int) -> None:
        await self._read(limit)

    async def close(self, *, cancel: bool) -> None:
        """Wait for the end of a read that is under way; with ``cancel`` end it now."""
        if self._task is not None:
            if cancel:
                self._task.cancel()
            await asyncio.wait((self._task,))
