"""The ledger in PostgreSQL, for any number of processes.

*One decision.* A request's row in ``charging_requests`` carries its decision, and its key is the request id: whoever
puts the decision there first has decided. A request that was only accepted has a row without one. The audit row is
inserted by the same statement. ``authorization_audit`` cannot keep request ids unique itself: it is partitioned by
month, so that retention is a dropped partition, and a unique key of a partitioned table must hold the month too.
Nothing is looked up there that is needed to go on: a dropped month takes no decision away.

*Writers.* A process that feeds an audit sink has a writer's name, its own alone and the same after a restart. It
numbers its audit rows 1, 2, 3, … in the order of their commits. ``audit_after`` and the sinks' positions are the
writer's, so that each process's CSV file follows the decisions that this process made, and no two write one file.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from chargegate.engines.postgres import statements as sql
from chargegate.engines.postgres.connection import Connection, PostgresStore, PostgresUnavailable
from chargegate.engines.postgres.group_commit import Gatherer
from chargegate.engines.postgres.months import Months
from chargegate.ledger.accepted import Accepted, AcceptedRequests
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.records import (
    CLAIM_MS,
    AuditRow,
    Claim,
    DeadLetter,
    DecisionFilter,
    Finished,
    Recorded,
    RequestRecord,
    StationStats,
)
from chargegate.ledger.rows import decision_of, recorded_of, request_of
from chargegate.model import Decision

T = TypeVar("T")

_PURGE: Final = 200
_LIST_S: Final = 10.0
_WHOLE_S: Final = 60.0  # it looks at every request


class _Entry(msgspec.Struct, frozen=True):
    decision: Decision
    created_at: int


class PostgresLedger:
    """Keeps the promises of ``Ledger``."""

    def __init__(
        self,
        store: PostgresStore,
        writer: str = "",
        on_audit: Callable[[list[AuditRow]], None] | None = None,
    ) -> None:
        """``on_audit`` is told, in another thread, of this writer's committed audit rows, before anyone who waits for
        them."""
        self._store = store
        self._writer = writer
        self._on_audit = on_audit
        self._last: int | None = None  # this writer's newest number; None where that must be read
        self._next = 0
        self._told: int | None = None
        self._fresh: list[AuditRow] = []
        self._months = Months()
        self._record: Gatherer[_Entry, Recorded] = Gatherer(store, self._decide, committed=self._tell)
        self._accepted = AcceptedRequests(self._accept)
        self._restart = _each(store, sql.RESTART)
        self._attempted = _each(store, sql.ATTEMPTED)
        self._finish = _each(store, sql.FINISH)
        self._claim: Gatherer[tuple[str, Claim], Claim] = Gatherer(store, _claim)

    def accepted(self, request_id: str, station_id: str, created_at: int) -> None:
        self._accepted.add(request_id, station_id, created_at)

    async def _accept(self, batch: list[Accepted]) -> None:
        ids, stations, times = map(list, zip(*batch, strict=True))

        async def work(connection: Connection, _again: bool) -> None:
            await connection.execute(sql.ACCEPT, ids, [_text(station) for station in stations], times)

        await answered(self._store.transaction(work, lazy=True))

    async def record(self, decision: Decision, created_at: int) -> Recorded:
        return await answered(self._record.submit(_Entry(decision, created_at)))

    async def _decide(self, connection: Connection, entries: list[_Entry], _again: bool) -> list[Recorded]:
        last, self._last = self._last, None  # until it is known that this commit arrived
        rows: list[AuditRow] = []
        if last is None:
            self._months.forget()
            last = max(int(await connection.fetchval(sql.LAST, self._writer)), self._told or 0)
            if self._told is None:
                self._told = last
            elif last > self._told:  # committed, though the answer was lost
                lost = await connection.fetch(sql.AUDIT_AFTER, self._writer, self._told, last - self._told)
                rows = [AuditRow(row[7], decision_of(row)) for row in lost]
        mine: dict[str, _Entry] = {}
        for entry in sorted(entries, key=lambda entry: entry.decision.request_id):  # one order of locks for all
            mine.setdefault(entry.decision.request_id, entry)
        await self._months.provide(connection, [entry.decision.timestamp for entry in mine.values()])
        decisions = [entry.decision for entry in mine.values()]
        numbers = dict(
            await connection.fetch(
                sql.RECORD,
                [d.request_id for d in decisions],
                [_text(d.station_id) for d in decisions],
                [d.driver_token_hash for d in decisions],
                [d.status for d in decisions],
                [_text(d.reason) for d in decisions],
                [d.processing_time_ms for d in decisions],
                [d.timestamp for d in decisions],
                [entry.created_at for entry in mine.values()],
                self._writer,
                last,
            )
        )
        held = {}
        for request_id in numbers:
            decision = mine[request_id].decision
            held[request_id] = Recorded(decision, 0, decision.timestamp, None)
        if others := [request_id for request_id in mine if request_id not in held]:
            held |= {row[0]: recorded_of(row) for row in await connection.fetch(sql.RECORDED, others)}
        rows += sorted((AuditRow(n, held[key].decision) for key, n in numbers.items()), key=lambda row: row.sequence)
        self._fresh = rows
        self._next = last + len(numbers)
        return [held[entry.decision.request_id] for entry in entries]

    async def _tell(self) -> None:
        rows, self._fresh = self._fresh, []
        self._last = self._told = self._next
        if rows and self._on_audit is not None:
            await asyncio.to_thread(self._on_audit, rows)

    async def drop_audit_before(self, at: int) -> list[str]:
        """Drop the months of audit rows that ended by ``at`` (Unix ms), and return their tables' names. The requests
        and their decisions stay. Raises ``LedgerUnavailable`` also while someone reads the audit for long."""

        async def drop(connection: Connection, _again: bool) -> list[str]:
            return await self._months.drop(connection, at)

        return await answered(self._store.transaction(drop, within=_LIST_S))

    async def recorded(self, request_id: str) -> Recorded | None:
        rows = await self._read(sql.RECORDED, [request_id])
        return recorded_of(rows[0]) if rows else None

    async def restart(self, request_id: str, at: int) -> None:
        await answered(self._restart.submit((request_id, at)))

    async def attempted(self, request_id: str, attempts: int, status_code: int | None, error: str | None) -> None:
        await answered(self._attempted.submit((request_id, attempts, status_code, error)))

    async def finish(self, finished: Finished) -> None:
        f = finished
        item = (f.request_id, f.status, f.attempts, f.status_code, f.error, f.at, f.sealed)
        await answered(self._finish.submit(item))

    async def find(self, request_id: str) -> RequestRecord | None:
        rows = await self._read(sql.FIND, request_id)
        return request_of(rows[0]) if rows else None

    async def decisions(self, which: DecisionFilter, limit: int, after: tuple[int, str] | None) -> Sequence[Decision]:
        w = which
        rows = await self._list(
            sql.DECISIONS, w.station_id, w.status, w.reason, w.since, w.until, *(after or (None, None)), limit
        )
        return [decision_of(row) for row in rows]

    async def station_stats(
        self,
        since: int | None,
        until: int | None,
        *,
        station_id: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Sequence[StationStats]:
        which = (since, until, station_id, after)
        rows = await (self._list(sql.STATS, *which) if limit is None else self._list(sql.STATS_PAGE, *which, limit))
        return [StationStats(*row) for row in rows]

    async def dead_letters(
        self, since: int | None, until: int | None, limit: int, after: tuple[int, str] | None
    ) -> Sequence[DeadLetter]:
        rows = await self._list(sql.DEAD_PAGE, since, until, *(after or (None, None)), limit)
        return [DeadLetter(*row) for row in rows]

    async def dead_letter(self, request_id: str) -> DeadLetter | None:
        rows = await self._read(sql.DEAD + " AND request_id = $1", request_id)
        return DeadLetter(*rows[0]) if rows else None

    async def count_dead_letters(self) -> int:
        return int((await self._read(sql.DEAD_LETTERS))[0][0])

    async def discard(self, request_ids: Sequence[str]) -> int:
        return await self._count(sql.DISCARD, list(request_ids), within=_LIST_S)

    async def fail_lost(self, kept: Iterable[str], at: int) -> int:
        """Of those that this writer decided."""
        return await self._count(sql.FAIL_LOST, self._writer, list(kept), at, within=_WHOLE_S)

    async def audit_after(self, sequence: int, limit: int) -> list[AuditRow]:
        """This writer's."""
        rows = await self._read(sql.AUDIT_AFTER, self._writer, sequence, limit)
        return [AuditRow(row[7], decision_of(row)) for row in rows]

    async def sink_position(self, sink: str) -> int:
        """This writer's."""
        rows = await self._read(sql.SINK_POSITION, self._writer, sink)
        return rows[0][0] if rows else 0

    async def save_sink_position(self, sink: str, sequence: int) -> None:
        await self._run(sql.SAVE_SINK_POSITION, self._writer, sink, sequence)

    async def claim(self, key_digest: str, claim: Claim) -> Claim:
        return await answered(self._claim.submit((key_digest, claim)))

    async def put_value_if_absent(self, name: str, value: str) -> str:
        await self._run(sql.REMEMBER, name, value)
        return str((await self._read(sql.FACT, name))[0][0])

    async def value(self, name: str) -> str | None:
        rows = await self._read(sql.FACT, name)
        return rows[0][0] if rows else None

    async def put_value(self, name: str, value: str) -> None:
        await self._run(sql.REPLACE_FACT, name, value)

    async def sealed_prefixes(self, length: int) -> frozenset[bytes]:
        return frozenset(row[0] for row in await self._list(sql.SEALED, length))

    async def check(self) -> None:
        await answered(self._store.check())

    async def close(self) -> None:
        await self._accepted.close()

    async def _count(self, statement: str, *values: Any, within: float) -> int:
        """How many rows it changed. If the answer to the first commit was lost, that one's count."""
        counts: list[int] = []

        async def work(connection: Connection, _again: bool) -> None:
            counts.append(len(await connection.fetch(statement, *values)))

        await answered(self._store.transaction(work, within=within))
        return max(counts)

    async def _run(self, statement: str, *values: Any) -> None:
        async def work(connection: Connection, _again: bool) -> None:
            await connection.execute(statement, *values)

        await answered(self._store.transaction(work))

    async def _read(self, query: str, *values: Any) -> list[Any]:
        return await answered(self._store.read(query, *values))

    async def _list(self, query: str, *values: Any) -> list[Any]:
        return await answered(self._store.read(query, *values, within=_LIST_S))


