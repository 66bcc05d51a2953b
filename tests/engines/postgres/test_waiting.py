"""How often what waits is counted, on a real server that takes its time."""

import asyncio

import pytest

from chargegate.engines.postgres.store import PostgresStore
from chargegate.engines.postgres.waiting import WaitingRows
from scenario import run

COUNT = "SELECT count(*), min(number) FROM items, pg_sleep(0.06)"
TABLES = {"items": ("CREATE TABLE items (number bigint NOT NULL)",)}


@pytest.mark.parametrize(("rows", "kept"), [(0, False), (3, False), (20_000, True)])
def test_only_a_long_count_of_many_rows_is_kept(rows: int, kept: bool, postgres_url: str) -> None:
    async def scenario() -> None:
        store = await PostgresStore.open(postgres_url, TABLES)
        waiting = WaitingRows(store, COUNT)
        insert = "INSERT INTO items SELECT * FROM generate_series($1::bigint, $2)"
        await store.execute(insert, 1, rows)
        assert await waiting.read() == (rows, 1 if rows else None)
        await store.execute(insert, rows + 1, rows + 1)
        if not kept:
            assert await waiting.read() == (rows + 1, 1)
        async with asyncio.timeout(60):
            while await waiting.read() != (rows + 1, 1):
                await asyncio.sleep(0.05)
        await store.close()

    run(scenario())


def test_those_who_ask_at_once_share_a_long_count(postgres_url: str) -> None:
    asked = []

    class Store:
        async def read(self, query: str) -> list[tuple[int, int | None]]:
            asked.append(query)
            rows = await store.read(query)
            return [tuple(row) for row in rows]  # type: ignore[misc]  # a row of the query has two columns

    async def scenario() -> None:
        nonlocal store
        store = await PostgresStore.open(postgres_url, TABLES)
        await store.execute("INSERT INTO items SELECT * FROM generate_series(1, 20000)")
        waiting = WaitingRows(Store(), COUNT)  # type: ignore[arg-type]  # it counts what is asked of the real one
        assert set(await asyncio.gather(*(waiting.read() for _ in range(5)))) == {(20_000, 1)}
        assert len(asked) == 1
        await store.close()

    store: PostgresStore
    run(scenario())
