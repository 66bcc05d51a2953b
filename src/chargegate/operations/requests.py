"""Where requests stand, and whose they are."""

from collections.abc import AsyncIterator
from typing import Final

import msgspec

from chargegate.keys import Keyring
from chargegate.ledger.base import RequestReader
from chargegate.ledger.records import RequestRecord
from chargegate.model import RequestStatus
from chargegate.queues.base import Message, Queue, Waiting
from chargegate.queues.envelope import client_of

_AT_ONCE: Final = 250
_MOST_EXAMINED: Final = 5000
"""So many requests are looked at for one page, whatever the filter."""


class UnderWayFilter(msgspec.Struct, frozen=True):
    """Which of the requests that are under way: each part None for any."""

    station_id: str | None = None
    client: str | None = None
    status: RequestStatus | None = None

    def fits(self, record: RequestRecord) -> bool:
        return (
            self.station_id in (None, record.station_id.lower())
            and self.client in (None, record.client)
            and self.status in (None, record.status)
        )


async def find_request(reader: RequestReader, queue: Queue, keyring: Keyring, request_id: str) -> RequestRecord | None:
    """A request that waits in the queue, or that the ledger has. Raises ``LedgerUnavailable`` and
    ``QueueUnavailable``."""
    record = await reader.find(request_id)
    if record is not None:
        return record
    waiting = await queue.find(request_id)
    if waiting is not None:
        return _undecided(keyring, request_id, waiting)
    # It may have been decided, and have left the queue, between the two look-ups.
    return await reader.find(request_id)


async def requests_under_way(
    reader: RequestReader,
    queue: Queue,
    keyring: Keyring,
    which: UnderWayFilter,
    *,
    limit: int,
    after: str | None,
) -> tuple[list[RequestRecord], str | None]:
    """A page of the requests that are in the queue and whose callback has not ended, the newest first, and the place
    after which the next page begins, if there is one. A page may have less than ``limit``, or nothing, and a next one
    all the same: only so many requests are looked at. Of a queue that cannot list them, those that nobody has decided
    yet. Raises ``LedgerUnavailable`` and ``QueueUnavailable``."""
    found: list[tuple[RequestRecord, str]] = []
    examined = 0
    async for record, place in _under_way(reader, queue, keyring, after):
        examined += 1
        if record.processed_at is None and which.fits(record):
            found.append((record, place))
        if len(found) > limit:
            return [each for each, _ in found[:limit]], found[limit - 1][1]
        if examined == _MOST_EXAMINED:
            return [each for each, _ in found], place
    return [each for each, _ in found], None


async def _under_way(
    reader: RequestReader, queue: Queue, keyring: Keyring, after: str | None
) -> AsyncIterator[tuple[RequestRecord, str]]:
    """Each with its place."""
    whole = True
    while whole:
        if queue.capabilities.find:
            listed = await queue.unacked(_AT_ONCE, after)
            known = {each.request_id: each for each in await reader.find_all([one.request_id for one in listed])}
            for one in listed:
                after = one.place
                yield known.get(one.request_id) or _undecided(keyring, one.request_id, one.waiting), after
            whole = len(listed) == _AT_ONCE
        else:
            records = await reader.queued(_AT_ONCE, after)
            for record in records:
                after = record.request_id
                yield record, after
            whole = len(records) == _AT_ONCE


def _undecided(keyring: Keyring, request_id: str, waiting: Waiting) -> RequestRecord:
    status = RequestStatus.PROCESSING if waiting.taken else RequestStatus.QUEUED
    message = Message(request_id, waiting.station_id, waiting.accepted_at, waiting.body)
    client = client_of(keyring, message)
    return RequestRecord(request_id, waiting.station_id, status, waiting.accepted_at, None, None, None, client)
