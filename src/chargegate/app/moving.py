"""Moves what waits to another queue, and what the embedded database holds to PostgreSQL. While the embedded file is
one of the sides, no service runs on it."""

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from hashlib import blake2b
from typing import Any, Final

import msgspec

from chargegate.app.filling import put_all
from chargegate.app.offline import COMMAND, lacks_database
from chargegate.app.queueing import queue_at
from chargegate.app.start import StartError, extra
from chargegate.app.storage import Storage, check_keys, database_named, open_storage
from chargegate.config import KAFKA_SHORTEST_LEASE_MS, Settings, scheme
from chargegate.engines import Place
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.source import SqliteSource
from chargegate.ledger.base import Ledger, LedgerUnavailable
from chargegate.queues.base import Delivery, Message, Queue, QueueUnavailable
from chargegate.storage.unavailable import Unavailable, Unusable

_BATCH: Final = 500
_ASKED_AT_ONCE: Final = 100
_ROOM: Final = 1_000_000_000  # what was accepted once is not refused now
_SILENCES: Final = 3


async def move_queue(settings: Settings, source_url: str, target_url: str, on_moved: Callable[[int], None]) -> None:
    """Take every message out of one queue once the other has stored it, until the first is empty. A queue that
    processes share is empty when nothing came for ``queue.lease_ms``: what a dead process held is back by then.

    ``on_moved`` is told how many more were stored. Raises ``StartError`` where nothing was moved, and
    ``QueueUnavailable``; what was not moved then is still where it was. A message that was stored, but not taken out
    because this died, is moved again by the next move.
    """
    if scheme(source_url) == "kafka" and settings.queue.lease_ms < KAFKA_SHORTEST_LEASE_MS:
        raise StartError(f"queue.lease_ms: must be at least {KAFKA_SHORTEST_LEASE_MS} with kafka://")
    async with AsyncExitStack() as stack:
        storage = None
        if "sqlite" in (source_url, target_url):
            if source_url == "sqlite":
                _refuse_without_database(settings)
            storage = await _open_embedded(_with_queue(settings, url="sqlite"), stack)
        name = f"{socket.gethostname()}-move"  # the same when it is run again: it goes on with what it held
        eager = _with_queue(settings, consumer_concurrency=_BATCH)
        source = await queue_at("--from", source_url, eager, storage, stack, name=name)
        with _named("--from"):
            await source.check()
            room = await _room(settings, source, target_url)
        roomy = _with_queue(settings, max_size=room)
        target = await queue_at("--to", target_url, roomy, storage, stack, name=COMMAND)
        if source_url == "sqlite" and settings.database.url != "sqlite" and storage and storage.embedded:
            with database_named(settings):
                await _refuse_forgetting(storage.embedded, storage.ledger)
        with _named("--to"):
            await target.check()
        stored: set[bytes] = set()
        async for batch in _until_empty(source, settings.queue.lease_ms / 1000, exact=source_url == "sqlite"):
            await _hand_over(batch, source, target, stored, on_moved)


async def _room(settings: Settings, source: Queue, target_url: str) -> int:
    """How many may wait in the target. RabbitMQ keeps for ever the bound that a queue was made with, so that is the
    service's where it is enough."""
    if scheme(target_url) not in ("amqp", "amqps"):
        return _ROOM
    return max(settings.queue.max_size, (await source.depth()).waiting)


async def _hand_over(
    batch: list[Delivery], source: Queue, target: Queue, stored: set[bytes], on_moved: Callable[[int], None]
) -> None:
    """``stored``: what was put by this run, and is not put again when the source gives it again."""
    named = [(_identity(delivery.message), delivery) for delivery in batch]
    new = {identity: delivery.message for identity, delivery in named if identity not in stored}
    outcomes = await put_all(target, new.values())
    stored.update(identity for identity, outcome in zip(new, outcomes, strict=True) if outcome is None)
    for identity, delivery in named:
        if identity in stored:
            await source.ack(delivery)
    on_moved(outcomes.count(None))
    for outcome in outcomes:
        if outcome is not None:
            with _named("--to"):
                raise outcome


