"""Sends decisions again: of dead letters, and of requests that a queue still holds after they were delivered."""

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from chargegate.keys import CannotOpen, Keyring
from chargegate.ledger.base import DecisionLedger
from chargegate.model import ChargingRequest, Invalid, now_ms
from chargegate.operations.filling import put_all
from chargegate.queues.base import Message, Queue
from chargegate.queues.envelope import unwrap, wrap

_BATCH = 100


class Replayed(msgspec.Struct):
    """How many requests were put into the queue again; had no decision, or one that is still being sent; could not be
    opened."""

    replayed: int = 0
    not_decided: int = 0
    unreadable: int = 0


async def replay_delivered(
    messages: AsyncIterator[Message],
    accepted_from: int,
    *,
    queue: Queue,
    ledger: DecisionLedger,
    keyring: Keyring,
    on_read: Callable[[Replayed], None],
) -> None:
    """Put each request that was accepted from then on (Unix ms) into the queue once more, if its decision was sent or
    given up. Workers send that decision again, and decide nothing. What earlier replays put there is passed over.

    ``on_read`` is told again and again how far it is. Raises ``QueueUnavailable`` or ``LedgerUnavailable``.
    """
    count = Replayed()
    seen: set[str] = set()
    async for batch in _in_batches(messages):
        requests = []
        for message in batch:
            # A message that was moved here from another queue may stand behind younger ones.
            if message.accepted_at < accepted_from or message.request_id in seen:
                continue
            request = _opened(keyring, message, count)
            if request is not None:
                seen.add(message.request_id)
                requests.append(request)
        replays = await _replays_of_finished(requests, ledger, keyring)
        count.not_decided += len(requests) - len(replays)
        outcomes = await put_all(queue, replays)
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


async def _replays_of_finished(
    requests: list[ChargingRequest], ledger: DecisionLedger, keyring: Keyring
) -> list[Message]:
    """A replay of each request whose decision is recorded and was sent, or given up."""
    recorded = await asyncio.gather(*(ledger.recorded(request.request_id) for request in requests))
    now = now_ms()
    return [
        wrap(keyring, msgspec.structs.replace(request, accepted_at=now), replayed_at=found.finished_at + 1)
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
