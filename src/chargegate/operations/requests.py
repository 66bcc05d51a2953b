"""Where one request stands."""

from chargegate.ledger.base import RequestReader
from chargegate.ledger.records import RequestRecord
from chargegate.model import RequestStatus
from chargegate.queues.base import Queue


async def find_request(reader: RequestReader, queue: Queue, request_id: str) -> RequestRecord | None:
    """A request that waits in the queue, or that the ledger has. Raises ``LedgerUnavailable`` and
    ``QueueUnavailable``."""
    record = await reader.find(request_id)
    if record is not None:
        return record
    waiting = await queue.find(request_id)
    if waiting is not None:
        status = RequestStatus.PROCESSING if waiting.taken else RequestStatus.QUEUED
        return RequestRecord(request_id, waiting.station_id, status, waiting.accepted_at, None, None, None)
    # It may have been decided, and have left the queue, between the two look-ups.
    return await reader.find(request_id)
