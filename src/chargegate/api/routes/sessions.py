"""Where one request stands."""

from typing import Final

from starlette.responses import Response

from chargegate.api.errors import not_found
from chargegate.api.parameters import REQUEST_ID
from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Call, Routes, respond
from chargegate.api.schemas import EXAMPLE_ID, EXAMPLE_STATION
from chargegate.keys import ANONYMOUS, AccessKey
from chargegate.ledger.records import RequestRecord
from chargegate.operations.requests import find_request
from chargegate.operations.views import shown, view

route: Final = Routes("Charging sessions", access="client")

SESSION: Final = view("Session", RequestRecord, optional=("client",))
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
        "history": [{"at": "2026-01-31T12:00:00.128Z", "status_code": 200, "error": None, "duration_ms": 12}],
    },
}


@route(
    "GET",
    "/api/v1/charging-session/{request_id}",
    "Where a request stands",
    parameters=[REQUEST_ID],
    description="QUEUED, PROCESSING, COMPLETED (callback delivered), FAILED (callback given up: a dead letter)"
    " or TIMEOUT (the authorizer timed out; its unknown was delivered). A client reads its own requests; an"
    " administrator reads all, and sees whose they are. Of attempts at the callback and of replays, if there"
    " were any, the newest 20 are kept.",
    answers={200: Answer("The request.", SESSION, example=_EXAMPLE)},
    errors=[404],
)
async def get_charging_session(call: Call, parts: Parts) -> Response:
    record = await find_request(parts.ledger, parts.queue, parts.keyring, call[REQUEST_ID])
    if record is None or not _may_read(call.caller, record):
        raise not_found("There is no request with this id.")
    named = call.caller is not None and call.caller.role == "admin" and call.caller is not ANONYMOUS
    return respond(shown(record, () if named else ("client",)))


def _may_read(caller: AccessKey | None, record: RequestRecord) -> bool:
    return caller is not None and (caller.role == "admin" or caller.name == record.client)
