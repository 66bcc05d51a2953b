"""Where one request stands, and whose it is."""

from chargegate.keys import Keyring
from chargegate.ledger.base import RequestReader
from chargegate.ledger.records import RequestRecord
from chargegate.model import RequestStatus
from chargegate.queues.base import Message, Queue
from chargegate.queues.envelope import client_of


async def find_request(reader: RequestReader, queue: Queue, keyring: Keyring, request_id: str) -> RequestRecord | None:
    """A request that waits in the queue, or that the ledger has. Raises ``LedgerUnavailable`` and
    ``QueueUnavailable``."""
    record = await reader.find(request_id)
    if record is not None:
        return record
    waiting = await queue.find(request_id)
    if waiting is not None:
        status = RequestStatus.PROCESSING if waiting.taken else RequestStatus.QUEUED
        message = Message(request_id, waiting.station_id, waiting.accepted_at, waiting.body)
        client = client_of(keyring, message)
        return RequestRecord(request_id, waiting.station_id, status, waiting.accepted_at, None, None, None, client)
    # It may have been decided, and have left the queue, between the two look-ups.
    return await reader.find(request_id)
