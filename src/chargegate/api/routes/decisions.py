"""The audit over HTTP: decisions, timeouts, and counts by station."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from chargegate.api.operations import Answer, Millis, Operation, respond
from chargegate.api.parameters import CURSOR, DEFAULT_LIMIT, FROM, LIMIT, PAGING, STATION, STATUS, TO, Query, page_of
from chargegate.api.parts import Parts
from chargegate.ledger.records import DecisionFilter, StationStats
from chargegate.model import Decision, Reason, Status


class DecisionItem(msgspec.Struct):
    """A decision. ``driver_token_hash`` is the first 16 hexadecimal digits of the token's keyed hash."""

    timestamp: Millis
    request_id: str
    station_id: str
    driver_token_hash: str
    status: Status
    reason: str
    processing_time_ms: int


class DecisionPage(msgspec.Struct):
    items: list[DecisionItem]
    next_cursor: str | None


class StationCounts(msgspec.Struct):
    """How many decisions a station got, by status."""

    station_id: str
    total: int
    allowed: int
    not_allowed: int
    unknown: int
    invalid: int


class StationPage(msgspec.Struct):
    items: list[StationCounts]
    next_cursor: str | None


class Decisions:
    def __init__(self, parts: Parts) -> None:
        self._ledger = parts.ledger

    async def list(self, request: Request) -> Response:
        query = Query(request)
        return await self._page(
            query,
            DecisionFilter(
                station_id=query.read(STATION),
                status=query.read(STATUS),
                since=query.read(FROM),
                until=query.read(TO),
            ),
        )

    async def timeouts(self, request: Request) -> Response:
        query = Query(request)
        return await self._page(
            query,
            DecisionFilter(
                station_id=query.read(STATION),
                status=Status.UNKNOWN,  # follows from the reason, and has an index
                since=query.read(FROM),
                until=query.read(TO),
                reason=Reason.TIMEOUT,
            ),
        )

    async def stats(self, request: Request) -> Response:
        query = Query(request)
        station, since, until = query.read(STATION), query.read(FROM), query.read(TO)
        limit = query.read(LIMIT) or DEFAULT_LIMIT
        after = query.read(CURSOR)
        query.check()
        found = await self._ledger.station_stats(
            since, until, station_id=station, limit=limit + 1, after=after[1] if after else None
        )
        stations, cursor = page_of(found, limit, lambda station: (0, station.station_id))
        return respond(StationPage([_counts(station) for station in stations], cursor))

    async def _page(self, query: Query, which: DecisionFilter) -> Response:
        limit = query.read(LIMIT) or DEFAULT_LIMIT
        after = query.read(CURSOR)
        query.check()
        found = await self._ledger.decisions(which, limit + 1, after)
        decisions, cursor = page_of(found, limit, lambda decision: (decision.timestamp, decision.request_id))
        return respond(DecisionPage([_item(decision) for decision in decisions], cursor))


def _item(decision: Decision) -> DecisionItem:
    return DecisionItem(
        decision.timestamp,
        decision.request_id,
        decision.station_id,
        decision.driver_token_hash,
        decision.status,
        decision.reason,
        decision.processing_time_ms,
    )


def _counts(station: StationStats) -> StationCounts:
    return StationCounts(*msgspec.structs.astuple(station))


def operations(parts: Parts) -> list[Operation]:
    decisions = Decisions(parts)
    return [
        Operation(
            method="GET",
            path="/api/v1/decisions",
            name="listDecisions",
            handler=decisions.list,
            access="admin",
            tag="Audit",
            summary="Decisions, newest first",
            parameters=[STATION, STATUS, FROM, TO, *PAGING],
            answers={200: Answer("A page of decisions.", DecisionPage)},
            errors=[400, 503],
        ),
        Operation(
            method="GET",
            path="/api/v1/audit/timeouts",
            name="listTimeouts",
            handler=decisions.timeouts,
            access="admin",
            tag="Audit",
            summary="Decisions for which the authorizer did not answer in time, newest first",
            parameters=[STATION, FROM, TO, *PAGING],
            answers={200: Answer("A page of decisions.", DecisionPage)},
            errors=[400, 503],
        ),
        Operation(
            method="GET",
            path="/api/v1/audit/stats",
            name="countByStation",
            handler=decisions.stats,
            access="admin",
            tag="Audit",
            summary="Decisions counted by station and status, in the order of station ids",
            parameters=[STATION, FROM, TO, *PAGING],
            answers={200: Answer("A page of stations that got a decision.", StationPage)},
            errors=[400, 503],
        ),
    ]
