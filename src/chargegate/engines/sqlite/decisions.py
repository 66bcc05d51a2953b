"""Finds decisions in SQLite by several filters at once: by the index of the one that fewest decisions match.

SQLite keeps no statistics of its own, and without them it takes the index of a common status where the one of a rare
client was needed. So a look at each index, some hundred entries long, says how far back in time it reaches with them.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, Literal

from chargegate.engines.sqlite.statements import LEDGER
from chargegate.ledger.records import DecisionFilter
from chargegate.ledger.rows import decision_of
from chargegate.model import Decision, Reason

Conditions = dict[str, Sequence[Any]]
"""SQL about audit rows (``a``), with the values of each."""

_Lead = Literal["station", "client", "reason", "status", "time"]

_LOOKED_AT: Final = 200
_ROWS: Final = "authorization_audit a"
_OF_CLIENT: Final = "client_decisions c CROSS JOIN authorization_audit a USING (request_id)"
_BELONGS: Final = (
    "EXISTS (SELECT 1 FROM client_decisions WHERE client = ? AND timestamp = a.timestamp AND request_id = a.request_id)"
)


def find_decisions(
    connection: sqlite3.Connection, which: DecisionFilter, limit: int, after: tuple[int, str] | None
) -> list[Decision]:
    """The newest first. ``after`` is the time and the id of the last one before them."""
    query, values = by(lead(connection, which, after), LEDGER["decisions"], which, after)
    return [decision_of(row) for row in connection.execute(query, (*values, limit))]


def lead(connection: sqlite3.Connection, which: DecisionFilter, after: tuple[int, str] | None = None) -> _Lead:
    """The filter whose index is used."""
    given: list[_Lead] = []
    if which.station_id is not None:
        given.append("station")
    if which.client is not None:
        given.append("client")
    if which.reason:
        given.append("reason")
    if which.status is not None:
        given.append("status")
    if len(given) < 2:
        return given[0] if given else "time"
    if "station" in given and which.reason == Reason.TIMEOUT and which.client is None:
        return "station"  # these have an index of their own
    return min(given, key=lambda one: _reach(connection, one, which, after))


def _reach(connection: sqlite3.Connection, one: _Lead, which: DecisionFilter, after: tuple[int, str] | None) -> int:
    """The time of an entry some way back in an index; the fewer match, the older it is."""
    alone = {"station": "station_id", "client": "client", "reason": "reason", "status": "status"}[one]
    only = DecisionFilter(until=which.until, **{alone: getattr(which, alone)})
    query, values = by(one, LEDGER["decision_some_way_back"], only, after)
    row = connection.execute(query, (*values, _LOOKED_AT)).fetchone()
    return -1 if row is None else int(row[0])


def by(first: _Lead, query: str, which: DecisionFilter, after: tuple[int, str] | None = None) -> tuple[str, list[Any]]:
    """A query, with its values, by the index of one filter. The "+" keeps those of the others from being used."""
    place = "c" if first == "client" else "a"
    conditions: Conditions = {"c.client = ?" if first == "client" else _BELONGS: _value(which.client)}
    conditions["a.station_id = ?" if first == "station" else "+a.station_id = ?"] = _value(which.station_id)
    conditions["a.status = ?" if first == "status" else "+a.status = ?"] = _value(which.status)
    if which.reason == Reason.TIMEOUT and first in {"reason", "station"}:
        conditions[f"a.reason = '{Reason.TIMEOUT}'"] = ()  # as the index of these rows says it
    elif which.reason and first == "reason":
        conditions[f"a.reason = ? AND a.reason <> '' AND a.reason <> '{Reason.TIMEOUT}'"] = (which.reason,)
    else:
        conditions["+a.reason = ?"] = _value(which.reason)
    conditions[f"{place}.timestamp >= ?"] = _value(which.since)
    conditions[f"{place}.timestamp < ?"] = _value(which.until)
    conditions[f"({place}.timestamp, {place}.request_id) < (?, ?)"] = after or (None,)
    conditions = {text: values for text, values in conditions.items() if None not in values}
    query, values = where(query, conditions)
    return query.replace("{rows}", _OF_CLIENT if first == "client" else _ROWS).replace("{place}", place), values


def where(query: str, conditions: Conditions) -> tuple[str, list[Any]]:
    """A query with its conditions, and their values."""
    values = [value for each in conditions.values() for value in each]
    return query.replace("{conditions}", " AND ".join(["true", *conditions])), values


def _value(value: Any) -> tuple[Any]:
    return (value,)
