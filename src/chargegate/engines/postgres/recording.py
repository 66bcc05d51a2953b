"""Records decisions in PostgreSQL: one for each request, with its audit row in the same statement.

*One decision.* A request's row in ``charging_requests`` carries its decision, and its key is the request id: whoever
puts the decision there first has decided. A request that was only accepted has a row without one.
``authorization_audit`` cannot keep request ids unique itself: it is partitioned by month, so that retention is a
dropped partition, and a unique key of a partitioned table must hold the month too. Nothing is looked up there that is
needed to go on: a dropped month takes no decision away.

*Writers.* A process that feeds an audit sink has a writer's name, its own alone and the same after a restart. It
numbers its audit rows 1, 2, 3, … in the order of their commits. A commit whose answer was lost may still be under way
when the next one begins, because the server's disk is slow or its network was cut, and a statement that was given up
may even arrive later. So each takes the writer's next turn: it waits for the end of the one before, and one whose turn
was taken writes nothing. Whoever does not know the newest number takes a turn before asking. ``audit_after`` and the
sinks' positions are the writer's, so that each process's CSV file follows the decisions that this process made, and no
two write one file.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from chargegate.engines.postgres.alone import OwnSession
from chargegate.engines.postgres.connection import Connection
from chargegate.engines.postgres.months import Months
from chargegate.engines.postgres.statements import LEDGER, arrays
from chargegate.engines.postgres.store import PostgresStore
from chargegate.ledger.records import AuditRow, Recorded
from chargegate.ledger.rows import decision_of, recorded_of
from chargegate.model import Decision
from chargegate.observe import log
from chargegate.storage.group_commit import GroupCommit

OnAudit = Callable[[list[AuditRow]], None]


class _Entry(msgspec.Struct, frozen=True, gc=False):
    decision: Decision
    created_at: int
    client: str


class _Newest(msgspec.Struct, frozen=True, gc=False):
    """A writer's last turn, and its newest number after that."""

    turn: int
    number: int


class _Written(msgspec.Struct, frozen=True, gc=False):
    """What a transaction wrote."""

    answers: list[Recorded]
    audit_rows: list[AuditRow]
    newest: _Newest


class Recorder:
    """The decisions of one writer."""

    def __init__(self, store: PostgresStore, writer: str, on_audit: OnAudit | None, months: Months) -> None:
        """``on_audit`` is told, in another thread, of this writer's committed audit rows, before anyone who waits for
        them."""
        self._store = store
        self._writer = writer
        self._on_audit = on_audit
        self._months = months
        self._newest: _Newest | None = None  # None where the database must be asked
        self._reported: int | None = None  # the number up to which on_audit was told; None before the first commit
        self._commits: GroupCommit[_Entry, Recorded] = GroupCommit(self._commit)

    async def record(self, decision: Decision, created_at: int, client: str) -> Recorded:
        return await self._commits.submit(_Entry(decision, created_at, client))

    def record_then(
        self, decision: Decision, created_at: int, client: str, done: Callable[[Recorded | Exception], None]
    ) -> None:
        self._commits.notify(_Entry(decision, created_at, client), done)

    async def _commit(self, entries: list[_Entry]) -> list[Recorded]:
        first: dict[str, _Entry] = {}
        for entry in sorted(entries, key=lambda entry: entry.decision.request_id):  # all lock rows in one order
            first.setdefault(entry.decision.request_id, entry)
        written = await self._store.transaction(
            partial(self._write, entries, first), alone=partial(self._write_alone, entries, first)
        )
        self._newest, self._reported = written.newest, written.newest.number
        if written.audit_rows and self._on_audit is not None:
            try:
                await asyncio.to_thread(self._on_audit, written.audit_rows)
            except Exception:  # noqa: BLE001 - the decisions are committed, and a sink catches up by itself
                log.exception("after a commit")
        return written.answers

    async def _write_alone(
        self, entries: list[_Entry], first: dict[str, _Entry], session: OwnSession
    ) -> _Written | None:
        """None where one statement is not enough, or was not."""
        if self._newest is None or not self._months.know(entry.decision.timestamp for entry in first.values()):
            return None
        newest, self._newest = self._newest, None  # until it is known that this commit arrived
        numbers = dict(await session.run(LEDGER["record"], *self._values(first, newest)))
        if len(numbers) < len(first):
            return None
        return self._written(entries, {request_id: _new(entry) for request_id, entry in first.items()}, numbers, newest)

    async def _write(
        self, entries: list[_Entry], first: dict[str, _Entry], connection: Connection, _repeated: bool
    ) -> _Written:
        newest, lost = await self._numbering(connection)
        await self._months.provide(connection, [entry.decision.timestamp for entry in first.values()])
        numbers = dict(await connection.fetch(LEDGER["record"], *self._values(first, newest)))
        held = {request_id: _new(first[request_id]) for request_id in numbers}
        if others := [request_id for request_id in first if request_id not in held]:
            held |= {row[0]: recorded_of(row) for row in await connection.fetch(LEDGER["recorded"], others)}
        return self._written(entries, held, numbers, newest, lost)

    def _values(self, first: dict[str, _Entry], newest: _Newest) -> list[Any]:
        rows = ((*msgspec.structs.astuple(entry.decision), entry.created_at, entry.client) for entry in first.values())
        return [*arrays(rows), self._writer, newest.number, newest.turn]

    def _written(
        self,
        entries: list[_Entry],
        held: dict[str, Recorded],
        numbers: dict[str, int],
        newest: _Newest,
        lost: Sequence[AuditRow] = (),
    ) -> _Written:
        writer = self._writer
        new = [AuditRow(number, held[request_id].decision, writer) for request_id, number in numbers.items()]
        return _Written(
            [held[entry.decision.request_id] for entry in entries],
            [*lost, *sorted(new, key=lambda row: row.sequence)],
            _Newest(newest.turn + 1, newest.number + len(numbers)),
        )

    async def _numbering(self, connection: Connection) -> tuple[_Newest, list[AuditRow]]:
        """This writer's newest number, and the audit rows that an earlier commit wrote although its answer was lost."""
        newest, self._newest = self._newest, None  # until it is known that this commit arrived
        if newest is not None:
            return newest, []
        self._months.forget()
        turn = int(await connection.fetchval(LEDGER["turn"], self._writer))
        stored = int(await connection.fetchval(LEDGER["last_sequence"], self._writer))
        if self._reported is None:
            self._reported = stored
        reported = self._reported
        if stored <= reported:  # less where the database was emptied
            return _Newest(turn, reported), []
        lost = await connection.fetch(LEDGER["audit_after"], self._writer, reported, stored - reported)
        return _Newest(turn, stored), [audit_row_of(row, self._writer) for row in lost]


def _new(entry: _Entry) -> Recorded:
    return Recorded(entry.decision, 0, entry.decision.timestamp, None)


def audit_row_of(row: Sequence[Any], writer: str) -> AuditRow:
    *decision, sequence = row
    return AuditRow(sequence, decision_of(decision), writer)
