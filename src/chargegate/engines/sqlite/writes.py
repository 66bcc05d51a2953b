"""What the ledger in SQLite writes: each function takes all items of one kind in a batch, in one transaction."""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import astuple

from chargegate.engines.sqlite.batches import Operation
from chargegate.engines.sqlite.chain import EMBEDDED_WRITER
from chargegate.engines.sqlite.queries import many, run_many
from chargegate.engines.sqlite.statements import EXPORTS, LEDGER
from chargegate.ledger.accepted import Accepted
from chargegate.ledger.counts import ROWS_SINCE
from chargegate.ledger.exports import ExportedFile, positions_of
from chargegate.ledger.records import CLAIM_MS, Claim, Finished, Recorded
from chargegate.ledger.rows import recorded_of
from chargegate.model import Decision

_OLD_CLAIMS: Final = 200
_ENDLESS: Final = 2**63 - 1


class Entry(msgspec.Struct, frozen=True, gc=False):
    decision: Decision
    created_at: int
    client: str


class Written(msgspec.Struct, frozen=True, gc=False):
    """``sequence`` is 0 where the request had its decision already."""

    recorded: Recorded
    sequence: int


def one_recorded(connection: sqlite3.Connection, request_id: str) -> Recorded | None:
    row = connection.execute(LEDGER["recorded"], (request_id,)).fetchone()
    return recorded_of(row) if row else None


def record(connection: sqlite3.Connection, entries: list[Entry]) -> list[Written]:
    inserted: dict[str, int] = {}
    for cursor, _ in many(connection, LEDGER["insert_audit"], [astuple(entry.decision) for entry in entries]):
        inserted.update(cursor.fetchall())
    new = [entry for entry in entries if entry.decision.request_id in inserted]
    run_many(connection, LEDGER["insert_requests"], [request_row(entry) for entry in new])
    written = []
    for entry in entries:
        decision = entry.decision
        sequence = inserted.pop(decision.request_id, 0)
        recorded = (
            Recorded(decision, 0, decision.timestamp, None)
            if sequence
            else one_recorded(connection, decision.request_id)
        )
        if recorded is None:
            raise sqlite3.DatabaseError("an audit row without its request")
        written.append(Written(recorded, sequence))
    return written


def request_row(entry: Entry) -> tuple[Any, ...]:
    d = entry.decision
    return d.request_id, d.station_id, d.driver_token_hash, entry.created_at, d.timestamp, "PROCESSING", entry.client


def _accept(connection: sqlite3.Connection, batches: list[list[Accepted]]) -> None:
    rows = [
        (request_id, station_id, "", at, at, "QUEUED", client)
        for batch in batches
        for request_id, station_id, at, client in batch
    ]
    run_many(connection, LEDGER["accept"], rows)


def finish(connection: sqlite3.Connection, items: list[Finished]) -> None:
    run_many(connection, LEDGER["finish"], [astuple(item) for item in items])


def _each(statement: str) -> Operation:
    """An operation that runs one statement for each item, because it is needed seldom."""

    def apply(connection: sqlite3.Connection, items: list[Any]) -> None:
        connection.executemany(statement, items)

    return Operation(apply)


def _claim(connection: sqlite3.Connection, items: list[tuple[str, Claim]]) -> list[Claim]:
    holding = []
    for digest, claim in items:
        expired = claim.created_at - CLAIM_MS
        connection.execute(LEDGER["drop_old_claims"], (expired, _OLD_CLAIMS))
        connection.execute(LEDGER["put_claim"], (digest, *astuple(claim), expired))
        holding.append(Claim(*connection.execute(LEDGER["claim"], (digest,)).fetchone()))
    return holding


def _replace(connection: sqlite3.Connection, items: list[tuple[str, Claim, Claim]]) -> list[bool]:
    return [
        connection.execute(LEDGER["replace"], (*astuple(claim), digest, *astuple(held))).rowcount > 0
        for digest, held, claim in items
    ]


