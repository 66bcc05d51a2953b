"""Opens the keys and the database. A URL's scheme picks the backend, imported only then."""

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from chargegate.app.start import Role, StartError, extra
from chargegate.audit.csv_file import CsvFile
from chargegate.audit.feed import AuditFeed
from chargegate.config import Settings
from chargegate.engines.sqlite import queue as sqlite_queue
from chargegate.engines.sqlite.access_list import SqliteAccessList
from chargegate.engines.sqlite.connection import SqliteStore, StoreError
from chargegate.engines.sqlite.group_commit import StoreUnavailable
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.keys import SEALED_PREFIX, KeyFileError, Keyring, open_keyring
from chargegate.ledger.base import AccessList, Ledger, LedgerUnavailable
from chargegate.ledger.migrations import POSTGRES, SQLITE
from chargegate.ledger.records import AuditRow
from chargegate.observe import Metrics, log

DATABASE: Final = "chargegate.db"

OnAudit = Callable[[list[AuditRow]], None]


class Storage(NamedTuple):
    """``feed`` is None where this process keeps no audit file, ``embedded`` where it has no use for the file in
    ``data_dir``. ``keys_checked`` is False where the database was away: see ``check_keys``."""

    keyring: Keyring
    ledger: Ledger
    access_list: AccessList
    feed: AuditFeed | None
    embedded: SqliteStore | None
    keys_checked: bool


@contextmanager
def database_named(settings: Settings) -> Iterator[None]:
    """Where the database fails, a ``StartError`` that says which."""
    try:
        yield
    except (LedgerUnavailable, StoreUnavailable) as error:
        embedded = settings.database.url == "sqlite"
        which = f"data_dir: {settings.data_path / DATABASE}" if embedded else "database.url"
        raise StartError(f"{which}: {error}") from None


async def open_storage(
    settings: Settings, stack: AsyncExitStack, *, role: Role | None, name: str = "", metrics: Metrics | None = None
) -> Storage:
    """``role`` is None for a command, which may run beside the service. An ``api`` goes on without a database that is
    away; any other raises ``StartError``."""
    folder = settings.data_path
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"data_dir: {folder}: {error.strerror}") from None
    embedded = await _open_embedded(settings, stack, exclusive=role in ("serve", "worker"))
    try:
        keyring = open_keyring(folder, settings.security.encryption_keys, settings.security.token_hash_key)
    except KeyFileError as error:
        raise StartError(f"data_dir: {error}") from None
    feed = None if role in (None, "api") or metrics is None else _audit_feed(settings, metrics)
    on_audit = None if metrics is None else partial(_audited, metrics, feed)
    if settings.database.url == "sqlite" and embedded is not None:
        ledger: Ledger = SqliteLedger(embedded, on_audit)
        access_list: AccessList = SqliteAccessList(embedded)
    else:
        ledger, access_list = await _open_postgres(settings.database.url, stack, name, on_audit, needed=role != "api")
    stack.push_async_callback(ledger.close)
    keys_checked = True
    try:
        await check_keys(keyring, ledger)
    except LedgerUnavailable as error:
        keys_checked = False
        if role != "api" or embedded is not None:
            raise
        log.warning("the database is away; requests are accepted without it", error=str(error))
    if feed is not None:
        await _start_feed(feed, settings.audit.csv_path, ledger, stack)
    return Storage(keyring, ledger, access_list, feed, embedded, keys_checked)


async def _open_embedded(settings: Settings, stack: AsyncExitStack, *, exclusive: bool) -> SqliteStore | None:
    """The file in ``data_dir``, where the database or the queue is in it, or might have been."""
    queue, database = settings.queue.url, settings.database.url
    if database != "sqlite" and queue != "sqlite":
        return None
    migrations = {"queue": sqlite_queue.MIGRATIONS}
    if database == "sqlite":
        migrations["ledger"] = SQLITE
    try:
        store = await SqliteStore.open(settings.data_path / DATABASE, migrations, exclusive=exclusive)
    except StoreError as error:
        raise StartError(f"data_dir: {error}") from None
    stack.push_async_callback(store.close)
    return store


async def _open_postgres(
    url: str, stack: AsyncExitStack, writer: str, on_audit: OnAudit | None, *, needed: bool
) -> tuple[Ledger, AccessList]:
    with extra("database.url", "postgres"):
        from chargegate.engines.postgres import connection as postgres  # noqa: PLC0415 - only when picked
        from chargegate.engines.postgres.access_list import PostgresAccessList  # noqa: PLC0415 - only when picked
        from chargegate.engines.postgres.ledger import PostgresLedger  # noqa: PLC0415 - only when picked
    store = postgres.PostgresStore(url, {"ledger": POSTGRES})
    stack.push_async_callback(store.close)
    try:
        await store.prepare(postgres.MIGRATING_S if needed else postgres.LIMIT_S)
    except postgres.PostgresUnavailable as error:
        if needed:
            raise StartError(f"database.url: {error}") from None
    except (postgres.PostgresUnusable, ValueError) as error:
        raise StartError(f"database.url: {error}") from None
    return PostgresLedger(store, writer, on_audit), PostgresAccessList(store)


async def check_keys(keyring: Keyring, ledger: Ledger) -> None:
    """Raises ``StartError`` if the database's tokens were hashed, or its dead letters sealed, with keys that are not
    at hand."""
    if await ledger.put_value_if_absent("token_hash_key", keyring.hash_key_id) != keyring.hash_key_id:
        raise StartError(
            "security.token_hash_key: not the key that this database's tokens were hashed with,"
            " so that no driver would be found"
        )
    refuse_unknown_keys(keyring, await ledger.sealed_prefixes(SEALED_PREFIX), "dead letters")


def refuse_unknown_keys(keyring: Keyring, beginnings: frozenset[bytes], what: str) -> None:
    for beginning in beginnings:
        if not keyring.knows(beginning):
            raise StartError(
                f"security.encryption_keys: {what} are sealed with the key {beginning[1:].hex()}, which is missing;"
                " keep a key in the list until nothing is sealed with it"
            )


def _audit_feed(settings: Settings, metrics: Metrics) -> AuditFeed | None:
    if not settings.audit.csv_path:
        return None
    path = Path(settings.audit.csv_path)
    try:
        return AuditFeed(CsvFile(path), metrics)
    except OSError as error:
        raise StartError(f"audit.csv_path: {path}: {error.strerror}") from None


def _audited(metrics: Metrics, feed: AuditFeed | None, rows: list[AuditRow]) -> None:
    metrics.audit_entries.labels("database").inc(len(rows))
    if feed is not None:
        feed.offer(rows)


async def _start_feed(feed: AuditFeed, path: str, ledger: Ledger, stack: AsyncExitStack) -> None:
    try:
        await feed.start(ledger)
    except OSError as error:
        raise StartError(f"audit.csv_path: {path}: cannot be read back: {error.strerror}") from None
    stack.push_async_callback(feed.close)
