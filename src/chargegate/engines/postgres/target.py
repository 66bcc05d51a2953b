"""The PostgreSQL database that another one is copied into."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec
from msgspec.structs import astuple

from chargegate.engines.postgres.access_list import PostgresAccessList
from chargegate.engines.postgres.connection import Connection
from chargegate.engines.postgres.months import Months
from chargegate.engines.postgres.statements import CHAIN, EXPORTS, LEDGER, TARGET, arrays
from chargegate.engines.postgres.store import PostgresStore, rows_changed
from chargegate.ledger.base import AccessList
from chargegate.ledger.chain import RowLink
from chargegate.ledger.counts import STATION_UNITS, UNITS
from chargegate.ledger.exports import ExportedFile
from chargegate.ledger.transfer import BEFORE_COUNTS, CountKind, KeptClaim, StoredRequest, Unmergeable, WaitingRequest

_PAGE_S: Final = 60.0
_WRITER: Final = "embedded"  # as in put_audit
_OWN_EXPORTS: Final = (
    "it has daily exports of its own, and so has the embedded database. A row is in exactly one daily export, which"
    " could not be kept for both; move into a database that has exported nothing yet"
)
_NO_DECISION: Final = (None,) * 5


class PostgresTarget:
    """Keeps the promises of ``LedgerTarget``, on a store that raises ``LedgerUnavailable``."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._months = Months()
        self.access_list: AccessList = PostgresAccessList(store)

    async def put_requests(self, requests: Sequence[StoredRequest]) -> tuple[int, int]:
        return await self._store.transaction(partial(self._put_requests, requests), within=_PAGE_S)

    async def _put_requests(
        self, requests: Sequence[StoredRequest], connection: Connection, repeated: bool
    ) -> tuple[int, int]:
        if repeated:
            self._months.forget()
        decided = [(request, request.decision) for request in requests if request.decision is not None]
        await self._months.provide(connection, [decision.timestamp for _, decision in decided])
        kept = [request for request in requests if request.status]
        changed = (
            rows_changed(await connection.execute(TARGET["put_requests"], *arrays(map(_row, kept)))) if kept else 0
        )
        audited = 0
        for statement, rows in (
            ("put_audit", [(r.sequence, r.request_id, decision.timestamp) for r, decision in decided if r.status]),
            ("put_audit_alone", [(r.sequence, *astuple(decision)) for r, decision in decided if not r.status]),
        ):
            if rows:
                audited += rows_changed(await connection.execute(TARGET[statement], *arrays(rows)))
        return changed, audited

    async def put_waiting(self, requests: Sequence[WaitingRequest]) -> int:
        return await self._insert(
            LEDGER["accept"],
            [(request.request_id, request.station_id, request.accepted_at, request.client) for request in requests],
            None,
        )

    async def put_claims(self, claims: Sequence[KeptClaim]) -> int:
        return await self._insert(TARGET["put_claims"], [(kept.key_digest, *astuple(kept.claim)) for kept in claims])

    async def put_values(self, values: Sequence[tuple[str, str]]) -> int:
        return await self._insert(TARGET["put_values"], values)

    async def put_links(self, links: Sequence[RowLink]) -> int:
        rows = [astuple(link) for link in links]
        return await self._store.execute(CHAIN["add"], _WRITER, *arrays(rows), within=_PAGE_S) if rows else 0

    async def refuse_others(self, files: Sequence[ExportedFile]) -> None:
        named = arrays((file.number, file.origin, file.sha256) for file in files)
        if (await self._store.read(EXPORTS["others"], *named))[0][0]:
            raise Unmergeable(_OWN_EXPORTS)

    async def put_exports(self, files: Sequence[ExportedFile]) -> int:
        added = [await self._store.execute(EXPORTS["add"], *astuple(file), within=_PAGE_S) for file in files]
        await self.refuse_others(files)
        return sum(added)

    async def counts_place(self, kind: CountKind) -> tuple[int, str]:
        rows = await self._store.read(LEDGER["value"], _place_of(kind))
        return msgspec.json.decode(rows[0][0], type=tuple[int, str]) if rows else BEFORE_COUNTS

    async def put_counts(self, kind: CountKind, counts: Sequence[tuple[Any, ...]]) -> int:
        return await self._store.transaction(partial(_put_counts, kind, counts), within=_PAGE_S)

    async def _insert(self, statement: str, rows: Sequence[Sequence[Any]], *values: Any) -> int:
        return await self._store.execute(statement, *arrays(rows), *values, within=_PAGE_S) if rows else 0

    async def close(self) -> None:
        await self._store.close()


def _place_of(kind: CountKind) -> str:
    """The name of the value that says which counts were added. They are not added a second time."""
    return f"moved counts {kind}"


async def _put_counts(
    kind: CountKind, counts: Sequence[tuple[Any, ...]], connection: Connection, _repeated: bool
) -> int:
    name, last = _place_of(kind), (counts[-1][0], counts[-1][1])
    place = await connection.fetchval(LEDGER["value"], name)
    if place is not None and msgspec.json.decode(place, type=tuple[int, str]) >= last:
        return 0
    units = UNITS if kind == "of_all" else STATION_UNITS
    changed = rows_changed(await connection.execute(TARGET[f"put_{kind}"], *arrays(counts), list(units)))
    await connection.execute(LEDGER["put_value"], name, msgspec.json.encode(last).decode())
    return changed


def _row(request: StoredRequest) -> tuple[Any, ...]:
    request_id, station_id, decision, *rest, _sequence = astuple(request)
    decided = _NO_DECISION if decision is None else astuple(decision)[2:]
    return (request_id, station_id, *decided, *rest)