def _identity(message: Message) -> bytes:
    """A replay has its request's id and another body: no two are sealed alike."""
    return blake2b(message.request_id.encode() + message.body, digest_size=16).digest()


async def _until_empty(source: Queue, quiet_s: float, *, exact: bool) -> AsyncIterator[list[Delivery]]:
    """``exact``: the source knows when it is empty, because nobody else takes from it."""
    silences = 0
    with _named("--from"):
        while not (exact and (await source.depth()).waiting == 0):
            try:
                async with asyncio.timeout(quiet_s):
                    batch = await source.receive(_BATCH)
            except TimeoutError:
                silences += 1
                waiting = (await source.depth()).waiting
                if waiting == 0:
                    return
                if silences == _SILENCES:
                    raise QueueUnavailable(f"{waiting} requests wait and are not handed out") from None
                continue
            silences = 0
            yield batch


async def _refuse_forgetting(embedded: SqliteStore, ledger: Ledger) -> None:
    """A request that goes to workers on another database must not be decided there a second time."""
    decided = await embedded.read(_decided_and_waiting)
    missing = 0
    for start in range(0, len(decided), _ASKED_AT_ONCE):
        asked = decided[start : start + _ASKED_AT_ONCE]
        missing += (await asyncio.gather(*map(ledger.recorded, asked))).count(None)
    if missing:
        raise StartError(
            f"{missing} of the waiting requests have a decision in the embedded database that database.url does not"
            " have, and would be decided again; `chargegate database move` comes first"
        )


def _decided_and_waiting(connection: sqlite3.Connection) -> list[str]:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'authorization_audit'").fetchone():
        return []
    query = "SELECT DISTINCT request_id FROM queue JOIN authorization_audit USING (request_id)"
    return [row[0] for row in connection.execute(query)]


async def move_database(settings: Settings, target_url: str, on_copied: Callable[[str, int], None]) -> None:
    """Copy the embedded database to PostgreSQL; it stays as it is. Run again it goes on, or changes nothing.

    ``on_copied`` is told of what kind so many more were copied; see ``chargegate.ledger.copying.KINDS``. Raises
    ``StartError`` where nothing was copied, and ``LedgerUnavailable``.
    """
    _refuse_without_database(settings)
    with extra("--to", "postgres"):
        from chargegate.engines import postgres  # noqa: PLC0415 - only when asked for
        from chargegate.ledger.copying import copy  # noqa: PLC0415 - as above
    embedded = msgspec.structs.replace(
        _with_queue(settings, url="sqlite"), database=msgspec.structs.replace(settings.database, url="sqlite")
    )
    async with AsyncExitStack() as stack:
        storage = await _open_embedded(embedded, stack)
        place = Place(folder=settings.data_path, exclusive=False)
        try:
            database = await postgres.open_database(target_url, place, None, needed=True)
            stack.push_async_callback(database.close)
            await check_keys(storage.keyring, database.ledger)
            target = await postgres.target(target_url)
            stack.push_async_callback(target.close)
        except (Unavailable, Unusable, StartError, ValueError) as error:
            raise StartError(f"--to: {error}") from None
        if storage.embedded is None:
            raise StartError("the embedded database is not open")
        try:
            await copy(SqliteSource(storage.embedded), target, on_copied)
        except (LedgerUnavailable, ValueError) as error:
            raise LedgerUnavailable(f"--to: {error}") from None


async def _open_embedded(settings: Settings, stack: AsyncExitStack) -> Storage:
    """As a worker, which lets nobody else use the file."""
    with database_named(settings):
        return await open_storage(settings, stack, role="worker")


def _refuse_without_database(settings: Settings) -> None:
    if lacks_database(settings.data_path):
        raise StartError(f"data_dir: {settings.data_path} has no database")


def _with_queue(settings: Settings, **values: Any) -> Settings:
    return msgspec.structs.replace(settings, queue=msgspec.structs.replace(settings.queue, **values))


@contextmanager
def _named(side: str) -> Iterator[None]:
    """Where a queue fails, say which."""
    try:
        yield
    except QueueUnavailable as error:
        raise QueueUnavailable(f"{side}: {error}") from None
