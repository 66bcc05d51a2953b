"""Opens the queue. A URL's scheme picks the backend, imported only then."""

import sqlite3
from contextlib import AsyncExitStack
from typing import Final

from chargegate.app.start import StartError, extra
from chargegate.app.storage import Storage, refuse_unknown_keys
from chargegate.config import Settings, scheme
from chargegate.engines import Place, sqlite
from chargegate.engines.memory.queue import MemoryQueue
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.queue import SqliteQueue
from chargegate.keys import SEALED_PREFIX
from chargegate.model import now_ms
from chargegate.observe import log
from chargegate.queues.base import Queue, QueueUnavailable
from chargegate.storage.unavailable import Unusable

OF_ONE_PROCESS: Final = ("sqlite", "memory")


async def open_queue(settings: Settings, storage: Storage, stack: AsyncExitStack, *, name: str) -> Queue:
    """``name`` is this process's. Raises ``StartError``, also where the queue's server is away or refuses."""
    if settings.queue.url == "memory://":
        log.warning("queue.url is memory://: what is waiting is lost when this process ends")
        await _settle_lost(storage)
    queue = await queue_at("queue.url", settings.queue.url, settings, storage, stack, name=name)
    if queue.capabilities.shared:
        try:
            await queue.check()
        except QueueUnavailable as error:
            raise StartError(f"queue.url: {error}") from None
    return queue


async def queue_at(
    key: str, url: str, settings: Settings, storage: Storage | None, stack: AsyncExitStack, *, name: str
) -> Queue:
    """The queue that a URL names; ``key`` is what named it, for errors. Only the embedded one needs a storage. Raises
    ``StartError``."""
    try:
        queue = await _pick(key, url, settings, storage, name)
    except (ValueError, QueueUnavailable) as error:
        raise StartError(f"{key}: {error}") from None
    stack.push_async_callback(queue.close)
    return queue


async def _pick(key: str, url: str, settings: Settings, storage: Storage | None, name: str) -> Queue:
    size, lease_ms = settings.queue.max_size, settings.queue.lease_ms
    match scheme(url).partition("+")[0]:
        case "memory":
            return MemoryQueue(size)
        case "redis" | "rediss":
            with extra(key, "redis"):
                from chargegate.engines.redis.queue import RedisQueue  # noqa: PLC0415 - only when picked
            return await RedisQueue.open(url, max_size=size, consumer=name, lease_ms=lease_ms)
        case "kafka":
            with extra(key, "kafka"):
                from chargegate.engines.kafka import KafkaQueue  # noqa: PLC0415 - only when picked
            return await KafkaQueue.open(url, size, lease_ms=lease_ms)
        case "amqp" | "amqps":
            with extra(key, "rabbitmq"):
                from chargegate.engines.rabbitmq.queue import RabbitQueue  # noqa: PLC0415 - only when picked
            return await RabbitQueue.open(url, max_size=size, prefetch=settings.queue.consumer_concurrency)
        case "postgresql" | "postgres":
            with extra(key, "postgres"):
                from chargegate.engines.postgres.queue import PostgresQueue  # noqa: PLC0415 - only when picked
            try:
                return await PostgresQueue.open(url, size, lease_ms)
            except Unusable as error:
                raise StartError(f"{key}: {error}") from None
        case _:
            if storage is None or storage.embedded is None:
                raise StartError(f"{key}: the embedded queue's file is not open")
            place = Place(folder=settings.data_path, exclusive=False)
            prefixes = await sqlite.sealed_prefixes_in_folder(place, SEALED_PREFIX)
            refuse_unknown_keys(storage.keyring, prefixes, "waiting requests")
            return await SqliteQueue.open(storage.embedded, size)


async def warn_of_left_behind(settings: Settings, storage: Storage) -> None:
    """Requests in the embedded queue are not lost when another is configured, but nobody decides them."""
    if settings.queue.url != "sqlite" and storage.embedded is not None:
        kept = await _in_embedded(storage.embedded)
        if kept:
            log.warning(
                "requests wait in the embedded queue, which queue.url does not name;"
                " `chargegate queue move --from sqlite` takes them along",
                requests=len(kept),
            )


async def _settle_lost(storage: Storage) -> None:
    """What an earlier process left under way in its memory has an end too. What the embedded queue holds has not: it
    goes on when that queue is used again."""
    kept = frozenset[str]() if storage.embedded is None else await _in_embedded(storage.embedded)
    if lost := await storage.ledger.fail_lost(kept, now_ms()):
        log.warning("requests were lost with an earlier process's queue", requests=lost)


async def _in_embedded(store: SqliteStore) -> frozenset[str]:
    def waiting(connection: sqlite3.Connection) -> frozenset[str]:
        return frozenset(row[0] for row in connection.execute("SELECT request_id FROM queue"))

    return await store.read(waiting)
