"""What keeps a live consumer's entries from being taken over by another."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from chargegate.engines.redis.connection import RedisServer
from chargegate.storage.unavailable import Unavailable

_BATCH: Final = 256


class Leases:
    """The entries that one consumer holds. Their claims are renewed at the latest after 3/8 of the lease.

    ``held`` has the time of each entry's last renewal, on the monotonic clock.
    """

    def __init__(self, server: RedisServer, keys: tuple[str, ...], group: str, consumer: str, lease_ms: int) -> None:
        self.held: dict[str, float] = {}
        self.consumer = consumer
        self.lease_ms = lease_ms
        self._server = server
        self._keys = keys
        self._group = group
        self._renewing = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.lease_ms / 8000)
            due = asyncio.get_running_loop().time() - self.lease_ms / 4000
            with contextlib.suppress(Unavailable):
                await self.renew([entry for entry, renewed in self.held.items() if renewed <= due], idle_ms=0)

    async def renew(self, entries: Sequence[str], idle_ms: int) -> None:
        """Let the claims look as if they were ``idle_ms`` old. Raises ``Unavailable``."""
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            now = asyncio.get_running_loop().time()
            lost = await self._server.run("queue_renew", self._keys, self._group, self.consumer, idle_ms, *batch)
            self.held.update((entry, now) for entry in batch if entry in self.held)
            for entry in lost:
                self.held.pop(entry.decode(), None)

    async def close(self) -> None:
        """Free what is held for other consumers at once, if Redis answers."""
        self._renewing.cancel()
        await asyncio.gather(self._renewing, return_exceptions=True)
        with contextlib.suppress(Unavailable):
            await self.renew(list(self.held), idle_ms=self.lease_ms)
