"""A filled database of an older release gets its new tables and indexes, and answers as if it had had them always."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.ledger.test_filters import CLIENTS, FIRST, REASONS, SOME, STATIONS, expected, made

from chargegate.engines.postgres.statements import LEDGER_TABLES
from chargegate.engines.postgres.store import PostgresStore
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.records import DecisionFilter, Finished
from chargegate.model import Decision, RequestStatus, Status
from databases import Database, Postgres, Sqlite
from scenario import run as run_to_its_end

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from chargegate.ledger.base import Ledger

    Rows = list[tuple[Decision, str]]

BEFORE_INDEXES_OF_FILTERS = 8
FILTERS = [
    DecisionFilter(station_id=station, status=status, reason=reason, client=client, until=FIRST + SOME - 7)
    for station, status, reason, client in itertools.product(
        (None, STATIONS[1].lower()), (None, Status.UNKNOWN), (None, *REASONS[:2]), (None, *CLIENTS, "west")
    )
]


async def opened(name: str, path: Path, url: str, newest: int | None) -> Database:
    """With the tables of a release that had the first ``newest`` migrations, or all."""

    def those(tables: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
        return {**tables, "ledger": tables["ledger"][:newest]}

    if name == "sqlite":
        return Sqlite(await SqliteStore.open(path, those(ALL_TABLES), exclusive=False))
    return Postgres(await PostgresStore.open(url, those(LEDGER_TABLES), LedgerUnavailable))


async def record(ledger: Ledger, rows: Rows) -> None:
    await asyncio.gather(*(ledger.record(decision, 0, client) for decision, client in rows))


async def check(ledger: Ledger, rows: Rows) -> None:
    for which in FILTERS:
        found: list[Decision] = []
        while page := await ledger.decisions(
            which, 100, (found[-1].timestamp, found[-1].request_id) if found else None
        ):
            found += page
        assert found == expected(rows, which), which


@pytest.mark.parametrize("name", ["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def test_filters_find_what_was_decided_before(
    tmp_path: Path, request: pytest.FixtureRequest, decide: Callable[..., Decision], name: str
) -> None:
    rows = made(random.Random(7), decide)
    old, new = rows[: SOME // 2], rows[SOME // 2 :]
    url = request.getfixturevalue("postgres_url") if name == "postgres" else ""
    path = tmp_path / "old.db"

    async def scenario() -> Any:
        database = await opened(name, path, url, BEFORE_INDEXES_OF_FILTERS)
        await record(database.ledger(), old)
        await database.close()
        for _ in range(2):  # the second start has nothing to change
            database = await opened(name, path, url, None)
            await check(database.ledger(), old)
            await database.close()
        database = await opened(name, path, url, None)
        ledger = database.ledger()
        await record(ledger, new)
        await check(ledger, rows)
        # Old requests go from the indexes as new ones do.
        gone = [*old[:50], *new[:50]]
        for decision, _ in gone:
            await ledger.finish(Finished(decision.request_id, RequestStatus.COMPLETED, 1, 200, None, FIRST, None))
        assert await database.retention().drop_finished(FIRST + 1, 1000) == len(gone)
        ids = {decision.request_id for decision, _ in gone}
        for client in CLIENTS:
            left = [(one, whose) for one, whose in rows if one.request_id not in ids]
            which = DecisionFilter(client=client)
            assert await ledger.decisions(which, SOME, None) == expected(left, which)
        await database.close()

    run_to_its_end(scenario(), 60)


@pytest.mark.servers
def test_processes_of_the_new_release_start_at_once_beside_the_old_one(
    postgres_url: str, decide: Callable[..., Decision]
) -> None:
    """They migrate once, and what the old one records meanwhile and after is found too."""
    rows = made(random.Random(8), decide)

    async def scenario() -> Any:
        old = await PostgresStore.open(postgres_url, {"ledger": LEDGER_TABLES["ledger"][:8]}, LedgerUnavailable)
        theirs = Postgres(old).ledger(writer="old")
        await record(theirs, rows[:200])
        writing = asyncio.ensure_future(record(theirs, rows[200:400]))
        stores = await asyncio.gather(
            *(PostgresStore.open(postgres_url, LEDGER_TABLES, LedgerUnavailable) for _ in range(3))
        )
        await writing
        await record(theirs, rows[400:500])
        ours = Postgres(stores[0]).ledger(writer="new")
        await record(ours, rows[500:])
        await check(ours, rows)
        for store in (old, *stores):
            await store.close()

    run_to_its_end(scenario(), 60)
