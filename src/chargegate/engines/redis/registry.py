"""The server's clock, and the names of the processes that are alive."""

from chargegate.engines.redis.connection import RedisServer
from chargegate.storage.budget import EXCHANGE_S


class RedisRegistry:
    """Keeps the promises of ``Registry``: a name is a key that expires."""

    def __init__(self, url: str, name: str = "chargegate") -> None:
        """``name`` tells services on one server apart. Raises ``ValueError`` for a wrong URL."""
        self._server = RedisServer(url, timeout_s=EXCHANGE_S, at_once=2)
        self._prefix = f"{{{name}}}:process:"

    async def server_ms(self) -> int:
        seconds, microseconds = await self._server.run("registry_time", (self._prefix,))
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def claim(self, name: str, holder: str, lease_ms: int) -> int:
        return int(await self._server.run("registry_claim", (self._prefix + name,), holder, lease_ms))

    async def release(self, name: str, holder: str) -> None:
        await self._server.run("registry_release", (self._prefix + name,), holder)

    async def close(self) -> None:
        await self._server.close()
