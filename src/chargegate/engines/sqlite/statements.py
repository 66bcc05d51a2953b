"""The tables and statements in the files beside this one. Their column lists follow from the records."""

from typing import Final

from chargegate.ledger.anomalies import Anomaly
from chargegate.ledger.counts import HOUR_MS, count_columns
from chargegate.ledger.exports import ExportedFile
from chargegate.ledger.records import AccessEntry, Claim, DeadLetter, Finished
from chargegate.ledger.rows import DECISION, RECORDED, REQUEST, STORED, columns
from chargegate.model import Status
from chargegate.queues.base import Message
from chargegate.storage.files import migrations, statements

QUEUE_TABLES: Final = {"queue": migrations(__package__, "queue")}
ALL_TABLES: Final = {**QUEUE_TABLES, "ledger": migrations(__package__, "ledger")}

_OF_REQUEST: Final = columns(DECISION, "a", request_id="r.request_id", station_id="r.station_id")
_CLAIM: Final = Claim.__struct_fields__
_COUNT_COLUMNS: Final = count_columns(lambda condition: f"({condition})", lambda column: f"sum({column})")

QUEUE: Final = statements(
    __package__, "queue.sql", message=columns(name for name in Message.__struct_fields__ if name != "traceparent")
)
ACCESS_LIST: Final = statements(__package__, "access_list.sql", entry=columns(AccessEntry.__struct_fields__))
LEDGER: Final = statements(
    __package__,
    "ledger.sql",
    decision=columns(DECISION),
    of_audit=columns(DECISION, "a"),
    of_request=_OF_REQUEST,
    recorded=columns(
        RECORDED,
        "r",
        attempts="ifnull(r.attempts, 0)",
        history="ifnull(r.history, '')",
        started_at="ifnull(r.started_at, a.timestamp)",
        finished_at="iif(r.request_id ISNULL, a.timestamp, r.processed_at)",
    ),
    request=columns(REQUEST, "r"),
    finished=columns(Finished.__struct_fields__),
    dead_letter=columns(
        DeadLetter.__struct_fields__,
        "r",
        status="a.status",
        reason="a.reason",
        failed_at="r.processed_at",
        sealed="CAST(r.sealed AS BLOB)",
    ),
    counts=", ".join(f"sum(a.status = '{status}')" for status in Status),
    claim=columns(_CLAIM),
    claim_values=", ".join("?" for _ in _CLAIM),
    excluded_claim=columns(_CLAIM, "excluded"),
)
RETENTION: Final = statements(__package__, "retention.sql")
CHAIN: Final = statements(__package__, "chain.sql")
EXPORTS: Final = statements(
    __package__,
    "exports.sql",
    decision=columns(DECISION),
    exported=columns(ExportedFile.__struct_fields__),
    values=f"({', '.join('?' for _ in ExportedFile.__struct_fields__)})",
)
SOURCE: Final = statements(
    __package__,
    "source.sql",
    of_request=columns(DECISION, "a", request_id="page.request_id", station_id="coalesce(r.station_id, a.station_id)"),
    stored=columns(STORED, "r", sequence="a.sequence", status="ifnull(r.status, '')", history="ifnull(r.history, '')"),
    claim=columns(_CLAIM),
    **_COUNT_COLUMNS,
)
ANOMALIES: Final = statements(
    __package__,
    "anomalies.sql",
    anomaly=columns(Anomaly.__struct_fields__),
    values=", ".join("?" for _ in Anomaly.__struct_fields__),
    hour=str(HOUR_MS),
)
COUNTS: Final = statements(__package__, "counts.sql", **_COUNT_COLUMNS)
COUNTING: Final = statements(__package__, "counting.sql", **_COUNT_COLUMNS)
