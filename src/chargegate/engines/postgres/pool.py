"""A few connections to one PostgreSQL server.

asyncpg's pool and its timeouts are not used: they end in a cancel request that waits without limit for a server that
is gone (asyncpg issue 1326). A connection that is late, or on which anything failed, is closed here, and the next use
makes a new one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import asyncpg  # type: ignore[import-untyped]  # it ships no types

from chargegate.engines.postgres.connection import Connection, answers, connect, is_broken
from chargegate.storage.tasks import observed
from chargegate.storage.unavailable import Unavailable

T = TypeVar("T")

CONNECTIONS: Final = 8
LEAST_S: Final = 0.1
"""Whoever comes late has at least as long as this."""

_TRUSTED_S: Final = 0.25
"""A connection that was idle for longer is asked before its use: a firewall may have dropped it without a word."""

_ASKED_S: Final = 0.4
"""For its answer. What is left of the answer budget is for a new connection."""

_CONNECT_S: Final = 10.0
_CLOSE_S: Final = 1.0


class Pool:
    """Connections are made when needed, and again when lost."""

    def __init__(self, url: str, count: int = CONNECTIONS, kind: type[Connection] = asyncpg.Connection) -> None:
        """At most ``count`` connections, of asyncpg's class or one of its subclasses."""
        self._url = url
        self._kind = kind
        self._idle: list[tuple[Connection, float]] = []  # since when; the one that was used last is last
        self._free = asyncio.Semaphore(count)
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def left(self, deadline: float) -> float:
        """The seconds until a time of the event loop's clock, ``LEAST_S`` or more."""
        return max(LEAST_S, deadline - self._loop.time())

    async def use(self, work: Callable[[Connection], Awaitable[T]], deadline: float) -> T:
        """Do some work on a connection that nobody else uses meanwhile. ``deadline`` is a time of the event loop's
        clock. Raises ``TimeoutError``, ``Unavailable``, ``Unusable``, and whatever the work raises."""
        deadline = self._loop.time() + self.left(deadline)
        async with asyncio.timeout_at(deadline):
            await self._free.acquire()
        try:
            connection = await self._connection(deadline)
            task = asyncio.ensure_future(work(connection))
            try:
                await asyncio.wait((task,), timeout=self.left(deadline))
                if not task.done():
                    raise TimeoutError
                result = task.result()
            except BaseException as error:
                connection.terminate()
                observed(task)
                if is_broken(error):
                    self.close_idle()  # other connections are probably broken too
                raise
            if self._closed:
                connection.terminate()
            else:
                self._idle.append((connection, self._loop.time()))
            return result
        finally:
            self._free.release()

    async def _connection(self, deadline: float) -> Connection:
        while not self._closed and self._idle:
            connection, since = self._idle.pop()
            if connection.is_closed():
                continue
            if self._loop.time() - since <= _TRUSTED_S:
                return connection
            try:
                if await answers(connection, _ASKED_S):
                    return connection
            except asyncio.CancelledError:
                connection.terminate()
                raise
            connection.terminate()
            self.close_idle()  # the others have been idle for as long, or longer
        if self._closed:
            raise Unavailable("closed")
        return await connect(self._url, min(self.left(deadline), _CONNECT_S), self._kind)

    def close_idle(self) -> None:
        while self._idle:
            self._idle.pop()[0].terminate()

    async def close(self) -> None:
        """May be called twice. Connections that are in use are closed after their use."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(connection.close(timeout=_CLOSE_S) for connection, _ in idle), return_exceptions=True)
