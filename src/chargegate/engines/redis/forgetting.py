"""What the shared cache must forget before anything is read from it."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable
from typing import Final

from chargegate.engines.redis.connection import RedisServer
from chargegate.observe import log
from chargegate.storage.unavailable import Unavailable

_RETRY_S: Final = 1.0


class Forgetting:
    """Has Redis forget what this process says, as often as it takes. ``failure`` says why Redis is away, or is None.

    The cache's state on the server is a generation and an epoch. A value begins with the generation it belongs to, so
    that a new generation forgets everything. The epoch changes whenever something is forgotten. Both are random, so
    that a server that lost them never comes back to one that was in use.
    """

    def __init__(self, server: RedisServer, state: str, key_of_token: Callable[[str], str], limit_s: float) -> None:
        """``state`` is the key of the cache's state. ``limit_s``: how long Redis may take for one answer."""
        self.failure: str | None = None
        self._server = server
        self._state = state
        self._key_of_token = key_of_token
        self._limit_s = limit_s
        self._token_hashes: set[str] = set()
        self._everything = True
        self._connections: int | None = 0
        self._task = asyncio.create_task(self._run())

    def done(self) -> bool:
        """Whether nothing is left to forget, so that the cache may be used. A new connection may lead to a server that
        lost its last writes: then everything is to be forgotten."""
        if self._connections != self._server.connections:
            self.forget_all()
        return self._task.done()

    def forget(self, token_hashes: Iterable[str]) -> None:
        self._token_hashes.update(token_hashes)
        self._start()

    def forget_all(self) -> None:
        self._everything = True
        self._start()

    def failed(self, why: str) -> None:
        """Redis is away: what other processes forget meanwhile may be missed."""
        if self.failure is None:
            log.warning("the cache is away; going on without it", error=why)
        self.failure = why
        self.forget_all()

    def _start(self) -> None:
        if self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._everything or self._token_hashes:
            everything, token_hashes = self._everything, self._token_hashes
            self._everything, self._token_hashes = False, set()
            connections = self._server.connections
            script = "cache_forget_all" if everything else "cache_forget"
            tokens = () if everything else map(self._key_of_token, token_hashes)
            try:
                await self._server.run(script, (self._state, *tokens), secrets.token_hex(8))
            except Unavailable as error:
                self.failed(str(error))
                await asyncio.sleep(_RETRY_S)
                continue
            self._connections = self._server.connections
            if self._connections != connections:
                self._everything = True
        if self.failure is not None:
            log.info("the cache is back")
        self.failure = None

    async def close(self) -> None:
        """What is still to be forgotten is, if Redis takes it at once."""
        if self._token_hashes or self._everything:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * self._limit_s):
                    await asyncio.wait([self._task])
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
