"""How the service is doing, at a glance."""

from typing import Final

import msgspec
from starlette.responses import Response

from chargegate.api.errors import not_found
from chargegate.api.parameters import whole_number
from chargegate.api.parts import Parts
from chargegate.api.routes.statistics import STATION_STATISTICS
from chargegate.api.routing import Answer, Call, Parameter, Routes, respond
from chargegate.operations.busy_stations import FEWEST_DECISIONS, MAX_HOURS, MOST, ORDERS
from chargegate.operations.overview import Overview
from chargegate.operations.views import shown

route: Final = Routes("Statistics", access="admin")

_HOURS: Final = whole_number("hours", "In so many hours, the current one included.", MAX_HOURS, 24)
_LIMIT: Final = whole_number("limit", "At most so many stations.", MOST, 10)


def _order(text: str) -> str:
    if text not in ORDERS:
        raise ValueError("must be one of " + ", ".join(ORDERS))
    return text


_BY: Final = Parameter(
    "by",
    "query",
    {"type": "string", "enum": list(ORDERS), "default": ORDERS[0]},
    f"The largest first. By error_rate only stations with at least {FEWEST_DECISIONS} decisions, and some error.",
    _order,
    ORDERS[0],
)
_STATIONS: Final = msgspec.defstruct("BusiestStations", [("items", list[STATION_STATISTICS])])  # type: ignore[valid-type]  # made at run time


@route(
    "GET",
    "/api/v1/overview",
    "How the service is doing, and what is wrong",
    description="It is made at most twice a second, however many ask. Decisions are those of all processes. What was"
    " waiting, and how long callbacks took, is known since this process began.",
    answers={200: Answer("The overview.", Overview)},
    errors=[404],
)
async def get_overview(_call: Call, parts: Parts) -> Response:
    if parts.overview is None:
        raise not_found("This process keeps no overview.")
    return respond(await parts.overview.read())


@route(
    "GET",
    "/api/v1/statistics/busiest-stations",
    "The stations with the most decisions, or with the largest share of errors",
    parameters=[_BY, _HOURS, _LIMIT],
    description="An answer may be 15 seconds old.",
    answers={200: Answer("The stations.", _STATIONS)},
    errors=[404],
)
async def list_busiest_stations(call: Call, parts: Parts) -> Response:
    if parts.stations is None:
        raise not_found("This process keeps no overview.")
    top = await parts.stations.top(call[_HOURS], call[_BY], call[_LIMIT])
    return respond({"items": [shown(one) for one in top]})
