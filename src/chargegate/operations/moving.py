"""Moves what waits in one queue to another."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Final, NamedTuple

from chargegate.ledger.base import DecisionLedger, LedgerUnavailable
from chargegate.operations.filling import put_all
from chargegate.queues.base import Delivery, Message, Queue, QueueUnavailable

MOVED_AT_ONCE: Final = 500
"""How many messages are received together."""

_ASKED_AT_ONCE: Final = 100
_SILENCES: Final = 3


class Side(NamedTuple):
    """One of the two queues of a move, and what errors call it."""

    name: str
    queue: Queue


async def move_queue(source: Side, target: Side, quiet_s: float, on_moved: Callable[[int], None]) -> None:
    """Take every message out of one queue once the other has stored it, until the first is empty. A queue that
    processes share is empty when nothing came for ``quiet_s``, within which it hands out what a dead process held.

    ``on_moved`` is told how many more were stored. Raises ``QueueUnavailable``: what was not moved then is still where
    it was. A message that was stored, but not taken out because the process died, is moved once more by the next move.
    """
    stored: set[bytes] = set()
    async for batch in _until_empty(source, quiet_s):
        await _move_batch(batch, source.queue, target, stored, on_moved)


async def _move_batch(
    batch: list[Delivery], source: Queue, target: Side, stored: set[bytes], on_moved: Callable[[int], None]
) -> None:
    """``stored``: what this move put already, and does not put again when the source hands it out again."""
    identities = [_identity(delivery.message) for delivery in batch]
    new = {
        identity: delivery.message
        for identity, delivery in zip(identities, batch, strict=True)
        if identity not in stored
    }
    outcomes = await put_all(target.queue, new.values())
    stored.update(identity for identity, outcome in zip(new, outcomes, strict=True) if outcome is None)
    for identity, delivery in zip(identities, batch, strict=True):
        if identity in stored:
            await source.ack(delivery)
    on_moved(outcomes.count(None))
    for outcome in outcomes:
        if outcome is not None:
            with named(target.name):
                raise outcome


def _identity(message: Message) -> bytes:
    """A replay has its request's id and another body: no two bodies are sealed alike."""
    return blake2b(message.request_id.encode() + message.body, digest_size=16).digest()


async def _until_empty(source: Side, quiet_s: float) -> AsyncIterator[list[Delivery]]:
    """A queue that is not shared knows when it is empty, because nobody else takes from it."""
    queue, exact = source.queue, not source.queue.capabilities.shared
    silences = 0
    with named(source.name):
        while not (exact and (await queue.depth()).waiting == 0):
            try:
                async with asyncio.timeout(quiet_s):
                    batch = await queue.receive(MOVED_AT_ONCE)
            except TimeoutError:
                silences += 1
                waiting = (await queue.depth()).waiting
                if waiting == 0:
                    return
                if silences == _SILENCES:
                    raise QueueUnavailable(f"{waiting} requests wait and are not handed out") from None
                continue
            silences = 0
            yield batch


async def count_undecided(ledger: DecisionLedger, request_ids: Sequence[str]) -> int:
    """How many of the requests have no decision in this ledger."""
    missing = 0
    for start in range(0, len(request_ids), _ASKED_AT_ONCE):
        asked = request_ids[start : start + _ASKED_AT_ONCE]
        missing += (await asyncio.gather(*map(ledger.recorded, asked))).count(None)
    return missing


@contextmanager
def named(name: str) -> Iterator[None]:
    """Where a queue or a database fails, say which: the name stands before the message."""
    try:
        yield
    except (QueueUnavailable, LedgerUnavailable) as error:
        raise type(error)(f"{name}: {error}") from None