async def answered(answer: Awaitable[T]) -> T:
    """The answer; ``LedgerUnavailable`` in the place of ``PostgresUnavailable``."""
    try:
        return await answer
    except PostgresUnavailable as error:
        raise LedgerUnavailable(str(error)) from None


def _text(text: str) -> str:
    """PostgreSQL holds no NUL, and what a broker or an authorizer says may hold anything."""
    return text.replace("\0", "\ufffd")


def _each(store: PostgresStore, statement: str) -> Gatherer[tuple[Any, ...], None]:
    """One statement for many rows."""

    async def apply(connection: Connection, items: list[tuple[Any, ...]], _again: bool) -> None:
        await connection.execute(statement, *map(list, zip(*items, strict=True)))

    return Gatherer(store, apply)


async def _claim(connection: Connection, items: list[tuple[str, Claim]], _again: bool) -> list[Claim]:
    first: dict[str, Claim] = {}
    for digest, claim in sorted(items, key=lambda item: item[0]):  # one order of locks for all
        first.setdefault(digest, claim)
    claims = list(first.values())
    await connection.execute(
        sql.CLAIM,
        list(first),
        [claim.body_digest for claim in claims],
        [claim.request_id for claim in claims],
        [claim.created_at for claim in claims],
        max(claim.created_at for claim in claims) - CLAIM_MS,
        _PURGE * len(claims),
    )
    held = {row[0]: Claim(*row[1:]) for row in await connection.fetch(sql.HELD, list(first))}
    return [held[digest] for digest, _ in items]
