"""Audit rows as points of InfluxDB, in its line protocol.

A point is known by its measurement, its tags and its time: a second point with the same ones replaces the first. So the
time says more than the millisecond of the decision. Its last six digits, the nanoseconds within that millisecond, come
from the row's place in the ledger, which two rows of one writer never share. They are the same whenever a row is
written, so that writing it again changes nothing.
"""

import re
import zlib
from functools import lru_cache
from typing import Final

from chargegate.ledger.records import AuditRow

MEASUREMENT: Final = "authorization_decisions"
_NANOSECONDS: Final = 1_000_000  # in a millisecond
_ONLY_WRITER: Final = "embedded"
"""What PostgreSQL calls the writer of rows that were moved there from the embedded database."""

_plain_tag = re.compile("[A-Za-z0-9_.:-]+").fullmatch
_plain_field = re.compile("[A-Za-z0-9_.: -]*").fullmatch
_unusable = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_special_in_tag = re.compile("[,= ]")
_special_in_field = re.compile(r'["\\]')


def as_points(rows: list[AuditRow]) -> str:
    """A line for each row. Times are in nanoseconds."""
    return "".join([_point(row) for row in rows])


def point_time(row: AuditRow) -> int:
    """Nanoseconds since 1970. Divided by a million they are the decision's time."""
    return row.decision.timestamp * _NANOSECONDS + (row.sequence + _offset(row.writer)) % _NANOSECONDS


@lru_cache(maxsize=1024)
def _offset(writer: str) -> int:
    """Where a writer begins to count, so that writers who have decided equally much differ."""
    return zlib.crc32((writer or _ONLY_WRITER).encode())


def _point(row: AuditRow) -> str:
    decision = row.decision
    station = _tag(decision.station_id.lower())
    # An empty tag is not allowed.
    tags = f",station_id={station},status={decision.status}" if station else f",status={decision.status}"
    return (
        f'{MEASUREMENT}{tags} request_id="{_field(decision.request_id)}",'
        f'driver_token_hash="{_field(decision.driver_token_hash)}",reason="{_field(decision.reason)}",'
        f"processing_time_ms={decision.processing_time_ms}i {point_time(row)}\n"
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
