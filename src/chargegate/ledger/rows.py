"""Rows of a database as records, and records as rows. Names and order of the columns follow from the records' fields.

A row of a request begins with the columns of its decision, in the order of ``DECISION``; without a decision these are
None, but for the request's id and station.
"""

import json
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec
from msgspec import UNSET
from msgspec.structs import astuple

from chargegate.ledger.anomalies import Anomaly, AnomalyType, Change, Severity
from chargegate.ledger.records import (
    MAX_HISTORY,
    AccessEntry,
    AttemptRecord,
    CallbackRecord,
    DeadLetter,
    Recorded,
    RequestRecord,
)
from chargegate.ledger.transfer import StoredRequest
from chargegate.model import NO_USABLE_ADDRESS, Decision, RequestStatus, Status

DECISION: Final = Decision.__struct_fields__
RECORDED: Final = tuple(name for name in Recorded.__struct_fields__ if name != "decision")
"""What follows a decision in a row that is a ``Recorded``."""

_SHARED: Final = frozenset({"request_id", "station_id"})
_STATUS: Final = DECISION.index("status")
_OF_REQUEST: Final = tuple(
    name for name in RequestRecord.__struct_fields__ if name not in {*_SHARED, "decision", "callback"}
)
_OF_CALLBACK: Final = tuple(
    name for name in CallbackRecord.__struct_fields__ if name not in {"delivered_at", "replays"}
)
REQUEST: Final = _OF_REQUEST + _OF_CALLBACK
"""What follows a decision in a row that is a ``RequestRecord``."""

STORED: Final = tuple(name for name in StoredRequest.__struct_fields__ if name not in {*_SHARED, "decision"})
"""What follows a decision in a row that is a ``StoredRequest``."""

_encode = msgspec.json.Encoder().encode
_REPLAYED: Final = "replayed"
_NO_ATTEMPT: Final = -1  # in the place of how long an attempt took
_BY_TIME: Final = itemgetter(0)
_decode = msgspec.json.Decoder(list[tuple[int, int | None, str | None, int]]).decode
# What 0.1.0 recorded told clients which names exist inside.
_RELEASED_ERRORS: Final = frozenset({"address_blocked", "name_not_resolved"})
_LETTERS_ERROR: Final = DeadLetter.__struct_fields__.index("last_error")

_SETS: Final = ("allowed_stations", "denied_stations")  # a JSON list in the database
_SETS_AT: Final = tuple(AccessEntry.__struct_fields__.index(name) for name in _SETS)
_BLOCKED_AT: Final = AccessEntry.__struct_fields__.index("blocked")


def columns(fields: Iterable[str], table: str = "", **others: str) -> str:
    """Fields as SQL names them: columns of ``table``, which may be an alias. ``others`` names what has another name."""
    return ", ".join(others.get(name, f"{table}.{name}" if table else name) for name in fields)


def decision_of(row: Sequence[Any]) -> Decision:
    values = list(row[: len(DECISION)])
    values[_STATUS] = Status(values[_STATUS])
    return Decision(*values)


def recorded_of(row: Sequence[Any]) -> Recorded:
    start = len(DECISION)
    return Recorded(decision_of(row), *row[start : start + len(RECORDED)])


def request_of(row: Sequence[Any]) -> RequestRecord:
    values = dict(zip(("request_id", "station_id"), row, strict=False))
    values.update(zip(REQUEST, row[len(DECISION) :], strict=True))
    callback = {name: values.pop(name) for name in _OF_CALLBACK}
    history = callback.pop("history")
    callback |= {"history": attempts_of(history), "replays": replays_of(history) or UNSET}
    callback["last_error"] = _error(callback["last_error"])
    status = values["status"] = RequestStatus(values["status"])
    processed_at = values["processed_at"]
    delivered = status in (RequestStatus.COMPLETED, RequestStatus.TIMEOUT)
    return RequestRecord(
        **values,
        decision=_decision_or_none(row),
        callback=CallbackRecord(**callback, delivered_at=processed_at if delivered else None)
        if callback["attempts"] or processed_at or callback["replays"]
        else None,
    )


def history_text(attempts: Sequence[AttemptRecord], replays: Sequence[int] = ()) -> str:
    """Attempts and the times of replays as a database keeps them: a JSON list with a list for each, in the order of
    their times, empty where there were none. A release that knows no replays reads one as an attempt."""
    if replays:
        told = [*((at, None, _REPLAYED, _NO_ATTEMPT) for at in replays), *(astuple(attempt) for attempt in attempts)]
        return _encode(sorted(told, key=_BY_TIME)).decode()
    return _encode([astuple(attempt) for attempt in attempts]).decode() if attempts else ""


def attempts_of(history: str) -> tuple[AttemptRecord, ...]:
    """The attempts that ``history_text`` wrote."""
    return tuple(AttemptRecord(*told) for told in _decode(history) if told[3] >= 0) if history else ()


def replays_of(history: str) -> tuple[int, ...]:
    """The times of replays that ``history_text`` wrote."""
    return tuple(told[0] for told in _decode(history) if told[3] == _NO_ATTEMPT) if history else ()


def replayed(history: str, at: int) -> str:
    """The history of a request that is sent again now."""
    return history_text(attempts_of(history), (*replays_of(history), at)[-MAX_HISTORY:])


def stored_of(row: Sequence[Any]) -> StoredRequest:
    return StoredRequest(row[0], row[1], _decision_or_none(row), *row[len(DECISION) :])


def dead_letter_of(row: Sequence[Any]) -> DeadLetter:
    values = list(row)
    values[_LETTERS_ERROR] = _error(values[_LETTERS_ERROR])
    return DeadLetter(*values)


def _error(recorded: str | None) -> str | None:
    return NO_USABLE_ADDRESS if recorded in _RELEASED_ERRORS else recorded


def _decision_or_none(row: Sequence[Any]) -> Decision | None:
    return None if row[_STATUS] is None else decision_of(row)


def entry_of(row: Sequence[Any]) -> AccessEntry:
    values = list(row)
    values[_BLOCKED_AT] = bool(values[_BLOCKED_AT])
    for place in _SETS_AT:
        values[place] = frozenset(json.loads(values[place])) if values[place] != "[]" else frozenset()
    return AccessEntry(*values)


def entry_values(entry: AccessEntry) -> tuple[Any, ...]:
    values = list(astuple(entry))
    for place in _SETS_AT:
        values[place] = json.dumps(sorted(values[place]))
    return tuple(values)


def anomaly_of(row: Sequence[Any]) -> Anomaly:
    id_, kind, severity, *rest = row
    return Anomaly(id_, AnomalyType(kind), Severity(severity), *rest)


def change_of(row: Sequence[Any]) -> Change:
    """The change that comes next, from an anomaly and how far it was told."""
    *anomaly, told = row
    return Change(anomaly_of(anomaly), resolved=told == 1)
