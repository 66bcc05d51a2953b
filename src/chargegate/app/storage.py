"""Opens what is on disk: the database, the queue, the keys, the audit file."""

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

from chargegate.audit.base import AuditRow
from chargegate.audit.csv_file import CsvFile
from chargegate.audit.feed import AuditFeed
from chargegate.config import Settings
from chargegate.ledger import migrations
from chargegate.ledger.sqlite import SqliteLedger
from chargegate.queues import sqlite as sqlite_queue
from chargegate.queues.base import Queue
from chargegate.queues.memory import MemoryQueue
from chargegate.secrets import SEALED_PREFIX, KeyFileError, Keyring, open_keyring
from chargegate.sqlite import SqliteStore, StoreError
from chargegate.telemetry import Metrics, log

DATABASE: Final = "chargegate.db"


class StartError(Exception):
    """The service cannot start, or a command cannot do its work. The message is one line and says what to change."""


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
        return MemoryQueue(settings.queue.max_size)
    queue = await sqlite_queue.SqliteQueue.open(store, settings.queue.max_size)
    stack.push_async_callback(queue.close)
    _refuse_unknown_keys(keyring, await queue.beginnings(SEALED_PREFIX), "waiting requests")
    return queue


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


async def start_feed(feed: AuditFeed, ledger: SqliteLedger, stack: AsyncExitStack) -> None:
    save = partial(ledger.save_sink_position, feed.name)
    await feed.start(await ledger.sink_position(feed.name), ledger.audit_after, save)
    stack.push_async_callback(feed.close, save)
