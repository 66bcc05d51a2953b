"""The ledger in SQLite. A request's row and its audit row are inserted in one commit; the request id is unique."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from chargegate.engines.sqlite import writes
from chargegate.engines.sqlite.batches import Operation
from chargegate.engines.sqlite.chain import EMBEDDED_WRITER
from chargegate.engines.sqlite.connection import SqliteStore, StorePart
from chargegate.engines.sqlite.counts import SqliteCounts
from chargegate.engines.sqlite.decisions import Conditions, by, find_decisions, where
from chargegate.engines.sqlite.queries import select, select_one
from chargegate.engines.sqlite.statements import LEDGER
from chargegate.ledger.accepted import Accepted, AcceptedRequests
from chargegate.ledger.base import ledger_unavailable
from chargegate.ledger.counts import count_all, stats_of
from chargegate.ledger.moments import MOST_BESIDE, beside
from chargegate.ledger.records import (
    AuditRow,
    Claim,
    DeadLetter,
    DecisionFilter,
    DroppedAudit,
    Finished,
    Recorded,
    RequestRecord,
    StationStats,
)
from chargegate.ledger.rows import dead_letter_of, decision_of, request_of
from chargegate.model import Decision, now_ms
from chargegate.queues.base import AFTER_ALL
from chargegate.storage.group_commit import Then
from chargegate.storage.recurring import rest

_PAUSE_FACTOR: Final = 4
"""While old rows are dropped, others have the file for so many times as long as a step took."""
_DROPPED_AT_ONCE: Final = 20
"""They hold up the commits of others for two milliseconds. More in a second would keep the copying of the log busy, for
which others wait too."""
_DOUBLED_AFTER: Final = 100_000
_MOST_AT_ONCE: Final = 80
"""After so many rows a step takes twice as many, up to this, so that it gets further than rows are added."""


class SqliteLedger:
    """Keeps the promises of ``Ledger``."""

    def __init__(self, store: SqliteStore, on_audit: Callable[[list[AuditRow]], None] | None = None) -> None:
        """``on_audit`` is told of committed audit rows, in the writing thread and before anyone who waits for them."""
        self._store = StorePart(store, ledger_unavailable)
        self._on_audit = on_audit
        self._record = Operation(writes.record, committed=self._committed)
        self._accepted = AcceptedRequests(self._accept)
        self._counts = SqliteCounts(store)
        self.check = self._store.check

    def _committed(self, written: Sequence[writes.Written]) -> None:
        rows = [AuditRow(w.sequence, w.recorded.decision) for w in written if w.sequence]
        if rows:
            self.tell(rows)

    def tell(self, rows: list[AuditRow]) -> None:
        """Audit rows were committed. The writing thread calls this."""
        if self._on_audit is not None:
            self._on_audit(rows)

    def accepted(self, request_id: str, station_id: str, created_at: int, client: str = "") -> None:
        self._accepted.add(request_id, station_id, created_at, client)

    async def _accept(self, batch: list[Accepted]) -> None:
        await self._store.write(writes.ACCEPT, batch)

    async def record(self, decision: Decision, created_at: int, client: str = "") -> Recorded:
        written: writes.Written = await self._store.write(self._record, writes.Entry(decision, created_at, client))
        return written.recorded

    def record_then(
        self, decision: Decision, created_at: int, client: str, done: Callable[[Recorded | Exception], None]
    ) -> None:
        def told(answer: writes.Written | Exception) -> None:
            done(self._store.as_raised(answer) if isinstance(answer, Exception) else answer.recorded)

        self._store.notify(self._record, writes.Entry(decision, created_at, client), told)

    async def recorded(self, request_id: str) -> Recorded | None:
        return await self._store.read(lambda connection: writes.one_recorded(connection, request_id))

    async def restart(self, request_id: str, at: int, history: str | None = None) -> None:
        await self._store.write(writes.RESTART, (at, history, request_id))

    async def attempted(
        self, request_id: str, attempts: int, status_code: int | None, error: str | None, history: str = ""
    ) -> None:
        await self._store.write(writes.ATTEMPTED, (attempts, status_code, error, history, request_id))

    async def finish(self, finished: Finished) -> None:
        await self._store.write(writes.FINISH, finished)

    def finish_soon(self, finished: Finished, then: Then) -> None:
        self._store.post(writes.FINISH, finished, then)

    async def find(self, request_id: str) -> RequestRecord | None:
        return await self._store.read(select_one(request_of, LEDGER["find"], (request_id,)))

    async def find_all(self, request_ids: Sequence[str]) -> Sequence[RequestRecord]:
        return await self._store.read(select(request_of, LEDGER["find_all"], (json.dumps(request_ids),)))

    async def queued(self, limit: int, after: str | None) -> Sequence[RequestRecord]:
        return await self._store.read(select(request_of, LEDGER["queued"], (after or AFTER_ALL, limit)))

    async def decisions(self, which: DecisionFilter, limit: int, after: tuple[int, str] | None) -> Sequence[Decision]:
        return await self._store.scan(lambda connection: find_decisions(connection, which, limit, after))

    async def station_stats(
        self,
        since: int | None,
        until: int | None,
        *,
        station_id: str | None = None,
        client: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Sequence[StationStats]:
        if client is None:  # whose a decision is, is not counted
            return stats_of(
                await self._counts.by_station(since, until, station_id=station_id, limit=limit, after=after),
                busiest_first=limit is None,
            )
        which = DecisionFilter(station_id, since=since, until=until, client=client)
        query, values = by("client" if station_id is None else "station", LEDGER["station_stats"], which)
        if after is not None:
            query, values = query.replace("GROUP BY", "AND a.station_id > ? GROUP BY"), [*values, after]
        if limit is None:
            query = query.replace("{order}", "count(*) DESC, 1")
        else:
            query, values = query.replace("{order}", "a.station_id LIMIT ?"), [*values, limit]
        return await self._store.scan(select(lambda row: StationStats(*row), query, values))

    async def dead_letters(
        self,
        since: int | None,
        until: int | None,
        limit: int,
        after: tuple[int, str] | None,
        *,
        client: str | None = None,
    ) -> Sequence[DeadLetter]:
        conditions: Conditions = {}
        if client is not None:
            conditions["r.client = ?"] = (client,)
        if since is not None:
            conditions["r.processed_at >= ?"] = (since,)
        if until is not None:
            conditions["r.processed_at < ?"] = (until,)
        if after is not None:
            conditions["(r.processed_at, r.request_id) < (?, ?)"] = after
        query, values = where(LEDGER["dead_letters"], conditions)
        return await self._store.scan(select(dead_letter_of, query, (*values, limit)))

    async def dead_letter(self, request_id: str) -> DeadLetter | None:
        query, values = where(LEDGER["dead_letters"], {"r.request_id = ?": (request_id,)})
        return await self._store.read(select_one(dead_letter_of, query, (*values, 1)))

    async def latest_delivered(self, since: int, limit: int) -> Sequence[int]:
        return await self._store.read(select(_first, LEDGER["latest_delivered"], (since, limit)))

    async def count_dead_letters(self) -> int:
        return await self._store.read(select_one(_first, LEDGER["count_dead_letters"])) or 0

    async def discard(self, request_ids: Sequence[str]) -> int:
        discarded: int = await self._store.write(writes.DISCARD, request_ids)
        return discarded

    async def fail_lost(self, kept: Iterable[str], at: int) -> int:
        failed: int = await self._store.write(writes.FAIL_LOST, (at, json.dumps(list(kept))))
        return failed

    async def audit_after(self, sequence: int, limit: int) -> list[AuditRow]:
        return await self._store.read(select(_audit_row, LEDGER["audit_after"], (sequence, limit)))

    async def audit_beside(self, rows: Sequence[AuditRow]) -> list[AuditRow]:
        times = json.dumps(Counter([row.decision.timestamp for row in rows]))
        found = await self._store.read(select(_audit_row, LEDGER["audit_beside"], (times, MOST_BESIDE)))
        return beside(found, rows) if found else []

    async def audit_between(
        self, sink: str, since: int | None, until: int | None, after: tuple[int, str] | None, limit: int
    ) -> list[AuditRow]:
        conditions: Conditions = {
            "a.sequence <= ifnull((SELECT sequence FROM sink_positions WHERE sink = ?), a.sequence)": (sink,)
        }
        if since is not None:
            conditions["a.timestamp >= ?"] = (since,)
        if until is not None:
            conditions["a.timestamp < ?"] = (until,)
        if after is not None:
            conditions["(a.timestamp, a.request_id) > (?, ?)"] = after
        query, values = where(LEDGER["audit_between"], conditions)
        return list(await self._store.scan(select(_audit_row, query, (*values, limit))))

    async def audit_before(self, at: int, *, exported: bool = False) -> DroppedAudit:
        limits = writes.RowLimits(min(at, now_ms()), exported)
        rows = await self._store.scan(lambda connection: writes.count_old_rows(connection, limits))
        return DroppedAudit([], rows)

    async def drop_audit_before(
        self,
        at: int,
        on_dropped: Callable[[int], None] | None = None,
        *,
        exported: bool = False,
        signed: Mapping[str, int] | None = None,
    ) -> DroppedAudit:
        """Some rows at a time, so that others write in between. A request's decision is only in its audit row, so that
        its own row goes too; what has not ended, and dead letters, stay whole."""
        await count_all(self._counts)
        limits, rows = writes.RowLimits(min(at, now_ms()), exported, (signed or {}).get(EMBEDDED_WRITER, 0)), 0
        after: tuple[int, int] | None = (-1, -1)
        while after is not None:
            started = time.monotonic()
            most = min(_MOST_AT_ONCE, _DROPPED_AT_ONCE << (rows // _DOUBLED_AFTER))
            dropped: writes.DroppedRows = await self._store.write(
                writes.DROP_ROWS, writes.RowsAfter(limits, after, most)
            )
            after = dropped.last
            rows += dropped.rows
            if on_dropped is not None:
                on_dropped(rows)
            await rest(started, _PAUSE_FACTOR)
        return DroppedAudit([], rows)

    async def sink_position(self, sink: str) -> int:
        return await self._store.read(select_one(_first, LEDGER["sink_position"], (sink,))) or 0

    async def save_sink_position(self, sink: str, sequence: int) -> None:
        await self._store.write(writes.SAVE_SINK_POSITION, (sink, sequence))

    async def claim(self, key_digest: str, claim: Claim) -> Claim:
        holds: Claim = await self._store.write(writes.CLAIM, (key_digest, claim))
        return holds

    async def release(self, key_digest: str, claim: Claim) -> None:
        await self._store.write(writes.RELEASE, (key_digest, claim.request_id))

    async def replace(self, key_digest: str, held: Claim, claim: Claim) -> bool:
        replaced: bool = await self._store.write(writes.REPLACE, (key_digest, held, claim))
        return replaced

    async def put_value_if_absent(self, name: str, value: str) -> str:
        kept: str = await self._store.write(writes.PUT_VALUE_IF_ABSENT, (name, value))
        return kept

    async def value(self, name: str) -> str | None:
        return await self._store.read(select_one(_first, LEDGER["value"], (name,)))

    async def put_value(self, name: str, value: str) -> None:
        await self._store.write(writes.PUT_VALUE, (name, value))

    async def values_of(self, prefix: str) -> dict[str, str]:
        return dict(await self._store.read(select(tuple, LEDGER["values_of"], (prefix,))))

    async def drop_values(self, names: Sequence[str]) -> None:
        await asyncio.gather(*(self._store.write(writes.DROP_VALUE, (name,)) for name in names))

    async def sealed_prefixes(self, length: int) -> frozenset[bytes]:
        return frozenset(await self._store.read(select(_first, LEDGER["sealed_prefixes"], (length,))))

    async def close(self) -> None:
        await self._accepted.close()


def _first(row: Sequence[Any]) -> Any:
    return row[0]


def _audit_row(row: Sequence[Any]) -> AuditRow:
    return AuditRow(row[0], decision_of(row[1:]))
