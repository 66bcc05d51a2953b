"""What is asked again and again, or in steps, is read by an index: no statement of these looks through the requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from chargegate.engines.postgres import statements as postgres
from chargegate.engines.postgres.store import PostgresStore
from chargegate.engines.sqlite import statements as sqlite
from chargegate.engines.sqlite.connection import SqliteStore
from scenario import run as run_scenario

if TYPE_CHECKING:
    from pathlib import Path

COUNTS = ("count_dead_letters", "sealed_prefixes")
SQLITE = [(name, sqlite.LEDGER[name]) for name in COUNTS] + list(sqlite.RETENTION.items())
POSTGRES = [(name, postgres.LEDGER[name]) for name in COUNTS] + list(postgres.RETENTION.items())
VALUES = {
    "sealed_prefixes": "5", "drop_old": "9, 5", "drop_oldest": "'many', 5", "drop_finished": "0, 9, 5",
}  # fmt: skip


@pytest.mark.parametrize(("name", "statement"), SQLITE)
def test_no_scan_in_sqlite(name: str, statement: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await SqliteStore.open(tmp_path / "ledger.db", sqlite.ALL_TABLES, exclusive=False)
        values = [1] * statement.count("?")
        plan = await store.read(
            lambda connection: connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
        )
        steps = [row[3] for row in plan]
        if name in (*COUNTS, "by_client"):
            assert all("charging_requests" not in step for step in steps), steps
        else:
            assert any("USING PRIMARY KEY" in step for step in steps), steps
            assert any("INDEX" in step and "charging_requests" in step and "SCAN" not in step for step in steps), steps
        assert not any("USE TEMP B-TREE FOR ORDER BY" in step for step in steps), steps
        await store.close()

    run_scenario(scenario(), 20)


@pytest.mark.parametrize(("name", "statement"), [each for each in POSTGRES if each[0] != "alone"])
def test_no_scan_in_postgres(name: str, statement: str, postgres_url: str) -> None:
    """The planner sees many requests."""

    async def scenario() -> None:
        store = await PostgresStore.open(postgres_url, postgres.LEDGER_TABLES)

        async def explained(connection: Any, _repeated: bool) -> list[str]:
            await connection.execute(
                "INSERT INTO charging_requests (request_id, station_id, client, status, created_at, started_at,"
                " processed_at, sealed) SELECT i::text, 's', 'c' || i % 9, CASE WHEN i % 2 = 0 THEN 'FAILED' ELSE"
                " 'COMPLETED' END, i, i, i, CASE WHEN i % 2 = 0 THEN '\\x0102030405'::bytea END"
                " FROM generate_series(1, 20000) AS n (i); ANALYZE charging_requests"
            )
            await connection.execute(f"PREPARE asked AS {statement}")
            values = f"({VALUES[name]})" if name in VALUES else ""
            plan: list[str] = [row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE asked{values}")]
            await connection.execute("DEALLOCATE asked")
            return plan

        plan = await store.transaction(explained, within=20)
        assert not any("Seq Scan on charging_requests" in line for line in plan), plan
        if name in (*COUNTS, "by_client"):
            assert all("charging_requests" not in line for line in plan), plan
        else:
            assert not any("Sort" in line for line in plan), plan
        await store.close()

    run_scenario(scenario(), 60)