def _put_value_if_absent(connection: sqlite3.Connection, items: list[tuple[str, str]]) -> list[str]:
    connection.executemany(LEDGER["put_value_if_absent"], items)
    return [connection.execute(LEDGER["value"], (name,)).fetchone()[0] for name, _ in items]


def _discard(connection: sqlite3.Connection, items: list[Sequence[str]]) -> list[int]:
    return [
        connection.executemany(LEDGER["discard"], [(request_id,) for request_id in request_ids]).rowcount
        for request_ids in items
    ]


def _fail_lost(connection: sqlite3.Connection, items: list[tuple[int, str]]) -> list[int]:
    return [connection.execute(LEDGER["fail_lost"], item).rowcount for item in items]


class DroppedRows(msgspec.Struct, frozen=True):
    """How many audit rows were dropped, and the last one that was looked at, None at the end."""

    rows: int
    last: tuple[int, int] | None


class RowLimits(msgspec.Struct, frozen=True):
    """Which audit rows may be dropped: those decided before a time, with ``exported`` only those in a file, and of
    those that have a link only the ones up to the sequence ``signed``."""

    before: int
    exported: bool
    signed: int = 0


def _limits(connection: sqlite3.Connection, limits: RowLimits) -> tuple[int, int]:
    """A time and a sequence: older rows up to the sequence may be dropped."""
    if not limits.exported:
        return limits.before, _ENDLESS
    row = connection.execute(EXPORTS["newest"], (None,)).fetchone()
    if row is None:
        return 0, 0
    newest = ExportedFile(*row)
    return min(limits.before, newest.until), positions_of(newest.positions).get(EMBEDDED_WRITER, 0)


def count_old_rows(connection: sqlite3.Connection, limits: RowLimits) -> int:
    rows: int = connection.execute(LEDGER["count_old"], _limits(connection, limits)).fetchone()[0]
    return rows


class RowsAfter(NamedTuple):
    """The rows that are next: at most so many after one."""

    limits: RowLimits
    after: tuple[int, int]
    most: int


def _drop_rows(connection: sqlite3.Connection, items: list[RowsAfter]) -> list[DroppedRows]:
    return [_drop_some_rows(connection, *item) for item in items]


def _drop_some_rows(
    connection: sqlite3.Connection, limits: RowLimits, after: tuple[int, int], most: int
) -> DroppedRows:
    limit, newest = _limits(connection, limits)
    rows = connection.execute(LEDGER["old_rows"], (limits.signed, *after, limit, newest, most)).fetchall()
    ended = [row for row in rows if row[3]]
    run_many(connection, LEDGER["drop_requests"], [(row[2],) for row in ended])
    run_many(connection, LEDGER["drop_rows"], [(row[1],) for row in ended])
    if ended:
        earlier = connection.execute(LEDGER["value"], (ROWS_SINCE,)).fetchone()
        connection.execute(LEDGER["put_value"], (ROWS_SINCE, str(max(limit, int(earlier[0]) if earlier else 0))))
    return DroppedRows(len(ended), rows[-1][:2] if len(rows) == most else None)


ACCEPT: Final = Operation(_accept)
FINISH: Final = Operation(finish)
RESTART: Final = _each(LEDGER["restart"])
ATTEMPTED: Final = _each(LEDGER["attempted"])
SAVE_SINK_POSITION: Final = _each(LEDGER["save_sink_position"])
CLAIM: Final = Operation(_claim)
RELEASE: Final = _each(LEDGER["release"])
REPLACE: Final = Operation(_replace)
PUT_VALUE_IF_ABSENT: Final = Operation(_put_value_if_absent)
PUT_VALUE: Final = _each(LEDGER["put_value"])
DROP_VALUE: Final = _each(LEDGER["drop_value"])
DISCARD: Final = Operation(_discard)
FAIL_LOST: Final = Operation(_fail_lost)
DROP_ROWS: Final = Operation(_drop_rows)
