"""Ranges of time as sums of the units that decisions are counted in. Times are Unix milliseconds."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from chargegate.ledger.counts import DAY_MS, HOUR_MS, LONGEST_MS, STATION_UNITS

_FOREVER: Final = LONGEST_MS * 3_000_000


class Parts(NamedTuple):
    """A range of time as what its count is the sum of. ``spans``: units of one length from a start up to an end.
    ``edges``: times whose rows are counted one by one. ``counted_from`` and ``counted_to`` bound the spans: of the rows
    in there, those that are not counted yet are added."""

    spans: list[tuple[int, int, int]]
    edges: list[tuple[int, int]]
    counted_from: int
    counted_to: int


def parts_of(since: int | None, until: int | None, units: Sequence[int]) -> Parts:
    """Take a range apart into as few units as possible."""
    start = 0 if since is None else max(since, 0)
    end = _FOREVER if until is None else min(max(until, 0), _FOREVER)
    low, high = _up(start, units[0]), _down(end, units[0])
    if low >= high:
        return Parts([], [(start, end)] if start < end else [], 0, 0)
    edges = [(first, last) for first, last in ((start, low), (high, end)) if first < last]
    spans: list[tuple[int, int, int]] = []
    counted = low, high
    for unit, longer in zip(units, [*units[1:], None], strict=True):
        inner = (low, high) if longer is None else (_up(low, longer), _down(high, longer))
        if longer is None or inner[0] >= inner[1]:
            spans.append((unit, low, high))
            break
        spans += [(unit, first, last) for first, last in ((low, inner[0]), (inner[1], high)) if first < last]
        low, high = inner
    return Parts(spans, edges, *counted)


class Span(NamedTuple):
    """Units of one length from a start up to an end, which are added (``sign`` 1) or taken away (-1)."""

    unit: int
    low: int
    high: int
    sign: int


def spans_since(hour: int, now: int) -> list[Span]:
    """What happened since the start of an hour, of the stations' units, as few as possible: a day less the hours before
    are often fewer than the hours after."""
    day = day_of(hour)
    before, after = hour - day, min(day + DAY_MS, _up(now, HOUR_MS)) - hour
    taken_away = [Span(HOUR_MS, day, hour, -1)] if 0 < before < after - HOUR_MS else []
    spans = parts_of(day if taken_away else hour, None, STATION_UNITS).spans
    return taken_away + [Span(*span, 1) for span in spans]


def whole_days(rows_since: int) -> int:
    """From when on counts can be made again, where the audit has its rows from ``rows_since`` on (Unix ms): a day of
    which some rows are gone keeps its counts."""
    return _up(rows_since, DAY_MS)


def day_of(at: int) -> int:
    """The start of the day (UTC) that holds a time."""
    return _down(at, DAY_MS)


def _up(at: int, unit: int) -> int:
    return -(-at // unit) * unit


def _down(at: int, unit: int) -> int:
    return at // unit * unit
