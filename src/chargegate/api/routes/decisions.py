"""The audit over HTTP: decisions, timeouts, and counts by station."""

from typing import Final

from starlette.responses import Response

from chargegate.api.parameters import CLIENT, FROM, PAGING, REASON, STATION, STATUS, TO, respond_page
from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Call, Routes
from chargegate.api.schemas import page
from chargegate.ledger.records import DecisionFilter, StationStats
from chargegate.model import Decision
from chargegate.operations import decisions
from chargegate.operations.views import view

route: Final = Routes("Audit", access="admin")

_DECISIONS: Final = Answer("A page of decisions.", page("DecisionPage", view("DecisionItem", Decision)))
_STATIONS: Final = page("StationPage", view("StationCounts", StationStats))


@route(
    "GET",
    "/api/v1/decisions",
    "Decisions, newest first",
    parameters=[STATION, STATUS, REASON, CLIENT, FROM, TO, *PAGING],
    answers={200: _DECISIONS},
)
async def list_decisions(call: Call, parts: Parts) -> Response:
    which = DecisionFilter(call[STATION], call[STATUS], call[FROM], call[TO], call[REASON], call[CLIENT])
    return await respond_page(call, decisions.decisions(parts.ledger, which))


@route(
    "GET",
    "/api/v1/audit/timeouts",
    "Decisions for which the authorizer did not answer in time, newest first",
    parameters=[STATION, CLIENT, FROM, TO, *PAGING],
    answers={200: _DECISIONS},
)
async def list_timeouts(call: Call, parts: Parts) -> Response:
    found = decisions.timeouts(parts.ledger, call[STATION], call[FROM], call[TO], call[CLIENT])
    return await respond_page(call, found)


@route(
    "GET",
    "/api/v1/audit/stats",
    "Decisions counted by station and status, in the order of station ids",
    parameters=[STATION, CLIENT, FROM, TO, *PAGING],
    answers={200: Answer("A page of stations that got a decision.", _STATIONS)},
)
async def count_by_station(call: Call, parts: Parts) -> Response:
    counts = decisions.station_counts(parts.ledger, call[STATION], call[FROM], call[TO], call[CLIENT])
    return await respond_page(call, counts)
