"""The embedded engine: queue, ledger and access list in one SQLite file in the data folder."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from chargegate.engines import EMBEDDED, Place, QueueLimits
from chargegate.engines.sqlite.access_list import SqliteAccessList
from chargegate.engines.sqlite.anomalies import SqliteAnomalies
from chargegate.engines.sqlite.chain import SqliteChain
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.counts import SqliteCounts
from chargegate.engines.sqlite.exports import SqliteExports
from chargegate.engines.sqlite.file import read_once
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.queue import SqliteQueue
from chargegate.engines.sqlite.retention import SqliteRetention
from chargegate.engines.sqlite.source import SqliteSource
from chargegate.engines.sqlite.statements import ALL_TABLES, QUEUE_TABLES
from chargegate.engines.sqlite.together import SqliteTogether
from chargegate.ledger.anomalies import Anomalies
from chargegate.ledger.base import AccessList, Retention
from chargegate.ledger.chain import AuditChain
from chargegate.ledger.counts import DecisionCounts
from chargegate.ledger.exports import AuditExports
from chargegate.ledger.records import AuditRow

FILE: Final = EMBEDDED.file
"""The name of the file in the data folder."""


class _SharedFile:
    """The open file of this process. The last part that uses it closes it."""

    def __init__(self, place: Place, store: SqliteStore) -> None:
        self._opened = place.opened
        self.store = store
        self.users = 0

    @classmethod
    async def use(cls, place: Place, *, with_ledger: bool) -> "_SharedFile":
        """The queue's tables are in every file, the ledger's only where it is the database."""
        tables = ALL_TABLES if with_ledger else QUEUE_TABLES
        file: _SharedFile | None = place.opened.get(FILE)
        if file is None:
            store = await SqliteStore.open(
                place.folder / FILE, tables, exclusive=place.exclusive, patient=place.patient
            )
            file = place.opened[FILE] = cls(place, store)
        else:
            await file.store.migrate(tables)
        file.users += 1
        return file

    async def release(self) -> None:
        self.users -= 1
        if not self.users:
            del self._opened[FILE]
            await self.store.close()


class SqliteDatabase:
    """Keeps the promises of ``Database``."""

    def __init__(self, file: _SharedFile, on_audit: Callable[[list[AuditRow]], None] | None) -> None:
        self._file = file
        self._closed = False
        self.ledger = SqliteLedger(file.store, on_audit)
        self.access_list: AccessList = SqliteAccessList(file.store)
        self.counts: DecisionCounts = SqliteCounts(file.store)
        self.anomalies: Anomalies = SqliteAnomalies(file.store)
        self.retention: Retention = SqliteRetention(file.store)
        self.chain: AuditChain = SqliteChain(file.store)
        self.exports: AuditExports = SqliteExports(file.store)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.ledger.close()
            await self._file.release()


async def open_queue(url: str, place: Place, limits: QueueLimits) -> SqliteQueue:  # noqa: ARG001 - every engine's
    file = await _SharedFile.use(place, with_ledger=False)
    try:
        return await SqliteQueue.open(file.store, limits.max_size, on_close=file.release)
    except BaseException:
        await file.release()
        raise


async def open_database(
    url: str,  # noqa: ARG001 - every engine's
    place: Place,
    on_audit: Callable[[list[AuditRow]], None] | None,
    *,
    needed: bool,  # noqa: ARG001 - a file is never away
) -> SqliteDatabase:
    return SqliteDatabase(await _SharedFile.use(place, with_ledger=True), on_audit)


def join(place: Place, queue: SqliteQueue, database: SqliteDatabase) -> SqliteTogether:
    return SqliteTogether(place.opened[FILE].store, queue, database.ledger)


async def source(place: Place) -> SqliteSource:
    file = await _SharedFile.use(place, with_ledger=True)
    return SqliteSource(file.store, file.release)


async def waiting_in_folder(place: Place, *, decided: bool = False) -> frozenset[str]:
    decisions = " JOIN authorization_audit USING (request_id)" if decided else ""
    query = f"SELECT DISTINCT request_id FROM queue{decisions}"  # noqa: S608 - constants
    return await asyncio.to_thread(_in_folder, place, query, {"queue", "authorization_audit"} if decided else {"queue"})


async def sealed_prefixes_in_folder(place: Place, length: int) -> frozenset[bytes]:
    query = f"SELECT DISTINCT ifnull(substr(CAST(body AS BLOB), 1, {length:d}), x'') FROM queue"  # noqa: S608 - a number
    return await asyncio.to_thread(_in_folder, place, query, {"queue"})


def _in_folder(place: Place, query: str, tables: set[str]) -> frozenset[Any]:
    """The first column of what a query gives: nothing where the file, or one of the tables, is not there."""
    path = place.folder / FILE
    if not path.exists() or not tables <= {row[0] for row in read_once(path, "SELECT name FROM sqlite_master")}:
        return frozenset()
    return frozenset(row[0] for row in read_once(path, query))
