"""The ledger in PostgreSQL, for any number of processes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from chargegate.engines.postgres.connection import Connection
from chargegate.engines.postgres.counts import PostgresCounts, count_rest
from chargegate.engines.postgres.months import Months
from chargegate.engines.postgres.recording import OnAudit, Recorder, audit_row_of
from chargegate.engines.postgres.statements import LEDGER, arrays
from chargegate.engines.postgres.store import PostgresStore
from chargegate.ledger.accepted import Accepted, AcceptedRequests
from chargegate.ledger.counts import count_all, stats_of
from chargegate.ledger.moments import MOST_BESIDE, beside, moments_of
from chargegate.ledger.records import (
    CLAIM_MS,
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
from chargegate.ledger.rows import dead_letter_of, decision_of, recorded_of, request_of
from chargegate.model import Decision
from chargegate.queues.base import AFTER_ALL
from chargegate.storage.group_commit import GroupCommit, Then

_OLD_CLAIMS_DROPPED: Final = 200
"""For each new claim, at most so many old ones are dropped."""

_LINGER_S: Final = 0.025  # of the ends of callbacks, which nobody waits for
_ACCEPTED_S: Final = 0.01  # of requests that are only listed so
_LIST_S: Final = 10.0
_EVERY_REQUEST_S: Final = 60.0


class PostgresLedger:
    """Keeps the promises of ``Ledger``, on a store that raises ``LedgerUnavailable``."""

    def __init__(self, store: PostgresStore, writer: str = "", on_audit: OnAudit | None = None) -> None:
        """``writer`` and ``on_audit``: see ``Recorder``."""
        self._store = store
        self._writer = writer
        self._months = Months()
        self._recorder = Recorder(store, writer, on_audit, self._months)
        self._accepted = AcceptedRequests(self._accept, linger_s=_ACCEPTED_S)
        self._counts = PostgresCounts(store)
        self._restart = _changes(store, LEDGER["restart"])
        self._attempted = _changes(store, LEDGER["attempted"])
        self._finish: GroupCommit[tuple[Any, ...], None] = GroupCommit(self._finish_all, linger_s=_LINGER_S)
        self._claims: GroupCommit[tuple[str, Claim], Claim] = GroupCommit(self._claim_all)
        self._release = _changes(store, LEDGER["release"])

    def accepted(self, request_id: str, station_id: str, created_at: int, client: str = "") -> None:
        self._accepted.add(request_id, station_id, created_at, client)

    async def _accept(self, requests: list[Accepted]) -> None:
        await self._store.change(LEDGER["accept"], *arrays(requests), "off")

    async def record(self, decision: Decision, created_at: int, client: str = "") -> Recorded:
        return await self._recorder.record(decision, created_at, client)

    def record_then(
        self, decision: Decision, created_at: int, client: str, done: Callable[[Recorded | Exception], None]
    ) -> None:
        self._recorder.record_then(decision, created_at, client, done)

    async def recorded(self, request_id: str) -> Recorded | None:
        rows = await self._store.read(LEDGER["recorded"], [request_id])
        return recorded_of(rows[0]) if rows else None

    async def restart(self, request_id: str, at: int, history: str | None = None) -> None:
        await self._restart.submit((request_id, at, history))

    async def attempted(
        self, request_id: str, attempts: int, status_code: int | None, error: str | None, history: str = ""
    ) -> None:
        await self._attempted.submit((request_id, attempts, status_code, error, history))

    async def finish(self, finished: Finished) -> None:
        await self._finish.submit(msgspec.structs.astuple(finished))

    def finish_soon(self, finished: Finished, then: Then) -> None:
        self._finish.post(msgspec.structs.astuple(finished), then)

    async def _finish_all(self, rows: list[tuple[Any, ...]]) -> None:
        await self._store.change(LEDGER["finish"], *arrays(rows))

    async def fail_lost(self, kept: Iterable[str], at: int) -> int:
        """Of those that this writer decided."""
        return await self._store.execute(LEDGER["fail_lost"], self._writer, list(kept), at, within=_EVERY_REQUEST_S)

    async def find(self, request_id: str) -> RequestRecord | None:
        rows = await self._store.read(LEDGER["find"], request_id)
        return request_of(rows[0]) if rows else None

    async def find_all(self, request_ids: Sequence[str]) -> Sequence[RequestRecord]:
        return [request_of(row) for row in await self._store.read(LEDGER["find_all"], list(request_ids))]

    async def queued(self, limit: int, after: str | None) -> Sequence[RequestRecord]:
        return [request_of(row) for row in await self._list("queued", after or AFTER_ALL, limit)]

    async def decisions(self, which: DecisionFilter, limit: int, after: tuple[int, str] | None) -> Sequence[Decision]:
        by_client = which.client is not None and await self._client_is_rarer(which)
        values = (*msgspec.structs.astuple(which), *(after or (None, None)), limit)
        rows = await self._list("decisions_of_client" if by_client else "decisions", *values)
        return [decision_of(row) for row in rows]

    async def _client_is_rarer(self, which: DecisionFilter) -> bool:
        """The planner cannot know: whose a decision is stands in another table."""
        others = (which.station_id, which.status, which.reason)
        if others == (None, None, None):
            return True
        return bool((await self._list("client_is_rarer", *others, which.until, which.client))[0][0])

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
        rows = await self._list("station_stats", since, until, station_id, after, limit, client)
        return [StationStats(*row) for row in rows]

    async def dead_letters(
        self,
        since: int | None,
        until: int | None,
        limit: int,
        after: tuple[int, str] | None,
        *,
        client: str | None = None,
    ) -> Sequence[DeadLetter]:
        rows = await self._list("dead_letters", since, until, *(after or (None, None)), limit, client)
        return [dead_letter_of(row) for row in rows]

    async def dead_letter(self, request_id: str) -> DeadLetter | None:
        rows = await self._store.read(LEDGER["dead_letter"], request_id)
        return dead_letter_of(rows[0]) if rows else None

    async def latest_delivered(self, since: int, limit: int) -> Sequence[int]:
        return [int(row[0]) for row in await self._store.read(LEDGER["latest_delivered"], since, limit)]

    async def count_dead_letters(self) -> int:
        return int((await self._store.read(LEDGER["count_dead_letters"]))[0][0])

    async def discard(self, request_ids: Sequence[str]) -> int:
        return await self._store.execute(LEDGER["discard"], list(request_ids), within=_LIST_S)

    async def audit_after(self, sequence: int, limit: int) -> list[AuditRow]:
        """This writer's."""
        rows = await self._store.read(LEDGER["audit_after"], self._writer, sequence, limit)
        return [audit_row_of(row, self._writer) for row in rows]

    async def audit_beside(self, rows: Sequence[AuditRow]) -> list[AuditRow]:
        if not rows:
            return []
        found = await self._store.read(LEDGER["audit_beside"], *arrays(moments_of(rows)), MOST_BESIDE)
        return beside([audit_row_of(row[:-1], row[-1]) for row in found], rows)

    async def audit_between(
        self, sink: str, since: int | None, until: int | None, after: tuple[int, str] | None, limit: int
    ) -> list[AuditRow]:
        rows = await self._list("audit_between", sink, since, until, *(after or (None, None)), limit)
        return [audit_row_of(row[:-1], row[-1]) for row in rows]

    async def sink_position(self, sink: str) -> int:
        """This writer's."""
        rows = await self._store.read(LEDGER["sink_position"], self._writer, sink)
        return rows[0][0] if rows else 0

    async def save_sink_position(self, sink: str, sequence: int) -> None:
        await self._store.execute(LEDGER["save_sink_position"], self._writer, sink, sequence)

    async def audit_before(self, at: int, *, exported: bool = False) -> DroppedAudit:
        months = await self._store.transaction(
            lambda connection, _: self._months.old(connection, at, exported=exported), within=_LIST_S, read_only=True
        )
        return DroppedAudit(months, 0)

    async def drop_audit_before(
        self,
        at: int,
        on_dropped: Callable[[int], None] | None = None,  # noqa: ARG002 - the protocol's
        *,
        exported: bool = False,
        signed: Mapping[str, int] | None = None,
    ) -> DroppedAudit:
        await count_all(self._counts)
        return DroppedAudit(
            await self._store.transaction(
                lambda connection, _: self._months.drop(
                    connection, at, count_rest, exported=exported, signed=signed or {}
                ),
                within=_LIST_S,
            ),
            0,
        )

    async def claim(self, key_digest: str, claim: Claim) -> Claim:
        return await self._claims.submit((key_digest, claim))

    async def _claim_all(self, items: list[tuple[str, Claim]]) -> list[Claim]:
        return await self._store.transaction(partial(_claim, items))

    async def release(self, key_digest: str, claim: Claim) -> None:
        await self._release.submit((key_digest, claim.request_id))

    async def replace(self, key_digest: str, held: Claim, claim: Claim) -> bool:
        return await self._store.transaction(partial(_replace, key_digest, held, claim))

    async def put_value_if_absent(self, name: str, value: str) -> str:
        await self._store.execute(LEDGER["put_value_if_absent"], name, value)
        return str(await self.value(name))

    async def value(self, name: str) -> str | None:
        rows = await self._store.read(LEDGER["value"], name)
        return rows[0][0] if rows else None

    async def put_value(self, name: str, value: str) -> None:
        await self._store.execute(LEDGER["put_value"], name, value)

    async def values_of(self, prefix: str) -> dict[str, str]:
        return {row[0]: row[1] for row in await self._store.read(LEDGER["values_of"], prefix)}

    async def drop_values(self, names: Sequence[str]) -> None:
        await self._store.execute(LEDGER["drop_values"], list(names))

    async def sealed_prefixes(self, length: int) -> frozenset[bytes]:
        return frozenset(row[0] for row in await self._list("sealed_prefixes", length))

    async def check(self) -> None:
        await self._store.check()

    async def close(self) -> None:
        await self._accepted.close()

    async def _list(self, name: str, *values: Any) -> list[Any]:
        return await self._store.read(LEDGER[name], *values, within=_LIST_S)


