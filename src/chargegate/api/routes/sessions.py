"""Where one request stands."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from chargegate.api.errors import not_found
from chargegate.api.operations import Answer, IsoTime, Millis, Operation, respond
from chargegate.api.parameters import REQUEST_ID, from_path
from chargegate.api.parts import Parts
from chargegate.api.schemas import EXAMPLE_ID, EXAMPLE_STATION
from chargegate.ledger.records import CallbackRecord, RequestRecord
from chargegate.model import Decision, RequestStatus, Status, to_iso


class DecisionView(msgspec.Struct):
    status: Status
    reason: str
    processing_time_ms: int
    timestamp: Millis


class CallbackView(msgspec.Struct):
    attempts: int
    last_status_code: int | None
    last_error: str | None
    delivered_at: IsoTime | None


class Session(msgspec.Struct):
    """A request from its acceptance to the end of its callback."""

    request_id: str
    station_id: str
    status: RequestStatus
    created_at: IsoTime
    processed_at: IsoTime | None = None
    decision: DecisionView | None = None
    callback: CallbackView | None = None


class Sessions:
    def __init__(self, parts: Parts) -> None:
        self._ledger = parts.ledger
        self._queue = parts.queue

    async def show(self, request: Request) -> Response:
        request_id = from_path(request, REQUEST_ID)
        record = await self._ledger.find(request_id)
        if record is None:
            waiting = await self._queue.find(request_id)
            if waiting is not None:
                status = RequestStatus.PROCESSING if waiting.taken else RequestStatus.QUEUED
                return respond(Session(request_id, waiting.station_id, status, to_iso(waiting.accepted_at)))
            # It may have been decided, and have left the queue, between the two look-ups.
            record = await self._ledger.find(request_id)
        if record is None:
            raise not_found("There is no request with this id.")
        return respond(_view(record))


def _view(record: RequestRecord) -> Session:
    return Session(
        record.request_id,
        record.station_id,
        record.status,
        to_iso(record.created_at),
        optional_iso(record.processed_at),
        _decision(record.decision) if record.decision else None,
        _callback(record.callback) if record.callback else None,
    )


def _decision(decision: Decision) -> DecisionView:
    return DecisionView(decision.status, decision.reason, decision.processing_time_ms, decision.timestamp)


def _callback(callback: CallbackRecord) -> CallbackView:
    return CallbackView(
        callback.attempts, callback.last_status_code, callback.last_error, optional_iso(callback.delivered_at)
    )


def optional_iso(ms: int | None) -> str | None:
    return None if ms is None else to_iso(ms)


def operations(parts: Parts) -> list[Operation]:
    return [
        Operation(
            method="GET",
            path="/api/v1/charging-session/{request_id}",
            name="getChargingSession",
            handler=Sessions(parts).show,
            access="client",
            tag="Charging sessions",
            summary="Where a request stands",
            description="QUEUED, PROCESSING, COMPLETED (callback delivered), FAILED (callback given up: a dead letter)"
            " or TIMEOUT (the authorizer timed out; its unknown was delivered).",
            parameters=[REQUEST_ID],
            answers={
                200: Answer(
                    "The request.",
                    Session,
                    example={
                        "request_id": EXAMPLE_ID,
                        "station_id": EXAMPLE_STATION,
                        "status": "COMPLETED",
                        "created_at": "2026-01-31T12:00:00.000Z",
                        "processed_at": "2026-01-31T12:00:00.140Z",
                        "decision": {
                            "status": "allowed",
                            "reason": "",
                            "processing_time_ms": 95,
                            "timestamp": 1769860800100,
                        },
                        "callback": {
                            "attempts": 1,
                            "last_status_code": 200,
                            "last_error": None,
                            "delivered_at": "2026-01-31T12:00:00.140Z",
                        },
                    },
                )
            },
            errors=[400, 404, 503],
        )
    ]
