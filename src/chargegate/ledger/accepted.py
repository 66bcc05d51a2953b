"""Requests that went into a queue which cannot look one up, on their way into the database."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from chargegate.ledger.base import LedgerUnavailable
from chargegate.observe import log

Accepted = tuple[str, str, int]
"""Request id, station id, when (Unix ms)."""

MAX_WAITING: Final = 10_000
_BATCH: Final = 1_000
_RETRY_S: Final = 1.0


class AcceptedRequests:
    """Written soon: what gathers while a batch is under way is the next batch.

    While ``write`` raises ``LedgerUnavailable``, it is tried again every second, and up to ``MAX_WAITING`` requests
    wait; later ones are dropped.
    """

    def __init__(self, write: Callable[[list[Accepted]], Awaitable[Any]]) -> None:
        self._write = write
        self._waiting: list[Accepted] = []
        self._dropped = 0
        self._task: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None

    def add(self, request_id: str, station_id: str, created_at: int) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append((request_id, station_id, created_at))
        if self._task is None and self._retry is None:
            self._start()

    def _start(self) -> None:
        self._retry = None
        self._task = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch = self._waiting[:_BATCH]
                await self._attempt(batch)
                del self._waiting[: len(batch)]
        except LedgerUnavailable:
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._start)
        finally:
            self._task = None
        if self._dropped and self._retry is None:
            log.warning("requests are not listed before their decision", count=self._dropped)
            self._dropped = 0

    async def _attempt(self, batch: list[Accepted]) -> None:
        try:
            await self._write(batch)
        except LedgerUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            self._dropped += len(batch)
            log.error("accepted requests could not be written", error=type(error).__name__)

    async def close(self) -> None:
        """Write what waits, if the database answers. May be called twice."""
        self._stop_retrying()
        if self._waiting and self._task is None:
            self._start()
        if self._task is not None:
            await asyncio.wait((self._task,))
        self._stop_retrying()

    def _stop_retrying(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
