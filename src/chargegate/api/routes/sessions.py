"""Where one request stands."""

from typing import Final

from starlette.responses import Response

from chargegate.api.errors import not_found
from chargegate.api.parameters import REQUEST_ID
from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Call, Routes, respond
from chargegate.api.schemas import EXAMPLE_ID, EXAMPLE_STATION
from chargegate.ledger.records import RequestRecord
from chargegate.operations.requests import find_request
from chargegate.operations.views import shown, view

route: Final = Routes("Charging sessions", access="client")

_EXAMPLE: Final = {
    "request_id": EXAMPLE_ID,
    "station_id": EXAMPLE_STATION,
    "status": "COMPLETED",
    "created_at": "2026-01-31T12:00:00.000Z",
    "processed_at": "2026-01-31T12:00:00.140Z",
    "decision": {"status": "allowed", "reason": "", "processing_time_ms": 95, "timestamp": 1769860800100},
    "callback": {
        "attempts": 1,
        "last_status_code": 200,
        "last_error": None,
        "delivered_at": "2026-01-31T12:00:00.140Z",
    },
}


@route(
    "GET",
    "/api/v1/charging-session/{request_id}",
    "Where a request stands",
    parameters=[REQUEST_ID],
    description="QUEUED, PROCESSING, COMPLETED (callback delivered), FAILED (callback given up: a dead letter)"
    " or TIMEOUT (the authorizer timed out; its unknown was delivered).",
    answers={200: Answer("The request.", view("Session", RequestRecord), example=_EXAMPLE)},
    errors=[404],
)
async def get_charging_session(call: Call, parts: Parts) -> Response:
    record = await find_request(parts.ledger, parts.queue, call[REQUEST_ID])
    if record is None:
        raise not_found("There is no request with this id.")
    return respond(shown(record))
