"""Wakes those who wait for a message in a table."""

import asyncio
import contextlib
from typing import Final

from chargegate.engines.postgres.connection import answers, connect
from chargegate.storage.budget import STORE_S
from chargegate.storage.unavailable import Unavailable, Unusable

_POLL_S: Final = 0.25
_POLL_WHILE_NOTIFIED_S: Final = 1.0
_RECONNECT_S: Final = 1.0
_ASK_S: Final = 15.0
"""Who only listens would never notice that a firewall dropped the connection, and one that is used is not dropped."""


class Arrivals:
    """Notifications of other processes wake at once. Who receives none, behind a pooler or while the server is away,
    polls more often."""

    def __init__(self, url: str, channel: str) -> None:
        self._url = url
        self._channel = channel
        self._arrived = asyncio.Event()
        self._notified = False  # since the connection was made
        self._task = asyncio.create_task(self._listen())

    def announce(self) -> None:
        """A message arrived."""
        self._arrived.set()

    def forget(self) -> None:
        """Whoever calls this looks for messages now: only a later arrival ends the next ``wait``."""
        self._arrived.clear()

    async def wait(self) -> None:
        """Wait for an arrival, or until it is time to look all the same."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_WHILE_NOTIFIED_S if self._notified else _POLL_S):
                await self._arrived.wait()

    def _hear(self, *_: object) -> None:
        self._notified = True
        self._arrived.set()

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(Unavailable, Unusable):
                connection = await connect(self._url)
                ended = asyncio.Event()
                connection.add_termination_listener(lambda _, ended=ended: ended.set())
                try:
                    await connection.add_listener(self._channel, self._hear)
                    while not ended.is_set() and await answers(connection, STORE_S):
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(_ASK_S):
                                await ended.wait()
                except Exception:  # noqa: BLE001, S110 - whatever it is, the queue is polled until it is over
                    pass
                finally:
                    connection.terminate()
            self._notified = False
            await asyncio.sleep(_RECONNECT_S)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
