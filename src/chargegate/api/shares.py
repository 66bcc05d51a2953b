"""Shares of the queue: no client may fill it for the others.

This process remembers the clients of its own puts in their order. A queue is about first in, first out, so that what
still waits of them are the newest, as many as the queue's depth says. The queue is asked for that only when a client
may be over its share, and nobody is refused before it was asked again.

With a queue of this process alone the count is exact, but for what was put into it by replays and before the start:
that is nobody's. Where several processes put, each takes the clients of the others' puts to be as mixed as those of its
own: an estimate, as good as their load is balanced.
"""

import asyncio
import contextlib
from collections import deque
from typing import Final

from chargegate.keys import AccessKeys
from chargegate.queues.base import Message, Queue, QueueFull, QueueUnavailable, Stored
from chargegate.storage.budget import CACHE_S

_NOBODY: Final = ""
_ASKED_EVERY_S: Final = 0.25
_ASKING_FACTOR: Final = 10  # asking takes at most a tenth of the time
_PROCESSES: Final = 16  # so many may put into a shared queue before one of them asks too late


class ShareUsedUp(QueueFull):
    """As many of the client's requests wait as may; nothing was stored."""


class Shares:
    """Puts messages into the queue, unless their client's share of it is used up.

    ``share`` is of the ``size`` requests that may wait. A single client has all of it: of those that have a key, or
    of all that ever sent a request to this process, if that are more.
    """

    def __init__(self, queue: Queue, keys: AccessKeys, size: int, share: float) -> None:
        self._queue = queue
        self._keys = keys
        self._size = size
        self._limit = max(1, int(size * share))
        self._shared = queue.capabilities.shared
        self._ask_from = 0 if self._shared else self._limit
        self._newest: deque[str] = deque()  # the clients of the newest puts
        self._counts: dict[str, int] = {}  # of the newest puts, and of those under way
        self._scale = 1.0  # how many wait for each of the newest puts, with those of other processes
        self._known = False  # whether the queue was ever asked
        self._asked_at = self._fresh_until = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._puts = self._puts_when_asked = 0

    async def put(self, client: str, message: Message) -> None:
        """Raises ``ShareUsedUp``, and what ``Queue.put`` raises."""
        counts = self._counts
        if counts.get(client, 0) >= self._ask_from:
            await self._check(client)
        counts[client] = counts.get(client, 0) + 1
        try:
            await self._queue.put(message)
        except BaseException:
            counts[client] -= 1
            raise
        self._count(client)

    def admits_at_once(self, client: str) -> bool:
        """Whether a message may be put without asking the queue first: ``put_then`` is for these alone."""
        if self._counts.get(client, 0) < self._ask_from or not self._is_one_of_several(client):
            return True
        return not self._is_over(client) and not (self._shared and self._is_time_to_ask())

    def put_then(self, client: str, message: Message, done: Stored) -> None:
        """See ``Queue.put_then``."""
        self._counts[client] = self._counts.get(client, 0) + 1

        def ended(error: Exception | None) -> None:
            if error is None:
                self._count(client)
            else:
                self._counts[client] -= 1
            done(error)

        self._queue.put_then(message, ended)

    def _count(self, client: str) -> None:
        newest, counts = self._newest, self._counts
        newest.append(client)
        if len(newest) > self._size:
            counts[newest.popleft()] -= 1
        self._puts += 1

    async def _check(self, client: str) -> None:
        if not self._is_one_of_several(client):
            return
        if self._is_over(client):
            await asyncio.shield(self._ask())
            if self._is_over(client):
                raise ShareUsedUp
        elif self._shared and self._is_time_to_ask():
            self._ask()

    def _is_time_to_ask(self) -> bool:
        """How many there are for each of this process's own changes with what others put."""
        many = self._puts - self._puts_when_asked >= max(1, self._limit // _PROCESSES)
        return many or asyncio.get_running_loop().time() >= self._asked_at + _ASKED_EVERY_S

    def _is_one_of_several(self, client: str) -> bool:
        clients = self._keys.clients
        return len(clients) > 1 or any(other not in (client, _NOBODY) for other in (*clients, *self._counts))

    def _is_over(self, client: str) -> bool:
        return self._counts.get(client, 0) * self._scale >= self._limit

    def _ask(self) -> asyncio.Task[None]:
        """The question that is under way, or a new one."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._look())
        return self._asking

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(self._fresh_until - loop.time())
            began = self._asked_at = loop.time()
            self._puts_when_asked = self._puts
            with contextlib.suppress(QueueUnavailable, TimeoutError):  # a put that follows says why
                async with asyncio.timeout(CACHE_S):
                    self._trim((await self._queue.depth()).waiting)
            self._fresh_until = loop.time() + min(_ASKED_EVERY_S, _ASKING_FACTOR * (loop.time() - began))
        finally:
            self._asking = None

    def _trim(self, waiting: int) -> None:
        """Keep the clients of what still waits."""
        newest, counts = self._newest, self._counts
        if self._shared:
            waiting = min(waiting + self._puts - self._puts_when_asked, self._size)
        else:
            # A queue of this process alone answers for this moment, and counts the puts that are under way, which
            # `newest` does not have yet.
            waiting -= sum(counts.values()) - len(newest)
        if not self._known and (older := waiting - len(newest)) > 0:
            # It waited before this process's first put.
            newest.extendleft([_NOBODY] * older)
            counts[_NOBODY] = older
        while len(newest) > waiting:
            counts[newest.popleft()] -= 1
        self._scale = waiting / len(newest) if self._shared and newest else 1.0
        self._known = True
        self._ask_from = max(1, self._limit // _PROCESSES) if self._shared else self._limit
