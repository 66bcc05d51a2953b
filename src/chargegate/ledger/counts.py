"""How many decisions there were, in units of time: counted once from the audit's rows, so that nobody has to scan them.

A count is kept for each unit of several lengths. Any range of time is then the sum of a few units: long ones in its
middle, shorter ones towards its ends. What a range has beyond whole units, and what is not counted yet, is read from
the rows themselves, in the same snapshot, so that an answer is exact at any moment.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple, Protocol

import msgspec
from msgspec import Meta

from chargegate.ledger.records import StationStats
from chargegate.model import Moment, Reason, Status

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
LONGEST_MS: Final = 30 * DAY_MS

UNITS: Final = (MINUTE_MS, HOUR_MS, DAY_MS, LONGEST_MS)
"""The lengths of the units that all decisions are counted in, in ms. A unit begins at a multiple of its length."""

STATION_UNITS: Final = UNITS[1:]
"""The lengths of the units that the decisions of each station are counted in."""

REASONS: Final = {
    "timeouts": Reason.TIMEOUT,
    "errors": Reason.ERROR,
    "circuit_open": Reason.CIRCUIT_OPEN,
    "expired_in_queue": Reason.EXPIRED_IN_QUEUE,
}
"""The reasons that are counted, by the names of their counts: why a decision was ``unknown``."""

BUCKETS_MS: Final = (1, 5, 10, 25, 50, 100, 200, 500, 1000, 2500, 5000, 10_000, 30_000)
"""The bounds of the histogram of processing times. A decision is counted in each bucket that it fits into."""

STEP: Final = 1000
"""About so many rows are counted in one transaction where nobody waits, and the most at once where many are left."""

ROWS_SINCE: Final = "audit_rows_since"
"""The name of the value that says, in Unix ms, from when on the audit has its rows. Absent: from the first one on."""

_Total = Annotated[int, Meta(description="All decisions.")]
_Time = Annotated[int, Meta(description="The sum of their processing times, in ms.")]


class StationCounts(msgspec.Struct, frozen=True):
    """The decisions of a station in a range of time."""

    station_id: str
    total: _Total
    allowed: int
    not_allowed: int
    unknown: int
    invalid: int
    timeouts: int
    errors: int
    circuit_open: int
    expired_in_queue: int
    processing_time_ms: _Time


class TotalCounts(msgspec.Struct, frozen=True):
    """All decisions in a range of time. ``buckets``: how many took at most as long as each of ``BUCKETS_MS``."""

    total: _Total
    allowed: int
    not_allowed: int
    unknown: int
    invalid: int
    timeouts: int
    errors: int
    circuit_open: int
    expired_in_queue: int
    processing_time_ms: _Time
    buckets: tuple[int, ...]


class UnitCounts(msgspec.Struct, frozen=True):
    """All decisions in one unit of time."""

    start: Moment
    total: _Total
    allowed: int
    not_allowed: int
    unknown: int
    invalid: int
    timeouts: int
    errors: int
    circuit_open: int
    expired_in_queue: int
    processing_time_ms: _Time


class TopStations(NamedTuple):
    """``busiest``: those with the most decisions. ``worst``: those with the largest share of ``unknown`` and
    ``invalid``."""

    busiest: Sequence[StationCounts]
    worst: Sequence[StationCounts]


class CallbackCounts(msgspec.Struct, frozen=True):
    """How the callbacks of a client ended."""

    client: str
    delivered: int
    failed: int


class DecisionCounts(Protocol):
    """Counts of decisions, which follow the audit's rows and outlive them. Times are Unix milliseconds; ``since`` is
    included, ``until`` is not. Raises ``LedgerUnavailable``.

    Where rows were dropped, a range is as exact as its shortest unit: a minute for all, an hour for a station.
    """

    @property
    def step(self) -> int:
        """So many rows are counted in one transaction where others wait for the database meanwhile."""
        ...

    async def count_more(self, limit: int) -> int:
        """Count about ``limit`` rows that are not counted yet, and note in the same transaction that they are. Several
        processes may call it; one at a time counts. Returns how many it did: 0 where nothing is left, or where another
        process is at it."""
        ...

    async def uncounted_since(self) -> int | None:
        """The time of the oldest row that is not counted yet, as far as it is quickly known; None where all are."""
        ...

    async def total(self, since: int | None, until: int | None) -> TotalCounts: ...

    async def by_unit(
        self, unit_ms: int, since: int | None, until: int | None, limit: int, before: int | None
    ) -> Sequence[UnitCounts]:
        """The units that begin in a range and had decisions, newest first, up to ``limit`` of those that begin before
        ``before``. ``unit_ms`` is one of ``UNITS``."""
        ...

    async def by_station(
        self,
        since: int | None,
        until: int | None,
        *,
        station_id: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Sequence[StationCounts]:
        """The stations that had decisions, in the order of their ids, which are in lower case: all of them, or a page
        after one of them."""
        ...

    async def top_stations(self, since: int, now: int, *, fewest: int, limit: int) -> TopStations:
        """The first ``limit`` of each order, since the start of an hour. Only stations with at least ``fewest``
        decisions and some error are among the worst; shares are compared in ten thousandths. ``now`` only says which
        way is short."""
        ...

    async def latest(self, since: int) -> Mapping[str, int]:
        """How many decisions there were of each status since a time some seconds ago: these rows are counted one by
        one."""
        ...

    async def callbacks(self, since: int) -> Sequence[CallbackCounts]:
        """How each client's callbacks ended since the start of the hour that holds ``since``."""
        ...

    async def drop_before(self, at: int, limit: int) -> int:
        """Drop at most ``limit`` counts of units that ended by then, of each kind; a station's hours go with their day,
        before that. Returns how many there were."""
        ...

    async def recount(self) -> None:
        """Take back the counts of all rows that the audit still has, so that ``count_more`` makes them again. Counts of
        rows that were dropped stay."""
        ...


