"""What a command uses, with or without a running service beside it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from chargegate.app.queueing import open_queue
from chargegate.app.start import StartError
from chargegate.app.storage import DATABASE, database_named, open_storage
from chargegate.config import Settings
from chargegate.keys import Keyring
from chargegate.ledger.base import AccessList, Ledger
from chargegate.queues.base import Queue

if TYPE_CHECKING:
    from chargegate.engines.postgres.ledger import PostgresLedger

COMMAND = "command"
"""The name of the process that runs a command. It receives nothing from a queue."""


class Offline(msgspec.Struct, frozen=True):
    """``open_queue`` opens the queue, and raises ``StartError`` where that lives in another process's memory."""

    ledger: Ledger
    access_list: AccessList
    keyring: Keyring
    open_queue: Callable[[], Awaitable[Queue]]


@asynccontextmanager
async def opened_store(settings: Settings, *, made: Callable[[Path], None] | None = None) -> AsyncIterator[Offline]:
    """The database for a command; a running service goes on using it. Where there is none, one is made and ``made`` is
    told the folder, or without ``made`` that is an error. Raises ``StartError``."""
    folder = settings.data_path
    missing = settings.database.url == "sqlite" and lacks_database(folder)
    if missing and made is None:
        raise StartError(f"data_dir: {folder} has no database; `chargegate serve` or `chargegate acl add` makes one")
    async with AsyncExitStack() as stack:
        stack.enter_context(database_named(settings))
        storage = await open_storage(settings, stack, role=None)
        if missing and made is not None:
            made(folder)

        async def open_reachable() -> Queue:
            if settings.queue.url == "memory://":
                raise StartError("queue.url is memory://: only the serving process can replay, over HTTP")
            return await open_queue(settings, storage, stack, name=COMMAND)

        yield Offline(storage.ledger, storage.access_list, storage.keyring, open_reachable)


async def prune_audit(settings: Settings, before: int) -> list[str]:
    """Drop the months of the audit that ended by then (Unix ms), and return their tables' names. Raises ``StartError``
    and ``LedgerUnavailable``."""
    if settings.database.url == "sqlite":
        raise StartError(
            "database.url is sqlite, which keeps all months in one table; only PostgreSQL's can be dropped"
        )
    async with opened_store(settings) as store:
        return await cast("PostgresLedger", store.ledger).drop_audit_before(before)


def lacks_database(folder: Path) -> bool:
    """Whether there is no embedded database. Raises ``StartError``."""
    try:
        return not (folder / DATABASE).exists()
    except OSError as error:
        raise StartError(f"data_dir: {folder}: {error.strerror}") from None
