"""Statements that are a transaction by themselves, on a real server with and without a pooler before it."""

import asyncio

import asyncpg
import pytest

from chargegate.engines.postgres.alone import OwnSession, OwnSessions
from chargegate.engines.postgres.statements import LEDGER, LEDGER_TABLES
from chargegate.engines.postgres.store import PostgresStore
from pooler import pooled
from scenario import run
from servers.server import Server

TABLES = {"alone_items": ("CREATE TABLE alone_items (number integer PRIMARY KEY)",)}
INSERT = "INSERT INTO alone_items VALUES ($1) ON CONFLICT DO NOTHING"
NO_ROWS = {"finish": ([],) * 8, "record": (*([],) * 9, "w", 0, 0), "accept": (*([],) * 4, "off")}


async def last_statements(url: str) -> list[str]:
    """What each session of the service did last."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        return [row[0] for row in rows]
    finally:
        await connection.close()


@pytest.fixture
def new_database(postgres_server: Server) -> str:
    async def make() -> None:
        connection = await asyncpg.connect(postgres_server.url)
        await connection.execute("DROP TABLE IF EXISTS alone_items, schema_versions")
        await connection.close()

    asyncio.run(make())
    return postgres_server.url


def test_it_is_one_exchange_only_where_the_session_is_ours(new_database: str, postgres_server: Server) -> None:
    async def scenario(url: str, *, ours: bool) -> None:
        store = await PostgresStore.open(url, TABLES)
        for number in range(3):
            await store.change(INSERT, number)
        assert [row[0] for row in await store.read("SELECT number FROM alone_items ORDER BY 1")] == [0, 1, 2]
        assert (INSERT in await last_statements(new_database)) == ours
        await store.close()

    run(scenario(new_database, ours=True))
    with pooled(postgres_server) as url:
        run(scenario(url, ours=False))


def test_a_kept_plan_is_right_for_a_large_table_although_it_was_made_for_an_empty_one(postgres_url: str) -> None:
    async def plans(session: OwnSession) -> list[str]:
        lines = []
        for number, (name, values) in enumerate(NO_ROWS.items()):
            await session.run(LEDGER[name], *values)
            nothing = ", ".join(["NULL"] * len(values))
            lines += [row[0] for row in await session.fetch(f"EXPLAIN EXECUTE chargegate_{number} ({nothing})")]
        return lines

    async def scenario() -> None:
        store = await PostgresStore.open(postgres_url, LEDGER_TABLES)
        await store.close()
        sessions = OwnSessions(postgres_url)
        plan = await sessions.use(plans, asyncio.get_running_loop().time() + 10)
        assert plan is not None
        assert any("charging_requests_pkey" in line for line in plan)
        assert not any(join in line for line in plan for join in ("Hash", "Merge", "Seq Scan on charging_requests"))
        await sessions.close()

    run(scenario())