async def count_all(counts: DecisionCounts) -> None:
    """Count what is there, in steps. New rows come meanwhile, so that a step that is not full is the end. Raises
    ``LedgerUnavailable``."""
    while await counts.count_more(counts.step) >= counts.step:
        pass


def stats_of(counts: Sequence[StationCounts], *, busiest_first: bool) -> list[StationStats]:
    """What ``RequestReader.station_stats`` gives."""
    stats = [StationStats(c.station_id, c.total, c.allowed, c.not_allowed, c.unknown, c.invalid) for c in counts]
    return sorted(stats, key=lambda one: (-one.total, one.station_id)) if busiest_first else stats


def top_of(stations: Sequence[StationCounts], fewest: int, limit: int) -> TopStations:
    """The orders of ``top_stations``, of stations among which all are that belong there."""

    def share(one: StationCounts) -> float:
        return round((one.unknown + one.invalid) / one.total, 4)

    busiest = sorted(stations, key=lambda one: (-one.total, one.station_id))
    wrong = [one for one in busiest if one.total >= fewest and share(one) > 0]
    return TopStations(busiest[:limit], sorted(wrong, key=share, reverse=True)[:limit])


def quantile(counts: TotalCounts, share: float) -> int | None:
    """The smallest bound in ms that at least this share of the decisions kept to; None where there is none."""
    wanted = share * counts.total
    for bound, within in zip(BUCKETS_MS, counts.buckets, strict=True):
        if counts.total and within >= wanted:
            return bound
    return None


_BUCKETS: Final = tuple(f"le_{bound}" for bound in BUCKETS_MS)
_COMMON: Final = (*REASONS, "time_ms")
OF_STATION: Final = ("decisions", *Status, *_COMMON)
"""The columns of the counts of a station in a unit of time."""

OF_ALL: Final = ("decisions", *_COMMON, *_BUCKETS)
"""The columns of the counts of a status in a unit of time."""


def count_columns(flag: Callable[[str], str], total: Callable[[str], str]) -> dict[str, str]:
    """What statements are made of: lists of columns, which follow from the records. ``flag`` makes a number of a
    condition, ``total`` sums a column, in a database's own SQL."""
    one = {
        "decisions": "1",
        "time_ms": "processing_time_ms",
        **{status: flag(f"status = '{status}'") for status in Status},
        **{name: flag(f"reason = '{reason}'") for name, reason in REASONS.items()},
        **{name: flag(f"processing_time_ms <= {bound}") for name, bound in zip(_BUCKETS, BUCKETS_MS, strict=True)},
    }

    def each(names: Iterable[str], form: Callable[[str], str]) -> str:
        return ", ".join(form(name) for name in names)

    def summed(names: Iterable[str], shape: Callable[[str], str]) -> str:
        return each(names, lambda name: f"{total(shape(name))} AS {name}")

    def kept(name: str) -> str:
        return name

    by_status = [total(f"CASE WHEN status = '{status}' THEN decisions ELSE 0 END") for status in Status]
    return {
        "rows_since": ROWS_SINCE,
        "hour": str(HOUR_MS),
        "minute": str(MINUTE_MS),
        "day": str(DAY_MS),
        "longest": str(LONGEST_MS),
        "of_station": each(OF_STATION, kept),
        "of_all": each(OF_ALL, kept),
        "row_of_station": each(OF_STATION, lambda name: f"{one[name]} AS {name}"),
        "row_of_all": each(OF_ALL, lambda name: f"{one[name]} AS {name}"),
        "rows_of_station": summed(OF_STATION, one.__getitem__),
        "rows_of_all": summed(OF_ALL, one.__getitem__),
        "sums_of_station": summed(OF_STATION, kept),
        "sums_of_all": summed(OF_ALL, kept),
        "signed_of_station": each(OF_STATION, lambda name: f"s.sign * c.{name} AS {name}"),
        "gone_of_station": each(OF_STATION, lambda name: f"c.{name} - coalesce(r.{name}, 0) AS {name}"),
        "gone_of_all": each(OF_ALL, lambda name: f"c.{name} - coalesce(r.{name}, 0) AS {name}"),
        "add_of_station": each(OF_STATION, lambda name: f"{name} = held.{name} + excluded.{name}"),
        "add_of_all": each(OF_ALL, lambda name: f"{name} = held.{name} + excluded.{name}"),
        "by_status": ", ".join([total("decisions"), *by_status, *map(total, _COMMON)]),
        "buckets": ", ".join(map(total, _BUCKETS)),
    }


_PLAIN: Final = len(TotalCounts.__struct_fields__) - 1


def total_of(row: Sequence[Any]) -> TotalCounts:
    """A row of ``by_status`` and ``buckets``; its values are None where nothing was counted."""
    values = [value or 0 for value in row] or [0] * (_PLAIN + len(BUCKETS_MS))
    plain = dict(zip(TotalCounts.__struct_fields__, values[:_PLAIN], strict=False))
    return TotalCounts(**plain, buckets=tuple(values[_PLAIN:]))
