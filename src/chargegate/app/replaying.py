"""Sends decisions again for what a topic of Kafka still holds."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from datetime import datetime
from typing import Final

import msgspec

from chargegate.app.filling import put_all
from chargegate.app.offline import COMMAND, lacks_database
from chargegate.app.queueing import open_queue
from chargegate.app.start import StartError, extra
from chargegate.app.storage import Storage, database_named, open_storage
from chargegate.config import Settings, scheme
from chargegate.keys import CannotOpen, Keyring
from chargegate.model import ChargingRequest, Invalid, now_ms
from chargegate.queues.base import Message
from chargegate.queues.envelope import unwrap, wrap

_BATCH: Final = 100


class Replayed(msgspec.Struct):
    """How many requests were put into the queue again; had no decision, or one that is still being sent; could not be
    opened."""

    replayed: int = 0
    not_decided: int = 0
    unreadable: int = 0


async def replay_from(settings: Settings, start: int | datetime, on_read: Callable[[Replayed], None]) -> None:
    """Put each request that the topic holds, from an offset in each partition or from the time of its acceptance, up to
    the topic's end as it is now, into the queue once more, if its decision was sent or given up. Workers send that
    decision again, and decide nothing. What earlier replays put there is passed over.

    ``on_read`` is told again and again how far it is. Raises ``StartError`` where nothing was read, and
    ``QueueUnavailable`` or ``LedgerUnavailable``.
    """
    if scheme(settings.queue.url) != "kafka":
        raise StartError("queue.url: only kafka:// keeps what was delivered; see `chargegate dead-letters replay`")
    if settings.database.url == "sqlite" and lacks_database(settings.data_path):
        raise StartError(f"data_dir: {settings.data_path} has no database, and so no decision to send again")
    with extra("queue.url", "kafka"):
        from chargegate.engines.kafka import messages_from  # noqa: PLC0415 - only when asked for
    accepted_from = round(start.timestamp() * 1000) if isinstance(start, datetime) else 0
    async with AsyncExitStack() as stack:
        with database_named(settings):
            storage = await open_storage(settings, stack, role=None)
        queue = await open_queue(settings, storage, stack, name=COMMAND)
        messages = await stack.enter_async_context(aclosing(messages_from(settings.queue.url, start)))
        count = Replayed()
        seen: set[str] = set()
        async for batch in _in_batches(messages):
            requests = []
            for message in batch:
                # moved from elsewhere, it may stand behind younger ones
                if message.accepted_at < accepted_from or message.request_id in seen:
                    continue
                request = _opened(storage.keyring, message, count)
                if request is not None:
                    seen.add(message.request_id)
                    requests.append(request)
            again = await _finished(storage, requests)
            count.not_decided += len(requests) - len(again)
            outcomes = await put_all(queue, again)
            count.replayed += outcomes.count(None)
            on_read(count)
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome


def _opened(keyring: Keyring, message: Message, count: Replayed) -> ChargingRequest | None:
    try:
        request, replayed_at = unwrap(keyring, message)
    except (CannotOpen, Invalid):
        count.unreadable += 1
        return None
    return None if replayed_at else request


async def _finished(storage: Storage, requests: list[ChargingRequest]) -> list[Message]:
    """The replays of those whose decision is recorded and was sent, or given up."""
    recorded = await asyncio.gather(*(storage.ledger.recorded(request.request_id) for request in requests))
    now = now_ms()
    return [
        wrap(storage.keyring, msgspec.structs.replace(request, accepted_at=now), replayed_at=found.finished_at + 1)
        for request, found in zip(requests, recorded, strict=True)
        if found is not None and found.finished_at is not None
    ]


async def _in_batches(messages: AsyncIterator[Message]) -> AsyncIterator[list[Message]]:
    batch: list[Message] = []
    async for message in messages:
        batch.append(message)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
