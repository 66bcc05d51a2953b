"""Keeps a process's name from being had twice: by a copy of a whole machine, whose files do not show that they are
copies."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final

from chargegate.app.process import ProcessName
from chargegate.engines import Registry
from chargegate.observe import log
from chargegate.storage.unavailable import Unavailable

LEASE_MS: Final = 6000
_RENEW_S: Final = 1.5
_LOOK_S: Final = 0.5


class Presence:
    """Holds the name in every registry while the process lives. ``lost`` is set where another process has it all the
    same, because this one was not heard for a lease: what it writes under the name would be mixed up with the
    other's."""

    def __init__(self, name: ProcessName, registries: Mapping[str, Registry]) -> None:
        """The registries by what names them in the settings; ``asking`` is that of the last one that was asked."""
        self.asking = ""
        self.lost = asyncio.Event()
        self._name = name
        self._registries = registries
        self._renewing: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._name.name

    async def take(self) -> None:
        """Take the name that the process had; another one where that belongs to a process that lives. Raises
        ``Unavailable``."""
        while not await self._taken():
            before = self._name.name
            self._name.take_another()
            log.warning(
                "another living process has this process's name, as after a copy of its machine; it takes another name",
                name=before,
                takes=self._name.name,
            )
        self._renewing = asyncio.create_task(self._renew())

    async def _taken(self) -> bool:
        for key, registry in self._registries.items():
            self.asking = key
            if not await self._free(registry):
                return False
        return True

    async def _free(self, registry: Registry) -> bool:
        """Whether the name is ours now. Who else has it is dead if it does not renew its lease: then this waits for the
        end of that, because a process that goes on with a name has what was begun under it."""
        loop = asyncio.get_running_loop()
        left, seen = await self._claim(registry), loop.time()
        if left:
            log.info("another process had this process's name; waiting to see whether it lives", name=self._name.name)
        while left:
            await asyncio.sleep(min(_LOOK_S, left / 1000))
            now_left, now = await self._claim(registry), loop.time()
            if now_left > left - (now - seen) * 1000 + _LOOK_S * 1000:
                return False
            left, seen = now_left, now
        return True

    async def _claim(self, registry: Registry) -> int:
        return await registry.claim(self._name.name, self._name.holder, LEASE_MS)

    async def _renew(self) -> None:
        while not self.lost.is_set():
            await asyncio.sleep(_RENEW_S)
            for registry in self._registries.values():
                with contextlib.suppress(Unavailable):
                    if await self._claim(registry):
                        log.error("another process took this process's name; this one ends", name=self._name.name)
                        self.lost.set()

    async def close(self) -> None:
        if self._renewing is None:
            return  # no name was taken
        self._renewing.cancel()
        await asyncio.gather(self._renewing, return_exceptions=True)
        for registry in self._registries.values():
            with contextlib.suppress(Unavailable):
                await registry.release(self._name.name, self._name.holder)
