"""A queue in this process's memory: as fast as it gets, and gone with the process."""

import asyncio
import heapq
from collections import deque
from collections.abc import Sequence

from chargegate.engines import MEMORY
from chargegate.model import now_ms
from chargegate.queues.base import (
    Delivery,
    Depth,
    Listed,
    Message,
    QueueFull,
    QueueUnavailable,
    Stored,
    Waiting,
)


class MemoryQueue:
    """Keeps the promises of ``Queue`` while the process lives, and none beyond."""

    capabilities = MEMORY.capabilities

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._waiting: deque[Message] = deque()
        self._known: dict[str, tuple[Message, bool]] = {}
        self._arrival = asyncio.Event()
        self._closed = False

    async def put(self, message: Message) -> None:
        self._store(message)

    def _store(self, message: Message) -> None:
        if self._closed:
            raise QueueUnavailable("closed")
        if len(self._waiting) >= self._max_size:
            raise QueueFull
        self._waiting.append(message)
        self._known[message.request_id] = (message, False)
        self._arrival.set()

    def put_then(self, message: Message, done: Stored) -> None:
        try:
            self._store(message)
        except (QueueFull, QueueUnavailable) as error:
            done(error)
        else:
            done(None)

    async def receive(self, limit: int) -> list[Delivery]:
        while not self._waiting:
            self._arrival.clear()
            await self._arrival.wait()
        taken = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        for message in taken:
            self._known[message.request_id] = (message, True)
        return [Delivery(message, None, fresh=True) for message in taken]

    async def ack(self, delivery: Delivery) -> None:
        self._known.pop(delivery.message.request_id, None)

    async def find(self, request_id: str) -> Waiting | None:
        message, taken = self._known.get(request_id, (None, False))
        return Waiting(message.station_id, message.accepted_at, taken, message.body) if message else None

    async def unacked(self, limit: int, after: str | None) -> Sequence[Listed]:
        found = heapq.nlargest(limit, (each for each in self._known if after is None or each < after))
        known = ((request_id, *self._known[request_id]) for request_id in found)
        return [
            Listed(request_id, request_id, Waiting(message.station_id, message.accepted_at, taken, message.body))
            for request_id, message, taken in known
        ]

    async def depth(self) -> Depth:
        oldest = now_ms() - self._waiting[0].accepted_at if self._waiting else 0
        return Depth(len(self._waiting), max(0, oldest))

    async def check(self) -> None:
        if self._closed:
            raise QueueUnavailable("closed")

    async def close(self) -> None:
        self._closed = True
