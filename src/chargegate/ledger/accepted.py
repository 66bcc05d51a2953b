"""Requests that went into a queue which cannot look one up, on their way into the database."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from chargegate.observe import log
from chargegate.storage.group_commit import GroupCommit
from chargegate.storage.unavailable import Unavailable

Accepted = tuple[str, str, int, str]
"""Request id, station id, when (Unix ms), client."""

MAX_WAITING: Final = 10_000


class AcceptedRequests:
    """Written soon, and tried again while ``write`` raises ``Unavailable``. Up to ``MAX_WAITING`` requests wait; later
    ones are dropped, counted and logged."""

    def __init__(self, write: Callable[[list[Accepted]], Awaitable[Any]], *, linger_s: float = 0.0) -> None:
        """``linger_s``: see ``GroupCommit``."""
        self._write = write
        self._dropped = 0
        self._requests: GroupCommit[Accepted, None] = GroupCommit(self._commit, linger_s=linger_s)

    def add(self, request_id: str, station_id: str, created_at: int, client: str) -> None:
        if self._requests.waiting >= MAX_WAITING:
            self._dropped += 1
        else:
            self._requests.post((request_id, station_id, created_at, client))

    async def _commit(self, batch: list[Accepted]) -> None:
        try:
            await self._write(batch)
        except Unavailable:
            raise
        except Exception as error:
            if len(batch) > 1:
                raise
            self._dropped += 1
            log.error("accepted requests could not be written", error=type(error).__name__)
        if self._dropped and self._requests.waiting == len(batch):
            log.warning("requests are not listed before their decision", count=self._dropped)
            self._dropped = 0

    async def close(self) -> None:
        """Write what waits, if the database answers. More may be added afterwards."""
        await self._requests.flush()
