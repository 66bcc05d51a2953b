"""The statements in the files beside this one, and rows in the form that they take."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from chargegate.ledger.anomalies import Anomaly
from chargegate.ledger.counts import HOUR_MS, OF_ALL, OF_STATION, count_columns
from chargegate.ledger.exports import ExportedFile
from chargegate.ledger.records import CLAIM_MS, AccessEntry, Claim, DeadLetter
from chargegate.ledger.rows import DECISION, RECORDED, REQUEST, STORED, columns
from chargegate.model import Status
from chargegate.storage.files import migrations, statements

_IN_REQUESTS: Final = {"status": "decision", "timestamp": "decided_at"}
"""What parts of a decision are called in charging_requests."""

_DECIDED: Final = tuple(_IN_REQUESTS.get(field, field) for field in DECISION)
_STORED: Final = (*_DECIDED, *(field for field in STORED if field != "sequence"))
_ENTRY: Final = AccessEntry.__struct_fields__
_COUNT_COLUMNS: Final = count_columns(lambda condition: f"({condition})::int", lambda column: f"sum({column})::bigint")

LEDGER: Final = statements(
    __package__,
    "ledger.sql",
    decision=columns(DECISION),
    of_audit=columns(DECISION, "a"),
    decided=columns(_DECIDED),
    excluded=columns(_DECIDED, "excluded"),
    recorded=columns(RECORDED, finished_at="processed_at"),
    request=columns(REQUEST),
    counts_by_status=", ".join(f"count(*) FILTER (WHERE status = '{status}')" for status in Status),
    dead_letter=columns(DeadLetter.__struct_fields__, status="decision", failed_at="processed_at"),
    claim=columns(Claim.__struct_fields__),
    claim_ms=str(CLAIM_MS),
)
ACCESS_LIST: Final = statements(
    __package__, "access_list.sql", entry=columns(_ENTRY), excluded=columns(_ENTRY, "excluded")
)
RETENTION: Final = statements(__package__, "retention.sql")
CHAIN: Final = statements(__package__, "chain.sql")
EXPORTS: Final = statements(
    __package__,
    "exports.sql",
    decision=columns(DECISION),
    exported=columns(ExportedFile.__struct_fields__),
    values=", ".join(f"${n}" for n in range(1, len(ExportedFile.__struct_fields__) + 1)),
)
TARGET: Final = statements(
    __package__,
    "target.sql",
    decision=columns(DECISION),
    decided=columns(_DECIDED),
    stored=columns(_STORED),
    excluded=columns(_STORED, "excluded"),
    arrays_of_all=", ".join(f"${n}::bigint[]" for n in range(3, len(OF_ALL) + 3)),
    units_of_all=f"${len(OF_ALL) + 3}",
    arrays_of_station=", ".join(f"${n}::bigint[]" for n in range(3, len(OF_STATION) + 3)),
    units_of_station=f"${len(OF_STATION) + 3}",
    **_COUNT_COLUMNS,
)
ANOMALIES: Final = statements(
    __package__,
    "anomalies.sql",
    anomaly=columns(Anomaly.__struct_fields__),
    values=", ".join(f"${n}" for n in range(1, len(Anomaly.__struct_fields__) + 1)),
    hour=str(HOUR_MS),
)
_UNCOUNTED: Final = (
    "SELECT a.* FROM uncounted_decisions u CROSS JOIN LATERAL (SELECT * FROM authorization_audit a"
    " WHERE a.writer = u.writer AND a.sequence BETWEEN u.first AND u.last"
    " AND a.timestamp BETWEEN greatest(u.earliest, u.since) AND u.latest AND a.timestamp >= {since} OFFSET 0) a"
)


def _uncounted(since: str) -> str:
    """The rows that are not counted yet. ``since`` is a parameter: no month before it is planned for."""
    return _UNCOUNTED.replace("{since}", since)


COUNTS: Final = statements(
    __package__,
    "counts.sql",
    uncounted=_uncounted("0"),
    **{f"uncounted_since_{number}": _uncounted(f"${number}::bigint") for number in (2, 5, 6)},
    **_COUNT_COLUMNS,
)
LEDGER_TABLES: Final = {"ledger": migrations(__package__, "ledger")}


def queue_statements(table: str) -> dict[str, str]:
    return statements(__package__, "queue.sql", table=table)


def queue_tables(table: str) -> dict[str, tuple[str, ...]]:
    return {f"queue {table}": tuple(script.replace("{table}", table) for script in migrations(__package__, "queue"))}


def arrays(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Rows as the statements take them: one array a column. PostgreSQL keeps no NUL in a text, and what a broker or an
    authorizer says may hold one."""
    return [
        [value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in column]
        for column in zip(*rows, strict=True)
    ]
