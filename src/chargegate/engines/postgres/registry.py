"""The server's clock, and the names of the processes that are alive."""

from typing import Final

from chargegate.engines.postgres.connection import Connection
from chargegate.engines.postgres.store import PostgresStore
from chargegate.storage.files import migrations, statements

_SQL: Final = statements(__package__, "registry.sql")
_TABLES: Final = {"registry": migrations(__package__, "registry")}


class PostgresRegistry:
    """Keeps the promises of ``Registry``. A name is a row with a time, not a lock of a session, which would be another
    process's behind a pooler, and would outlive a machine that was lost."""

    def __init__(self, url: str) -> None:
        self._store = PostgresStore(url, _TABLES)
        self._prepared = False

    async def server_ms(self) -> int:
        return int((await self._store.read(_SQL["server_ms"]))[0][0])

    async def claim(self, name: str, holder: str, lease_ms: int) -> int:
        if not self._prepared:
            await self._store.prepare()
            self._prepared = True

        async def claim(connection: Connection, _repeated: bool) -> int:
            if await connection.fetch(_SQL["claim"], name, holder, lease_ms / 1000):
                return 0
            return int(await connection.fetchval(_SQL["left"], name) or 1)

        return await self._store.transaction(claim, durable=False)

    async def release(self, name: str, holder: str) -> None:
        await self._store.execute(_SQL["release"], name, holder, durable=False)

    async def close(self) -> None:
        await self._store.close()
