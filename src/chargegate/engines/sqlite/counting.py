"""Counts decisions in SQLite, inside the database, some rows at a time, in the thread that writes.

A row is counted in its station's hour. Once an hour is over, it is added to the longer units, some stations at a time.
So a longer unit is the sum of its hours up to one of them, and in that hour of the stations up to one of them, which
``stations_added_up`` names; readers add the rest. A row that comes late, of what was added up already, is counted in
all units at once.
"""

import json
import sqlite3
from typing import Final, NamedTuple

from chargegate.engines.sqlite.batches import Operation
from chargegate.engines.sqlite.statements import COUNTING, COUNTS
from chargegate.ledger.counts import HOUR_MS, LONGEST_MS, MINUTE_MS, STATION_UNITS, UNITS
from chargegate.ledger.spans import day_of, whole_days
from chargegate.model import now_ms

_ENDLESS: Final = 2**63 - 1
_OVER_MS: Final = 5 * MINUTE_MS  # after its end an hour is added up: hardly a row of it comes later
_UNITS: Final = json.dumps(UNITS)
_LONGER_UNITS: Final = json.dumps(STATION_UNITS[1:])


class _Place(NamedTuple):
    """An hour and a station: the hours before, and in that hour the stations up to that one."""

    start: int
    station_id: str


def _count(connection: sqlite3.Connection, items: list[int]) -> list[int]:
    counted = []
    for limit in items:
        added_up = _Place(*connection.execute(COUNTING["added_up"]).fetchone())
        counted.append(_count_some(connection, limit, added_up))
        _add_up(connection, limit, added_up)
    return counted


def _count_some(connection: sqlite3.Connection, limit: int, added_up: _Place) -> int:
    counted = 0
    while counted < limit:
        first, last, since = connection.execute(COUNTING["uncounted"]).fetchone()
        end, rows, earliest = connection.execute(COUNTING["page_end"], (first, last, limit - counted)).fetchone()
        if rows:
            counted += rows
            page = (first, end, since)
            connection.execute(COUNTING["count_stations"], page)
            if earliest < added_up.start + HOUR_MS:
                connection.execute(COUNTING["count_late"], (*page, _LONGER_UNITS, *added_up))
            connection.execute(COUNTING["count_all"], (*page, _UNITS))
            connection.execute(COUNTING["know_stations"], page)
            connection.execute(COUNTING["counted_to"], (end + 1, last))
        if last == _ENDLESS:
            break
        if not rows:
            connection.execute(COUNTING["counted"], (last,))
    return counted


def _add_up(connection: sqlite3.Connection, limit: int, after: _Place) -> None:
    """Add some stations' hours to the longer units. The newest hour stays, also if it is old, while old rows are
    counted."""
    now = now_ms()
    newest = connection.execute(COUNTING["newest_hour"], (now,)).fetchone()[0] or 0
    before = min(newest, (now - _OVER_MS) // HOUR_MS * HOUR_MS)
    last = connection.execute(COUNTING["last_to_add"], (*after, before, limit)).fetchone()
    if last is not None:
        connection.execute(COUNTING["add_up"], (_LONGER_UNITS, *after, *last))
        connection.execute(COUNTING["added_up_to"], last)


def _drop(connection: sqlite3.Connection, items: list[tuple[int, int]]) -> list[int]:
    return [_drop_some(connection, at, limit) for at, limit in items]


def _drop_some(connection: sqlite3.Connection, at: int, limit: int) -> int:
    dropped = connection.execute(COUNTING["drop_callbacks"], (HOUR_MS, at, limit)).rowcount
    for statement, units, by in (("drop_all", UNITS, at), ("drop_stations", STATION_UNITS, day_of(at))):
        left = limit
        for unit in units:
            gone = connection.execute(COUNTING[statement], (unit, by, left)).rowcount
            dropped, left = dropped + gone, left - gone
    return dropped


def _recount(connection: sqlite3.Connection, _items: list[None]) -> None:
    row = connection.execute(COUNTS["rows_since"]).fetchone()
    since = whole_days(int(row[0]) if row else 0)
    added_up = _Place(*connection.execute(COUNTING["added_up"]).fetchone())
    while _count_some(connection, _ENDLESS >> 1, added_up):
        pass
    for statement in ("take_back", "take_back_stations"):
        connection.execute(COUNTING[statement], (since,))
    for statement in ("restore_all", "restore_stations"):
        connection.execute(COUNTING[statement], (LONGEST_MS, since))
    for statement in ("not_added_up", "all_uncounted"):
        connection.execute(COUNTING[statement], (since,))


COUNT: Final = Operation(_count)
DROP: Final = Operation(_drop)
RECOUNT: Final = Operation(_recount)