def _changes(store: PostgresStore, statement: str) -> GroupCommit[tuple[Any, ...], None]:
    """Group commit of one statement that changes many rows."""

    async def commit(rows: list[tuple[Any, ...]]) -> None:
        await store.execute(statement, *arrays(rows))

    return GroupCommit(commit)


async def _claim(items: list[tuple[str, Claim]], connection: Connection, _repeated: bool) -> list[Claim]:
    first: dict[str, Claim] = {}
    for digest, claim in sorted(items, key=lambda item: item[0]):  # all lock rows in one order
        first.setdefault(digest, claim)
    await connection.execute(
        LEDGER["claim"],
        *arrays((digest, *msgspec.structs.astuple(claim)) for digest, claim in first.items()),
        max(claim.created_at for claim in first.values()) - CLAIM_MS,
        _OLD_CLAIMS_DROPPED * len(first),
    )
    held = {row[0]: Claim(*row[1:]) for row in await connection.fetch(LEDGER["claims"], list(first))}
    return [held[digest] for digest, _ in items]


async def _replace(digest: str, held: Claim, claim: Claim, connection: Connection, _repeated: bool) -> bool:
    values = (*msgspec.structs.astuple(claim), *msgspec.structs.astuple(held))
    await connection.execute(LEDGER["replace"], digest, *values)
    # Where an earlier attempt was committed and its answer lost, it is there already.
    return [Claim(*row[1:]) for row in await connection.fetch(LEDGER["claims"], [digest])] == [claim]
