"""What the databases' rows mean. A row begins with the parts of a decision in ``Decision``'s order."""

from collections.abc import Sequence
from typing import Any

from chargegate.ledger.records import CallbackRecord, Recorded, RequestRecord
from chargegate.model import Decision, RequestStatus, Status


def decision_of(row: Sequence[Any]) -> Decision:
    return Decision(row[0], row[1], row[2], Status(row[3]), row[4], row[5], row[6])


def recorded_of(row: Sequence[Any]) -> Recorded:
    """After the decision: attempts, started_at, processed_at, status."""
    return Recorded(decision_of(row), row[7], row[8], row[9], RequestStatus(row[10]))


def request_of(row: Sequence[Any]) -> RequestRecord:
    """After the decision, whose status is None where there is none: status, created_at, processed_at, attempts,
    last_status_code, last_error."""
    status, created_at, processed_at, attempts, code, error = row[7:]
    delivered = status in (RequestStatus.COMPLETED, RequestStatus.TIMEOUT)
    callback = CallbackRecord(attempts, code, error, processed_at if delivered else None)
    return RequestRecord(
        row[0],
        row[1],
        RequestStatus(status),
        created_at,
        processed_at,
        None if row[3] is None else decision_of(row),
        callback if attempts or processed_at else None,
    )
