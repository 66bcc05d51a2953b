"""Audit rows as points of InfluxDB, in its line protocol.

A point is known by its measurement, its tags and its time: a second point with the same ones replaces the first. So of
several decisions about one station, with one status and in one millisecond, all but the first have a further tag, which
counts them by their request ids. It follows from the rows alone, so that writing them again changes nothing.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from chargegate.ledger.moments import Moment, moment_of
from chargegate.ledger.records import AuditRow

MEASUREMENT: Final = "authorization_decisions"

Places = Mapping[str, int]
"""By its request id, the place of each decision that is not the first of its station, status and millisecond."""

_plain_tag = re.compile("[A-Za-z0-9_.:-]+").fullmatch
_plain_field = re.compile("[A-Za-z0-9_.: -]*").fullmatch
_unusable = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_special_in_tag = re.compile("[,= ]")
_special_in_field = re.compile(r'["\\]')


def places_of(rows: Sequence[AuditRow]) -> Places:
    """``rows`` may be in any order, and should have all decisions of each of their moments."""
    moments = list(map(moment_of, rows))
    if len(set(moments)) == len(moments):
        return {}
    by_moment: dict[Moment, list[str]] = defaultdict(list)
    for moment, row in zip(moments, rows, strict=True):
        by_moment[moment].append(row.decision.request_id)
    return {
        request_id: place
        for request_ids in by_moment.values()
        for place, request_id in enumerate(sorted(request_ids))
        if place
    }


def as_points(rows: Iterable[AuditRow], places: Places) -> str:
    """A line for each row. Times are in milliseconds."""
    return "".join([_point(row, places.get(row.decision.request_id, 0)) for row in rows])


def _point(row: AuditRow, place: int) -> str:
    decision = row.decision
    station = _tag(decision.station_id.lower())
    # An empty tag is not allowed.
    tags = f",station_id={station},status={decision.status}" if station else f",status={decision.status}"
    if place:
        tags += f",uniq={place}"
    return (
        f'{MEASUREMENT}{tags} request_id="{_field(decision.request_id)}",'
        f'driver_token_hash="{_field(decision.driver_token_hash)}",reason="{_field(decision.reason)}",'
        f"processing_time_ms={decision.processing_time_ms}i {decision.timestamp}\n"
    )


def _tag(text: str) -> str:
    """The value of a tag. Control characters cannot stand in one, nor can a backslash at its end be told from one
    that escapes what follows."""
    if _plain_tag(text):
        return text
    return _special_in_tag.sub(r"\\\g<0>", _unusable.sub(" ", text).replace("\\", "/"))


def _field(text: str) -> str:
    """The text of a field, without the quotes around it."""
    if _plain_field(text):
        return text
    return _special_in_field.sub(r"\\\g<0>", _unusable.sub(" ", text))
