"""The statements in the files beside this one, and rows in the form that they take."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from chargegate.ledger.records import CLAIM_MS, AccessEntry, Claim, DeadLetter
from chargegate.ledger.transfer import StoredRequest
from chargegate.model import Decision, Status
from chargegate.storage.files import migrations, statements

_IN_REQUESTS: Final = {"status": "decision", "timestamp": "decided_at"}
_OF_DEAD_LETTERS: Final = {"status": "decision", "failed_at": "processed_at"}

_DECISION: Final = Decision.__struct_fields__
_DECIDED: Final = tuple(_IN_REQUESTS.get(field, field) for field in _DECISION)
_STORED: Final = (*_DECIDED, *StoredRequest.__struct_fields__[3:-1])
_ENTRY: Final = AccessEntry.__struct_fields__


def _listed(names: Iterable[str], prefix: str = "") -> str:
    return ", ".join(prefix + name for name in names)


LEDGER: Final = statements(
    __package__,
    "ledger.sql",
    decision=_listed(_DECISION),
    decided=_listed(_DECIDED),
    excluded=_listed(_DECIDED, "excluded."),
    counts_by_status=_listed(f"count(*) FILTER (WHERE status = '{status}')" for status in Status),
    dead_letter=_listed(_OF_DEAD_LETTERS.get(field, field) for field in DeadLetter.__struct_fields__),
    claim=_listed(Claim.__struct_fields__),
    claim_ms=str(CLAIM_MS),
)
ACCESS_LIST: Final = statements(
    __package__, "access_list.sql", entry=_listed(_ENTRY), excluded=_listed(_ENTRY, "excluded.")
)
TARGET: Final = statements(
    __package__,
    "target.sql",
    decision=_listed(_DECISION),
    decided=_listed(_DECIDED),
    stored=_listed(_STORED),
    excluded=_listed(_STORED, "excluded."),
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
