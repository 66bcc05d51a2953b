"""A few connections to one PostgreSQL server.

asyncpg's pool and its timeouts are not used: they end in a cancel request that waits without limit for a server that
is gone (asyncpg issue 1326). A connection that is late, or on which anything failed, is closed here, and the next use
makes a new one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from chargegate.engines.postgres.connection import Connection, connect, is_broken
from chargegate.storage.tasks import observed
from chargegate.storage.unavailable import Unavailable

T = TypeVar("T")

CONNECTIONS: Final = 8
LEAST_S: Final = 0.1
"""Whoever comes late has at least as long as this."""

_CONNECT_S: Final = 10.0
_CLOSE_S: Final = 1.0


class Pool:
    """Connections are made when needed, and again when lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(CONNECTIONS)
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
            connection = await self._connection(self.left(deadline))
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
                self._idle.append(connection)
            return result
        finally:
            self._free.release()

    async def _connection(self, within: float) -> Connection:
        if self._closed:
            raise Unavailable("closed")
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await connect(self._url, min(within, _CONNECT_S))

    def close_idle(self) -> None:
        while self._idle:
            self._idle.pop().terminate()

    async def close(self) -> None:
        """May be called twice. Connections that are in use are closed after their use."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(connection.close(timeout=_CLOSE_S) for connection in idle), return_exceptions=True)
