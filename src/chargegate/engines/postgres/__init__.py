"""PostgreSQL as the queue, and as the database: on asyncpg, for any number of processes."""

from chargegate.engines import Place, QueueLimits
from chargegate.engines.postgres.access_list import PostgresAccessList
from chargegate.engines.postgres.anomalies import PostgresAnomalies
from chargegate.engines.postgres.chain import PostgresChain
from chargegate.engines.postgres.counts import PostgresCounts
from chargegate.engines.postgres.exports import PostgresExports
from chargegate.engines.postgres.ledger import PostgresLedger
from chargegate.engines.postgres.queue import PostgresQueue, own_options
from chargegate.engines.postgres.recording import OnAudit
from chargegate.engines.postgres.registry import PostgresRegistry
from chargegate.engines.postgres.retention import PostgresRetention
from chargegate.engines.postgres.statements import LEDGER_TABLES
from chargegate.engines.postgres.store import MIGRATING_S, PostgresStore
from chargegate.engines.postgres.target import PostgresTarget
from chargegate.ledger.anomalies import Anomalies
from chargegate.ledger.base import AccessList, Ledger, LedgerUnavailable, Retention
from chargegate.ledger.chain import AuditChain
from chargegate.ledger.counts import DecisionCounts
from chargegate.ledger.exports import AuditExports
from chargegate.storage.budget import STORE_S


class PostgresDatabase:
    """Keeps the promises of ``Database``. Its audit rows are numbered for one writer, see ``recording``."""

    def __init__(self, store: PostgresStore, writer: str, on_audit: OnAudit | None) -> None:
        self._store = store
        self.ledger: Ledger = PostgresLedger(store, writer, on_audit)
        self.access_list: AccessList = PostgresAccessList(store)
        self.counts: DecisionCounts = PostgresCounts(store)
        self.anomalies: Anomalies = PostgresAnomalies(store)
        self.retention: Retention = PostgresRetention(store)
        self.chain: AuditChain = PostgresChain(store, writer)
        self.exports: AuditExports = PostgresExports(store)

    async def close(self) -> None:
        await self.ledger.close()
        await self._store.close()


async def open_queue(url: str, place: Place, limits: QueueLimits) -> PostgresQueue:  # noqa: ARG001 - the URL says all
    return await PostgresQueue.open(url, limits.max_size, limits.lease_ms)


async def open_database(url: str, place: Place, on_audit: OnAudit | None, *, needed: bool) -> PostgresDatabase:
    store = PostgresStore(url, LEDGER_TABLES, LedgerUnavailable)
    try:
        await store.prepare(MIGRATING_S if needed else STORE_S)
    except LedgerUnavailable:
        if needed:
            raise
    return PostgresDatabase(store, place.process, on_audit)


def open_registry(url: str) -> PostgresRegistry:
    return PostgresRegistry(own_options(url)[0])


async def target(url: str) -> PostgresTarget:
    return PostgresTarget(await PostgresStore.open(url, LEDGER_TABLES, LedgerUnavailable))
