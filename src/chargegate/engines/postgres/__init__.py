"""PostgreSQL as the queue, and as the database: on asyncpg, for any number of processes."""

from collections.abc import Callable

from chargegate.engines import Place, QueueLimits
from chargegate.engines.postgres.access_list import PostgresAccessList
from chargegate.engines.postgres.connection import LIMIT_S, MIGRATING_S, PostgresStore
from chargegate.engines.postgres.ledger import PostgresLedger
from chargegate.engines.postgres.queue import PostgresQueue
from chargegate.engines.postgres.target import PostgresTarget
from chargegate.ledger.base import AccessList, Ledger
from chargegate.ledger.migrations import POSTGRES
from chargegate.ledger.records import AuditRow
from chargegate.storage.unavailable import Unavailable


class PostgresDatabase:
    """The ledger and the access list on one store."""

    def __init__(self, store: PostgresStore, writer: str, on_audit: Callable[[list[AuditRow]], None] | None) -> None:
        self._store = store
        self.ledger: Ledger = PostgresLedger(store, writer, on_audit)
        self.access_list: AccessList = PostgresAccessList(store)

    async def close(self) -> None:
        await self.ledger.close()
        await self._store.close()


async def open_queue(url: str, place: Place, limits: QueueLimits) -> PostgresQueue:  # noqa: ARG001 - all is at the URL
    return await PostgresQueue.open(url, limits.max_size, limits.lease_ms)


async def open_database(
    url: str, place: Place, on_audit: Callable[[list[AuditRow]], None] | None, *, needed: bool
) -> PostgresDatabase:
    store = PostgresStore(url, {"ledger": POSTGRES})
    try:
        await store.prepare(MIGRATING_S if needed else LIMIT_S)
    except Unavailable:
        if needed:
            raise
    return PostgresDatabase(store, place.process, on_audit)


async def target(url: str) -> PostgresTarget:
    return PostgresTarget(await PostgresStore.open(url, {"ledger": POSTGRES}))
