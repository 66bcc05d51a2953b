"""The decisions that were made, and how many a station got. Times are Unix milliseconds: ``since`` is included,
``until`` is not. Reading raises ``LedgerUnavailable``."""

from collections.abc import Sequence

from chargegate.ledger.base import RequestReader
from chargegate.ledger.records import DecisionFilter, StationStats
from chargegate.model import Decision, Reason
from chargegate.operations.listing import Listing, Place


def decisions(reader: RequestReader, which: DecisionFilter) -> Listing[Decision]:
    """Decisions, newest first."""

    async def fetch(limit: int, after: Place | None) -> Sequence[Decision]:
        return await reader.decisions(which, limit, after)

    return Listing(Decision, ("timestamp", "request_id"), fetch)


def timeouts(
    reader: RequestReader,
    station_id: str | None,
    since: int | None,
    until: int | None,
    client: str | None = None,
) -> Listing[Decision]:
    """Decisions for which the authorizer did not answer in time, newest first."""
    return decisions(reader, DecisionFilter(station_id, None, since, until, Reason.TIMEOUT, client))


def station_counts(
    reader: RequestReader,
    station_id: str | None,
    since: int | None,
    until: int | None,
    client: str | None = None,
) -> Listing[StationStats]:
    """How many decisions each station got, in the order of station ids."""

    async def fetch(limit: int, after: Place | None) -> Sequence[StationStats]:
        return await reader.station_stats(
            since, until, station_id=station_id, client=client, limit=limit, after=after[1] if after else None
        )

    return Listing(StationStats, ("station_id",), fetch)
