"""Requests that are under way."""

from typing import Final

from starlette.responses import Response

from chargegate.api.parameters import CLIENT, CURSOR, LIMIT, PAGING, REQUEST_STATUS, STATION, pack_cursor
from chargegate.api.parts import Parts
from chargegate.api.routes.sessions import SESSION
from chargegate.api.routing import Answer, Call, Routes, respond
from chargegate.api.schemas import page
from chargegate.operations.requests import UnderWayFilter, requests_under_way
from chargegate.operations.views import shown

route: Final = Routes("Charging sessions", access="admin")

_PAGE: Final = page("RequestPage", SESSION)


@route(
    "GET",
    "/api/v1/requests",
    "Requests that are under way, newest first",
    parameters=[STATION, CLIENT, REQUEST_STATUS, *PAGING],
    description="Those that wait for a worker (QUEUED), and those that a worker has (PROCESSING): the authorizer is"
    " asked, or the callback is not delivered yet. With Kafka or RabbitMQ all that nobody has decided yet, as QUEUED."
    " At most 5,000 requests are looked at for a page, so that one with a filter may have few items, or none, and a"
    " next_cursor.",
    answers={200: Answer("A page of requests.", _PAGE)},
)
async def list_requests(call: Call, parts: Parts) -> Response:
    which = UnderWayFilter(call[STATION], call[CLIENT], call[REQUEST_STATUS])
    place = call[CURSOR]
    after = place[1] if place else None
    found, last = await requests_under_way(
        parts.ledger, parts.queue, parts.keyring, which, limit=call[LIMIT], after=after
    )
    return respond({"items": [shown(record) for record in found], "next_cursor": last and pack_cursor(0, last)})
