"""Decisions that an audit sink could mistake for one: about one station, with one status, in one millisecond."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from chargegate.ledger.records import AuditRow

MOST_BESIDE: Final = 10_000
"""At most so many other rows are read. While the clock runs, no millisecond has as many decisions."""

Moment = tuple[str, int, str]
"""A station in lower case, when (Unix ms), and the status."""


def moment_of(row: AuditRow) -> Moment:
    decision = row.decision
    return decision.station_id.lower(), decision.timestamp, decision.status.value


def moments_of(rows: Iterable[AuditRow]) -> list[tuple[str, int, str, int]]:
    """The moments of rows, each once, and how many of the rows are of it."""
    return [(*moment, count) for moment, count in Counter(map(moment_of, rows)).items()]


def beside(found: Iterable[AuditRow], rows: Iterable[AuditRow]) -> list[AuditRow]:
    """Those of the found ones that are of a moment of the rows, and that are not among the rows."""
    moments = {row.decision.request_id: moment_of(row) for row in rows}
    wanted = set(moments.values())
    return [row for row in found if row.decision.request_id not in moments and moment_of(row) in wanted]
