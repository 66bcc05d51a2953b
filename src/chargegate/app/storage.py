"""Opens what is on disk: the database, the queue, the keys, the audit file."""

import sqlite3
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from chargegate.audit.base import AuditRow
from chargegate.audit.csv_file import CsvFile
from chargegate.audit.feed import AuditFeed
from chargegate.config import Settings
from chargegate.ledger import migrations
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.sqlite import SqliteLedger
from chargegate.model import now_ms
from chargegate.queues import sqlite as sqlite_queue
from chargegate.queues.base import Queue
from chargegate.queues.memory import MemoryQueue
from chargegate.secrets import SEALED_PREFIX, KeyFileError, Keyring, open_keyring
from chargegate.sqlite import SqliteStore, StoreError, StoreUnavailable
from chargegate.telemetry import Metrics, log

DATABASE: Final = "chargegate.db"


class StartError(Exception):
    """The service cannot start, or a command cannot do its work. The message is one line and says what to change."""


@contextmanager
def database_named(settings: Settings) -> Iterator[None]:
    """Where the database fails, a ``StartError`` that says which."""
    try:
        yield
    except (LedgerUnavailable, StoreUnavailable) as error:
        raise StartError(f"data_dir: {settings.data_path / DATABASE}: {error}") from None


async def open_store(settings: Settings, stack: AsyncExitStack, *, exclusive: bool) -> tuple[SqliteStore, Keyring]:
    folder = settings.data_path
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"data_dir: {folder}: {error.strerror}") from None
    try:
        store = await SqliteStore.open(
            folder / DATABASE, {"queue": sqlite_queue.MIGRATIONS, "ledger": migrations.SQLITE}, exclusive=exclusive
        )
        stack.push_async_callback(store.close)
        keyring = open_keyring(folder, settings.security.encryption_keys, settings.security.token_hash_key)
    except (StoreError, KeyFileError) as error:
        raise StartError(f"data_dir: {error}") from None
    ledger = SqliteLedger(store)
    if await ledger.fact("token_hash_key", keyring.hash_key_id) != keyring.hash_key_id:
        raise StartError(
            "security.token_hash_key: not the key that this database's tokens were hashed with,"
            " so that no driver would be found"
        )
    _refuse_unknown_keys(keyring, await ledger.sealed_prefixes(SEALED_PREFIX), "dead letters")
    return store, keyring


async def open_queue(settings: Settings, store: SqliteStore, keyring: Keyring, stack: AsyncExitStack) -> Queue:
    if settings.queue.url == "memory://":
        log.warning("queue.url is memory://: what is waiting is lost when this process ends")
        await _settle_lost(store)
        return MemoryQueue(settings.queue.max_size)
    queue = await sqlite_queue.SqliteQueue.open(store, settings.queue.max_size)
    stack.push_async_callback(queue.close)
    _refuse_unknown_keys(keyring, await queue.beginnings(SEALED_PREFIX), "waiting requests")
    return queue


async def _settle_lost(store: SqliteStore) -> None:
    """What an earlier process left under way in its memory has an end too. What the embedded queue holds has not: it
    goes on when that queue is used again."""

    def waiting(connection: sqlite3.Connection) -> frozenset[str]:
        return frozenset(row[0] for row in connection.execute("SELECT request_id FROM queue"))

    kept = await store.read(waiting)
    if kept:
        log.warning("requests wait in the embedded queue, which queue.url does not name", requests=len(kept))
    if lost := await SqliteLedger(store).fail_lost(kept, now_ms()):
        log.warning("requests were lost with an earlier process's queue", requests=lost)


def _refuse_unknown_keys(keyring: Keyring, beginnings: frozenset[bytes], what: str) -> None:
    for beginning in beginnings:
        if not keyring.knows(beginning):
            raise StartError(
                f"security.encryption_keys: {what} are sealed with the key {beginning[1:].hex()}, which is missing;"
                " keep a key in the list until nothing is sealed with it"
            )


def audit_feed(settings: Settings, metrics: Metrics) -> AuditFeed | None:
    if not settings.audit.csv_path:
        return None
    path = Path(settings.audit.csv_path)
    try:
        return AuditFeed(CsvFile(path), metrics)
    except OSError as error:
        raise StartError(f"audit.csv_path: {path}: {error.strerror}") from None


def audited(metrics: Metrics, feed: AuditFeed | None, rows: list[AuditRow]) -> None:
    metrics.audit_entries.labels("database").inc(len(rows))
    if feed is not None:
        feed.offer(rows)


async def start_feed(feed: AuditFeed, path: str, ledger: SqliteLedger, stack: AsyncExitStack) -> None:
    save = partial(ledger.save_sink_position, feed.name)
    position = await ledger.sink_position(feed.name)
    try:
        await feed.start(position, ledger.audit_after, save)
    except OSError as error:
        raise StartError(f"audit.csv_path: {path}: cannot be read back: {error.strerror}") from None
    stack.push_async_callback(feed.close, save)
