"""Connections that break, batches, and tables, on a real server."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import uvloop

from chargegate.postgres import (
    Connection,
    Gatherer,
    PostgresStore,
    PostgresUnavailable,
    PostgresUnusable,
    split_url,
)
from lost_answer import losing_answers
from servers.server import Server

LIMIT_S = 60

Open = Callable[..., Any]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await scenario

    uvloop.run(limited())


@pytest.fixture
def opened(postgres_server: Server) -> Open:
    """Opens a store with a table of its own, ``items``: numbers, each once."""
    schema = f"t{uuid4().hex}"

    async def make() -> None:
        connection = await asyncpg.connect(postgres_server.url)
        await connection.execute(f"CREATE SCHEMA {schema}")
        await connection.close()

    asyncio.run(make())

    @asynccontextmanager
    async def opening(url: str = "", scripts: tuple[str, ...] | None = None) -> AsyncIterator[PostgresStore]:
        scripts = scripts or ("CREATE TABLE items (number integer PRIMARY KEY)",)
        store = await PostgresStore.open(f"{url or postgres_server.url}?search_path={schema}", {"items": scripts})
        try:
            yield store
        finally:
            await store.close()

    return opening


async def insert(connection: Connection, numbers: list[int], _again: bool) -> None:
    await connection.execute("INSERT INTO items SELECT * FROM unnest($1::integer[]) ON CONFLICT DO NOTHING", numbers)


async def insert_once(connection: Connection, numbers: list[int], _again: bool) -> None:
    await connection.execute("INSERT INTO items SELECT * FROM unnest($1::integer[])", numbers)


async def numbers(store: PostgresStore) -> list[int]:
    return [row[0] for row in await store.read("SELECT number FROM items ORDER BY 1")]


async def terminate_others(server: Server) -> None:
    connection = await asyncpg.connect(server.url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chargegate'"
    )
    await connection.close()


def test_own_options_are_taken_out_of_the_url() -> None:
    url, options = split_url(
        "postgresql://u:p%40@h:1/d?table=a&sslmode=disable&listen_url=postgresql%3A%2F%2Fx", ["table", "listen_url"]
    )
    assert url == "postgresql://u:p%40@h:1/d?sslmode=disable"
    assert options == {"table": "a", "listen_url": "postgresql://x"}


def test_what_gathers_while_a_batch_is_under_way_is_one_transaction(opened: Open) -> None:
    batches: list[list[int]] = []

    async def apply(connection: Connection, items: list[int], again: bool) -> list[int]:
        batches.append(items)
        await insert(connection, items, again)
        return [-item for item in items]

    async def scenario() -> None:
        async with opened() as store:
            gatherer = Gatherer(store, apply)
            first = gatherer.submit(0)
            while not batches:
                await asyncio.sleep(0)
            rest = [gatherer.submit(number) for number in range(1, 2500)]
            assert await asyncio.gather(first, *rest) == [-number for number in range(2500)]
            assert [len(batch) for batch in batches] == [1, 1000, 1000, 499]
            assert await numbers(store) == list(range(2500))

    run(scenario())


def test_an_item_that_breaks_a_rule_harms_no_other_and_its_value_is_not_told(opened: Open) -> None:
    async def scenario() -> None:
        async with opened() as store:
            gatherer: Gatherer[Any, None] = Gatherer(store, insert_once)
            await gatherer.submit(3)
            outcomes = await asyncio.gather(
                *(gatherer.submit(item) for item in (1, 987654321987, 2, 3, "secret", 4)), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [type(None), ValueError, type(None)] + [
                ValueError
            ] * 2 + [type(None)]
            assert not any("987654321987" in str(outcome) or "secret" in str(outcome) for outcome in outcomes)
            assert await numbers(store) == [1, 2, 3, 4]

    run(scenario())


def test_a_commit_whose_answer_was_lost_is_asked_for_again(opened: Open, postgres_server: Server) -> None:
    agains: list[bool] = []

    async def apply(connection: Connection, items: list[int], again: bool) -> None:
        agains.append(again)
        await insert(connection, items, again)

    async def scenario() -> None:
        async with losing_answers(postgres_server.url) as way, opened(way.url) as store:
            gatherer = Gatherer(store, apply)
            way.losing = 1
            await gatherer.submit(1)
            assert agains == [False, True]
            way.losing = 2
            with pytest.raises(PostgresUnavailable):
                await gatherer.submit(2)
            await gatherer.submit(2)
            assert await numbers(store) == [1, 2]

    run(scenario())


def test_connections_that_are_terminated_are_replaced(opened: Open, postgres_server: Server) -> None:
    async def scenario() -> None:
        async with opened() as store:
            gatherer = Gatherer(store, insert)
            for number in range(10):
                await gatherer.submit(number)
                await terminate_others(postgres_server)
            assert await numbers(store) == list(range(10))

    run(scenario())


def test_a_connection_cut_in_the_middle_of_a_transaction_leaves_nothing_half_done(
    opened: Open, postgres_server: Server
) -> None:
    async def apply(connection: Connection, items: list[int], again: bool) -> None:
        await insert_once(connection, items, again)
        if not again:
            await terminate_others(postgres_server)
        await insert_once(connection, [-item for item in items], again)

    async def scenario() -> None:
        async with opened() as store:
            await Gatherer(store, apply).submit(7)
            assert await numbers(store) == [-7, 7]

    run(scenario())


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_it_heals_by_itself_after_the_server_was_away(opened: Open, postgres_server: Server, end: str) -> None:
    async def scenario() -> None:
        async with opened() as store:
            gatherer = Gatherer(store, insert)
            await gatherer.submit(1)
            await asyncio.to_thread(getattr(postgres_server, end))
            for attempt in (gatherer.submit(2), store.check(), store.read("SELECT 1")):
                with pytest.raises(PostgresUnavailable):
                    await attempt
            await asyncio.to_thread(postgres_server.start)
            await gatherer.submit(3)
            await store.check()
            assert await numbers(store) == [1, 3]

    run(scenario())


def test_a_posted_item_waits_for_the_server(opened: Open, postgres_server: Server) -> None:
    async def scenario() -> None:
        async with opened() as store:
            gatherer = Gatherer(store, insert)
            await asyncio.to_thread(postgres_server.stop)
            gatherer.post(1)
            with pytest.raises(PostgresUnavailable):
                await gatherer.submit(2)
            await asyncio.to_thread(postgres_server.start)
            while await numbers(store) != [1]:
                await asyncio.sleep(0.02)

    run(scenario())


def test_a_server_that_no_longer_answers_is_unavailable_to_all_who_wait(opened: Open, postgres_server: Server) -> None:
    async def scenario() -> None:
        with postgres_server.proxied() as proxy:
            async with opened(proxy.url) as store:
                gatherer = Gatherer(store, insert)
                await gatherer.submit(0)
                proxy.drop()
                first = gatherer.submit(1)
                await asyncio.sleep(0)
                attempts = [first, gatherer.submit(2), store.check(), store.read("SELECT 1")]
                outcomes = await asyncio.gather(*attempts, return_exceptions=True)
                assert [type(outcome) for outcome in outcomes] == [PostgresUnavailable] * 4
                proxy.heal()
                await gatherer.submit(3)
                assert {0, 3} <= set(await numbers(store))

    run(scenario())


def test_tables_that_are_lost_with_the_data_are_made_anew(postgres_server: Server) -> None:
    async def scenario() -> None:
        migrations = {"items": ("CREATE TABLE items (number integer PRIMARY KEY)",)}
        store = await PostgresStore.open(postgres_server.url, migrations)
        gatherer = Gatherer(store, insert)
        await gatherer.submit(1)
        await asyncio.to_thread(postgres_server.wipe)
        await asyncio.to_thread(postgres_server.start)
        await gatherer.submit(2)
        assert await numbers(store) == [2]
        await asyncio.to_thread(postgres_server.wipe)
        await asyncio.to_thread(postgres_server.start)
        await store.check()
        assert await numbers(store) == []
        await store.transaction(lambda connection, _: connection.execute("DROP TABLE items, schema_versions"))
        await store.close()

    run(scenario())


def test_processes_that_start_at_once_make_the_tables_once(opened: Open) -> None:
    async def one(number: int) -> None:
        async with opened() as store:
            await Gatherer(store, insert).submit(number)

    async def scenario() -> None:
        await asyncio.gather(*map(one, range(8)))
        async with opened() as store:
            assert await numbers(store) == list(range(8))

    run(scenario())


def test_tables_of_a_newer_release_are_refused(opened: Open) -> None:
    async def scenario() -> None:
        async with opened(scripts=("CREATE TABLE items (number integer)", "CREATE TABLE more ()")) as store:
            await store.check()
        with pytest.raises(PostgresUnusable, match="newer release"):
            async with opened():
                pass

    run(scenario())


def test_what_is_no_database_is_refused_without_its_password() -> None:
    async def scenario() -> None:
        for url in ("postgresql://u:sesame@127.0.0.1:99999/d", "postgresql://u:sesame@127.0.0.1:1/d"):
            with pytest.raises((PostgresUnusable, PostgresUnavailable)) as refused:
                await PostgresStore.open(url, {})
            assert "sesame" not in str(refused.value)

    run(scenario())


def test_a_closed_store_is_unavailable(opened: Open) -> None:
    async def scenario() -> None:
        async with opened() as store:
            await store.close()
            with pytest.raises(PostgresUnavailable):
                await store.check()
            await store.close()

    run(scenario())
