"""Moves what waits in one queue to another, and copies one database into another."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from typing import Final, Generic, NamedTuple, TypeVar

from chargegate.ledger.base import AccessList, DecisionLedger, LedgerUnavailable
from chargegate.ledger.records import CLAIM_MS, AccessEntry
from chargegate.ledger.transfer import LedgerSource, LedgerTarget
from chargegate.model import now_ms
from chargegate.operations.filling import put_all
from chargegate.queues.base import Delivery, Message, Queue, QueueUnavailable

T = TypeVar("T")

MOVED_AT_ONCE: Final = 500
"""How many messages are received together."""

KINDS: Final = ("requests", "audit_rows", "access_list_entries", "idempotency_keys")
"""What is counted while a database is copied."""

_COPIED_AT_ONCE: Final = 2000
_ASKED_AT_ONCE: Final = 100
_SILENCES: Final = 3


class Side(NamedTuple, Generic[T]):
    """A queue or a database, and what errors call it."""

    name: str
    store: T


async def move_queue(source: Side[Queue], target: Side[Queue], quiet_s: float, on_moved: Callable[[int], None]) -> None:
    """Take every message out of one queue once the other has stored it, until the first is empty. A queue that
    processes share is empty when nothing came for ``quiet_s``, within which it hands out what a dead process held.

    ``on_moved`` is told how many more were stored. Raises ``QueueUnavailable``: what was not moved then is still where
    it was. A message that was stored, but not taken out because the process died, is moved once more by the next move.
    """
    stored: set[bytes] = set()
    async for batch in _until_empty(source, quiet_s):
        await _move_batch(batch, source.store, target, stored, on_moved)


async def _move_batch(
    batch: list[Delivery], source: Queue, target: Side[Queue], stored: set[bytes], on_moved: Callable[[int], None]
) -> None:
    """``stored``: what this move put already, and does not put again when the source hands it out again."""
    identities = [_identity(delivery.message) for delivery in batch]
    new = {
        identity: delivery.message
        for identity, delivery in zip(identities, batch, strict=True)
        if identity not in stored
    }
    outcomes = await put_all(target.store, new.values())
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


async def _until_empty(source: Side[Queue], quiet_s: float) -> AsyncIterator[list[Delivery]]:
    """A queue that is not shared knows when it is empty, because nobody else takes from it."""
    queue, exact = source.store, not source.store.capabilities.shared
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


async def copy_database(
    from_: Side[LedgerSource], to: Side[LedgerTarget], on_copied: Callable[[str, int], None]
) -> None:
    """Copy page by page; the source stays as it is. Run again it goes on, or changes nothing.

    ``on_copied`` is told which of ``KINDS``, and how many more of it the target has now; at first none of each. Raises
    ``LedgerUnavailable``, and ``ValueError`` for a value that the target does not take.
    """
    source, target = from_.store, to.store
    read, write = partial(_at, from_.name), partial(_at, to.name)
    for kind in KINDS:
        on_copied(kind, 0)
    request_id = ""
    while requests := await read(source.requests(request_id, _COPIED_AT_ONCE)):
        request_id = requests[-1].request_id
        changed, audited = await write(target.put_requests(requests))
        on_copied("requests", changed)
        on_copied("audit_rows", audited)
    place = 0
    # What waits is listed as well, because the queue that it goes to may not be able to find it.
    while waiting := await read(source.waiting(place, _COPIED_AT_ONCE)):
        place = waiting[-1].place
        on_copied("requests", await write(target.put_waiting(waiting)))
    token_hash = None
    while page := await read(source.access_list.entries(_COPIED_AT_ONCE, token_hash)):
        token_hash = page[-1].driver_token_hash
        on_copied("access_list_entries", await write(_put_new(target.access_list, page)))
    key_digest, since = "", now_ms() - CLAIM_MS
    while claims := await read(source.claims(key_digest, _COPIED_AT_ONCE, since)):
        key_digest = claims[-1].key_digest
        on_copied("idempotency_keys", await write(target.put_claims(claims)))
    # The values come last, because one of them says that a file's entries are in the access list.
    await write(target.put_values(await read(source.values())))


async def _put_new(access_list: AccessList, entries: Sequence[AccessEntry]) -> int:
    """Put the entries that are not there. Returns how many these were."""
    held = await asyncio.gather(*(access_list.entry(entry.driver_token_hash) for entry in entries))
    new = [entry for entry, known in zip(entries, held, strict=True) if known is None]
    await access_list.put(new)
    return len(new)


async def _at(name: str, work: Awaitable[T]) -> T:
    with named(name):
        return await work


@contextmanager
def named(name: str) -> Iterator[None]:
    """Where a queue or a database fails, say which: the name stands before the message."""
    try:
        yield
    except (QueueUnavailable, LedgerUnavailable) as error:
        raise type(error)(f"{name}: {error}") from None
