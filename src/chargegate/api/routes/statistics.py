"""How many decisions there were: in all, in the course of time, and by station."""

from typing import Final

from starlette.responses import Response

from chargegate.api.parameters import FROM, PAGING, STATION, STEP, TO, respond_page
from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Call, Routes, respond
from chargegate.api.schemas import page
from chargegate.operations import statistics
from chargegate.operations.views import shown, view

route: Final = Routes("Statistics", access="admin")

STATION_STATISTICS: Final = view("StationStatistics", statistics.OfStation)
_STATIONS: Final = page("StationStatisticsPage", STATION_STATISTICS)
_TIMES: Final = "An answer is exact at once. Where rows of the audit were dropped, only whole {} are counted."


@route(
    "GET",
    "/api/v1/statistics",
    "Decisions in a range of time: how many, and how long they took",
    parameters=[FROM, TO],
    description=_TIMES.format("minutes"),
    answers={200: Answer("The counts.", view("Statistics", statistics.Statistics))},
)
async def get_statistics(call: Call, parts: Parts) -> Response:
    return respond(shown(await statistics.statistics(parts.counts, call[FROM], call[TO])))


@route(
    "GET",
    "/api/v1/statistics/series",
    "Decisions in each minute, hour or day that had some, newest first",
    parameters=[STEP, FROM, TO, *PAGING],
    description="from and to are about start. Days are those of UTC.",
    answers={200: Answer("A page of lengths of time.", page("SeriesPage", view("SeriesItem", statistics.Period)))},
)
async def get_series(call: Call, parts: Parts) -> Response:
    return await respond_page(call, statistics.series(parts.counts, call[STEP], call[FROM], call[TO]))


@route(
    "GET",
    "/api/v1/statistics/stations",
    "Decisions of each station, in the order of station ids",
    parameters=[STATION, FROM, TO, *PAGING],
    description=_TIMES.format("hours") + " A range of whole hours is answered fastest.",
    answers={200: Answer("A page of stations that got a decision.", _STATIONS)},
)
async def list_stations(call: Call, parts: Parts) -> Response:
    return await respond_page(call, statistics.stations(parts.counts, call[STATION], call[FROM], call[TO]))
