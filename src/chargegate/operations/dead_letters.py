"""Callbacks that were given up: listed, sent again with the decision already made, or discarded.

A range of them is by ``failed_at`` in Unix milliseconds: ``since`` is included, ``until`` is not. With a ``client`` it
has only that one's. Every operation raises ``LedgerUnavailable``.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from chargegate.keys import CannotOpen, Keyring
from chargegate.ledger.base import DeadLetters
from chargegate.ledger.records import DeadLetter
from chargegate.model import now_ms
from chargegate.observe import log
from chargegate.operations.listing import Listing, Place
from chargegate.queues.base import Queue
from chargegate.queues.envelope import BoundTo, open_dead_letter, wrap

_SIDE_BY_SIDE: Final = 100


def dead_letters(
    letters: DeadLetters, since: int | None, until: int | None, client: str | None = None
) -> Listing[DeadLetter]:
    """Dead letters, the last one given up first."""

    async def fetch(limit: int, after: Place | None) -> Sequence[DeadLetter]:
        return await letters.dead_letters(since, until, limit, after, client=client)

    return Listing(DeadLetter, ("failed_at", "request_id"), fetch)


async def replay(queue: Queue, keyring: Keyring, letter: DeadLetter) -> None:
    """Put a dead letter back into the queue. Raises ``CannotOpen`` also for one that is not as it was given up, and
    ``QueueFull`` or ``QueueUnavailable``."""
    # It is not the time of now: if another replay is delivered meanwhile, this one has nothing to send.
    replayed_at = letter.failed_at + 1
    bound = BoundTo(
        letter.request_id, letter.station_id, letter.driver_token_hash, letter.status, letter.reason, letter.client
    )
    request = open_dead_letter(keyring, letter.sealed, bound, max(now_ms(), replayed_at))
    await queue.put(wrap(keyring, request, replayed_at=replayed_at))


async def replay_range(
    letters: DeadLetters,
    queue: Queue,
    keyring: Keyring,
    *,
    since: int | None,
    until: int | None,
    client: str | None = None,
    on_replayed: Callable[[int], None] = lambda _: None,
) -> int:
    """Put all dead letters of a range back into the queue, and return how many there were. One that cannot be opened is
    logged and passed over.

    ``on_replayed`` is told how many are back, also before what ``replay`` raises ends it. To do it again does no harm.
    """
    replayed = 0
    async for page in dead_letters(letters, since, until, client).pages(size=_SIDE_BY_SIDE):
        outcomes = await asyncio.gather(*(replay(queue, keyring, letter) for letter in page), return_exceptions=True)
        replayed += outcomes.count(None)
        on_replayed(replayed)
        for letter, outcome in zip(page, outcomes, strict=True):
            if isinstance(outcome, CannotOpen):
                log.error("dead letter cannot be opened", request_id=letter.request_id, why=str(outcome))
            elif outcome is not None:
                raise outcome
    return replayed


async def discard_range(letters: DeadLetters, since: int | None, until: int | None, client: str | None = None) -> int:
    """Forget the token and the URL of all dead letters of a range, for good. Returns how many there were."""
    pages = dead_letters(letters, since, until, client).pages()
    return sum([await letters.discard([letter.request_id for letter in page]) async for page in pages])
