"""How many decisions there were, and how long they took. Times are Unix milliseconds: ``since`` is included, ``until``
is not. Reading raises ``LedgerUnavailable``."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from chargegate.ledger.counts import (
    BUCKETS_MS,
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    REASONS,
    STEP,
    DecisionCounts,
    StationCounts,
    TotalCounts,
    UnitCounts,
    quantile,
)
from chargegate.model import Moment, Status
from chargegate.operations.listing import Listing, Place

STEPS = {"minute": MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS}
"""The lengths of time that a series may be in, in ms."""

Counted = TotalCounts | StationCounts | UnitCounts

_COUNTS: Final = ("total", *Status, *REASONS)
_Rate = Annotated[
    float | None, Meta(description="The share of unknown and invalid decisions; null where there are none.")
]
_Bound = Annotated[int | None, Meta(description="It is one of the bounds of the histogram; null above the last one.")]


class Bucket(msgspec.Struct, frozen=True):
    """How many decisions took at most so long."""

    up_to_ms: int
    decisions: int


class ProcessingTime(msgspec.Struct, frozen=True):
    """How long decisions took, in ms. A percentile is the smallest bound of the histogram that so many kept to."""

    average_ms: float | None
    p50_ms: _Bound
    p95_ms: _Bound
    p99_ms: _Bound
    histogram: list[Bucket]


class Statistics(msgspec.Struct, frozen=True):
    """All decisions in a range of time."""

    total: int
    allowed: int
    not_allowed: int
    unknown: int
    invalid: int
    timeouts: int
    errors: int
    circuit_open: int
    expired_in_queue: int
    error_rate: _Rate
    processing_time: ProcessingTime


class Period(msgspec.Struct, frozen=True):
    """All decisions in one minute, hour or day."""

    start: Moment
    step: str
    total: int
    allowed: int
    not_allowed: int
    unknown: int
    invalid: int
    timeouts: int
    errors: int
    circuit_open: int
    expired_in_queue: int
    error_rate: _Rate
    average_ms: float | None


class OfStation(msgspec.Struct, frozen=True):
    """The decisions of one station in a range of time."""

    station_id: str
    total: int
    allowed: int
    not_allowed: int
    unknown: int
    invalid: int
    timeouts: int
    errors: int
    circuit_open: int
    expired_in_queue: int
    error_rate: _Rate
    average_ms: float | None


async def statistics(counts: DecisionCounts, since: int | None, until: int | None) -> Statistics:
    """All decisions in a range."""
    total = await counts.total(since, until)
    buckets = [Bucket(bound, within) for bound, within in zip(BUCKETS_MS, total.buckets, strict=True)]
    p50, p95, p99 = (quantile(total, share) for share in (0.5, 0.95, 0.99))
    return Statistics(**_counted(total), processing_time=ProcessingTime(_average(total), p50, p95, p99, buckets))


def series(counts: DecisionCounts, step: str, since: int | None, until: int | None) -> Listing[Period]:
    """The decisions in each minute, hour or day that begins in a range and had some, newest first."""

    async def fetch(limit: int, after: Place | None) -> Sequence[Period]:
        units = await counts.by_unit(STEPS[step], since, until, limit, after[0] if after else None)
        return [Period(start=one.start, step=step, **_counted(one), average_ms=_average(one)) for one in units]

    return Listing(Period, ("start", "step"), fetch)


def stations(
    counts: DecisionCounts, station_id: str | None, since: int | None, until: int | None
) -> Listing[OfStation]:
    """The decisions of each station that had some, in the order of their ids."""

    async def fetch(limit: int, after: Place | None) -> Sequence[OfStation]:
        page = await counts.by_station(
            since, until, station_id=station_id, limit=limit, after=after[1] if after else None
        )
        return [of_station(one) for one in page]

    return Listing(OfStation, ("station_id",), fetch)


def of_station(one: StationCounts) -> OfStation:
    """The counts of a station as they are shown."""
    return OfStation(station_id=one.station_id, **_counted(one), average_ms=_average(one))


def error_rate(counted: Counted) -> float | None:
    """Errors are decisions that say nothing about the driver: ``unknown`` and ``invalid``."""
    return round((counted.unknown + counted.invalid) / counted.total, 4) if counted.total else None


async def count_all(counts: DecisionCounts, on_counted: Callable[[int], None], *, again: bool) -> int:
    """Count what is not counted yet, or ``again`` all that the audit has. Returns how many decisions this process
    counted; ``on_counted`` is told so meanwhile."""
    if again:
        await counts.recount()
    counted, some = 0, STEP
    while some >= STEP:  # new ones come meanwhile, and there may be some always
        some = await counts.count_more(STEP)
        counted += some
        on_counted(counted)
    return counted


def _counted(counted: Counted) -> dict[str, Any]:
    return {name: getattr(counted, name) for name in _COUNTS} | {"error_rate": error_rate(counted)}


def _average(counted: Counted) -> float | None:
    return round(counted.processing_time_ms / counted.total, 3) if counted.total else None
