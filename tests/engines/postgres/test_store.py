"""Connections that break, group commit, and tables, on a real server."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from chargegate.engines.postgres.connection import Connection, split_url
from chargegate.engines.postgres.pool import Pool
from chargegate.engines.postgres.store import PostgresStore
from chargegate.queues.base import QueueUnavailable
from chargegate.storage.group_commit import GroupCommit
from chargegate.storage.unavailable import Unavailable, Unusable
from lost_answer import losing_answers
from scenario import run
from servers.engines import Postgres
from servers.server import Server

Open = Callable[..., Any]


@pytest.fixture
def opened(postgres_url: str) -> Open:
    """Opens a store with a table of its own, ``items``: numbers, each once."""
    there, _, options = postgres_url.partition("?")

    @asynccontextmanager
    async def opening(url: str = "", scripts: tuple[str, ...] | None = None) -> AsyncIterator[PostgresStore]:
        scripts = scripts or ("CREATE TABLE items (number integer PRIMARY KEY)",)
        store = await PostgresStore.open(f"{url or there}?{options}", {"items": scripts})
        try:
            yield store
        finally:
            await store.close()

    return opening


def committing(store: PostgresStore, apply: Callable[[Connection, list[Any], bool], Awaitable[Any]]) -> GroupCommit:
    """Group commit of what ``apply`` does with the items."""
    return GroupCommit(lambda items: store.transaction(lambda connection, repeated: apply(connection, items, repeated)))


async def insert(connection: Connection, numbers: list[int], _repeated: bool) -> None:
    await connection.execute("INSERT INTO items SELECT * FROM unnest($1::integer[]) ON CONFLICT DO NOTHING", numbers)


async def insert_once(connection: Connection, numbers: list[int], _repeated: bool) -> None:
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


def test_a_connection_that_was_idle_is_asked_and_used_again(
    postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chargegate.engines.postgres.pool._TRUSTED_S", -1.0)  # each was idle for longer

    async def scenario() -> None:
        pool = Pool(postgres_server.url)
        deadline = asyncio.get_running_loop().time() + 20
        used = {
            await pool.use(lambda connection: connection.fetchval("SELECT pg_backend_pid()"), deadline)
            for _ in range(5)
        }
        await pool.close()
        assert len(used) == 1

    run(scenario())


def test_what_gathers_while_a_batch_is_under_way_is_one_transaction(opened: Open) -> None:
    batches: list[list[int]] = []

    async def apply(connection: Connection, items: list[int], repeated: bool) -> list[int]:
        batches.append(items)
        await insert(connection, items, repeated)
        return [-item for item in items]

    async def scenario() -> None:
        async with opened() as store:
            commits = committing(store, apply)
            first = commits.submit(0)
            while not batches:
                await asyncio.sleep(0)
            rest = [commits.submit(number) for number in range(1, 2500)]
            assert await asyncio.gather(first, *rest) == [-number for number in range(2500)]
            assert [len(batch) for batch in batches] == [1, 1000, 1000, 499]
            assert await numbers(store) == list(range(2500))

    run(scenario())


def test_an_item_that_breaks_a_rule_harms_no_other_and_its_value_is_not_told(opened: Open) -> None:
    async def scenario() -> None:
        async with opened() as store:
            commits = committing(store, insert_once)
            await commits.submit(3)
            outcomes = await asyncio.gather(
                *(commits.submit(item) for item in (1, 987654321987, 2, 3, "secret", 4)), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [type(None), ValueError, type(None)] + [
                ValueError
            ] * 2 + [type(None)]
            assert not any("987654321987" in str(outcome) or "secret" in str(outcome) for outcome in outcomes)
            assert await numbers(store) == [1, 2, 3, 4]

    run(scenario())


def test_a_commit_whose_answer_was_lost_is_asked_for_again(opened: Open, postgres_server: Server) -> None:
    repeats: list[bool] = []

    async def apply(connection: Connection, items: list[int], repeated: bool) -> None:
        repeats.append(repeated)
        await insert(connection, items, repeated)

    async def scenario() -> None:
        async with losing_answers(postgres_server.url) as proxy, opened(proxy.url) as store:
            commits = committing(store, apply)
            proxy.to_lose = 1
            await commits.submit(1)
            assert repeats == [False, True]
            proxy.to_lose = 2
            with pytest.raises(Unavailable):
                await commits.submit(2)
            await commits.submit(2)
            assert await numbers(store) == [1, 2]

    run(scenario())


def test_connections_that_are_terminated_are_replaced(opened: Open, postgres_server: Server) -> None:
    async def scenario() -> None:
        async with opened() as store:
            commits = committing(store, insert)
            for number in range(10):
                await commits.submit(number)
                await terminate_others(postgres_server)
            assert await numbers(store) == list(range(10))

    run(scenario())


def test_a_connection_cut_in_the_middle_of_a_transaction_leaves_nothing_half_done(
    opened: Open, postgres_server: Server
) -> None:
    async def apply(connection: Connection, items: list[int], repeated: bool) -> None:
        await insert_once(connection, items, repeated)
        if not repeated:
            await terminate_others(postgres_server)
        await insert_once(connection, [-item for item in items], repeated)

    async def scenario() -> None:
        async with opened() as store:
            await committing(store, apply).submit(7)
            assert await numbers(store) == [-7, 7]

    run(scenario())


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_it_heals_by_itself_after_the_server_was_away(opened: Open, postgres_server: Server, end: str) -> None:
    async def scenario() -> None:
        async with opened() as store:
            commits = committing(store, insert)
            await commits.submit(1)
            await asyncio.to_thread(getattr(postgres_server, end))
            for attempt in (commits.submit(2), store.check(), store.read("SELECT 1")):
                with pytest.raises(Unavailable):
                    await attempt
            await asyncio.to_thread(postgres_server.start)
            await commits.submit(3)
            await store.check()
            assert await numbers(store) == [1, 3]

    run(scenario())


def test_a_posted_item_waits_for_the_server(opened: Open, postgres_server: Server) -> None:
    async def scenario() -> None:
        async with opened() as store:
            commits = committing(store, insert)
            await asyncio.to_thread(postgres_server.stop)
            commits.post(1)
            with pytest.raises(Unavailable):
                await commits.submit(2)
            await asyncio.to_thread(postgres_server.start)
            while await numbers(store) != [1]:
                await asyncio.sleep(0.02)

    run(scenario())


def test_a_server_that_no_longer_answers_is_unavailable_to_all_who_wait(opened: Open, postgres_server: Server) -> None:
    async def scenario() -> None:
        with postgres_server.proxied() as proxy:
            async with opened(proxy.url) as store:
                commits = committing(store, insert)
                await commits.submit(0)
                proxy.drop()
                first = commits.submit(1)
                await asyncio.sleep(0)
                attempts = [first, commits.submit(2), store.check(), store.read("SELECT 1")]
                outcomes = await asyncio.gather(*attempts, return_exceptions=True)
                assert [type(outcome) for outcome in outcomes] == [Unavailable] * 4
                proxy.heal()
                await commits.submit(3)
                assert {0, 3} <= set(await numbers(store))

    run(scenario())


def test_tables_that_are_lost_with_the_data_are_made_anew(postgres_server: Server) -> None:
    async def scenario() -> None:
        migrations = {"items": ("CREATE TABLE items (number integer PRIMARY KEY)",)}
        store = await PostgresStore.open(postgres_server.url, migrations)
        commits = committing(store, insert)
        await commits.submit(1)
        await asyncio.to_thread(postgres_server.wipe)
        await asyncio.to_thread(postgres_server.start)
        await commits.submit(2)
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
            await committing(store, insert).submit(number)

    async def scenario() -> None:
        await asyncio.gather(*map(one, range(8)))
        async with opened() as store:
            assert await numbers(store) == list(range(8))

    run(scenario())


def test_tables_of_a_newer_release_are_refused(opened: Open) -> None:
    async def scenario() -> None:
        async with opened(scripts=("CREATE TABLE items (number integer)", "CREATE TABLE more ()")) as store:
            await store.check()
        with pytest.raises(Unusable, match="newer release"):
            async with opened():
                pass

    run(scenario())


def test_a_script_that_meets_a_missing_table_is_unavailable(opened: Open) -> None:
    """As where somebody dropped the tables and left their version."""

    async def scenario() -> None:
        with pytest.raises(Unavailable, match="UndefinedTable"):
            async with opened(scripts=("ALTER TABLE absent ADD COLUMN number integer",)):
                pass

    run(scenario())


def test_a_store_raises_the_kind_that_its_owner_promises() -> None:
    async def scenario() -> None:
        store = PostgresStore("postgresql://u:p@127.0.0.1:1/d", {}, QueueUnavailable)
        for attempt in (store.prepare(), store.check(), store.read("SELECT 1")):
            with pytest.raises(QueueUnavailable):
                await attempt

    run(scenario())


def test_what_is_no_database_is_refused_without_its_password() -> None:
    async def scenario() -> None:
        for url in ("postgresql://u:sesame@127.0.0.1:99999/d", "postgresql://u:sesame@127.0.0.1:1/d"):
            with pytest.raises((Unusable, Unavailable)) as refused:
                await PostgresStore.open(url, {})
            assert "sesame" not in str(refused.value)

    run(scenario())


async def for_ever(asked: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asked()


async def configure(server: Server, *statements: str) -> None:
    connection = await asyncpg.connect(server.url)
    for statement in statements:
        await connection.execute(statement)
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


def test_a_database_that_was_made_read_only_is_unavailable_and_heals(opened: Open, postgres_server: Server) -> None:
    """As a standby is after a failover, and as providers do when a disk is nearly full."""

    async def scenario() -> None:
        async with opened() as store:
            commits = committing(store, insert)
            await commits.submit(1)
            await configure(postgres_server, "ALTER SYSTEM SET default_transaction_read_only = on")
            try:
                for asked in (store.check, lambda: commits.submit(2)):
                    with pytest.raises(Unavailable):
                        await for_ever(asked)  # the server reads its settings in its own time
            finally:
                await configure(
                    postgres_server,
                    "SET default_transaction_read_only = off",
                    "ALTER SYSTEM RESET default_transaction_read_only",
                )
            while True:
                try:
                    await store.check()
                    await commits.submit(3)
                    break
                except Unavailable:
                    await asyncio.sleep(0.01)
            assert {1, 3} <= set(await numbers(store))

    run(scenario())


def test_a_table_that_cannot_grow_fails_the_check_for_a_while(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chargegate.engines.postgres.store._DISK_FULL_S", 0.2)
    full = (
        "CREATE TABLE items (number integer PRIMARY KEY);"
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'could not extend file' USING ERRCODE = 'disk_full'; END $$;"
        "CREATE TRIGGER full_disk BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION full_disk()"
    )

    async def scenario() -> None:
        async with opened(scripts=(full,)) as store:
            await store.check()
            with pytest.raises(Unavailable):
                await committing(store, insert).submit(1)
            with pytest.raises(Unavailable, match="full"):
                await store.check()
            while True:
                try:
                    await store.check()
                    break
                except Unavailable:
                    await asyncio.sleep(0.01)

    run(scenario())


def limit_files(server: Postgres, size: str) -> None:
    """Of the server, and of its sessions to come."""
    assert server._process is not None
    server.run("prlimit", "--pid", str(server._process.pid), f"--fsize={size}:unlimited")


def test_files_that_cannot_grow_end_in_unavailable_and_nothing_that_was_stored_is_lost(
    opened: Open, postgres_server: Server
) -> None:
    assert isinstance(postgres_server, Postgres)

    async def scenario() -> None:
        table = "CREATE TABLE items (number integer PRIMARY KEY, more bytea)"
        async with opened(scripts=(table,)) as store:

            async def fill(connection: Connection, items: list[int], _repeated: bool) -> None:
                await connection.execute(
                    "INSERT INTO items SELECT n, $2 FROM unnest($1::integer[]) AS n ON CONFLICT DO NOTHING",
                    items,
                    random.randbytes(100_000),
                )

            stored: list[int] = []

            async def fill_for_ever() -> None:
                while True:
                    await committing(store, fill).submit(len(stored))
                    stored.append(len(stored))

            limit_files(postgres_server, str(16 * 2**20))  # as long as a segment of its log: that is still written
            await terminate_others(postgres_server)  # those that follow have the limit
            try:
                with pytest.raises(Unavailable):
                    await fill_for_ever()
                with pytest.raises(Unavailable):
                    await committing(store, fill).submit(len(stored))
            finally:
                limit_files(postgres_server, "unlimited")
            await committing(store, fill).submit(len(stored))
            assert len(stored) > 10
            assert await numbers(store) == [*stored, len(stored)]

    run(scenario())


def test_a_url_that_was_usable_once_is_unavailable_later(opened: Open) -> None:
    async def scenario() -> None:
        async with opened() as store:
            store._pool.close_idle()
            store._pool._url = "http://127.0.0.1/"  # what the URL names, a certificate's file say, is gone
            with pytest.raises(Unavailable):
                await committing(store, insert).submit(1)

    run(scenario())


GARBAGE = [
    b"",
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    b"R\0\0\0\x17\0\0\0\nSCRAM-SHA-256\0\0R\0\0\0\x0c\0\0\0\x0bwhat",
    b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05IE\0\0\0\x04",
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncpg's half-made connections
@pytest.mark.parametrize("answer", GARBAGE)
def test_whatever_answers_there_it_is_said_to_be_unavailable(answer: bytes) -> None:
    """A proxy's error page, another service's port, an answer cut short."""

    talking: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking.append(writer)
        while await reader.read(65536):
            writer.write(answer)
            if not answer:
                break
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            store = PostgresStore(f"postgresql://u:p@127.0.0.1:{port}/d?sslmode=disable", {})
            attempts = [store.check(), committing(store, insert).submit(1), store.read("SELECT 1")]
            outcomes = await asyncio.gather(*attempts, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
            await store.close()
        finally:
            server.close()  # uvloop waits for ever to close a loop that still listens, or is connected
            for writer in talking:
                writer.transport.abort()

    run(scenario())


def test_a_closed_store_is_unavailable(opened: Open) -> None:
    async def scenario() -> None:
        async with opened() as store:
            await store.close()
            with pytest.raises(Unavailable):
                await store.check()
            await store.close()

    run(scenario())
