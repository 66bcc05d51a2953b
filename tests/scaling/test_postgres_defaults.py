"""What somebody set for our role or our database in PostgreSQL, and connections that end without a word."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import asyncpg
import httpx
import pytest

from outside import PLAIN, eventually
from scaling.engines import execute
from scaling.load import Load
from trying import some_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from outside import Site
    from scaling.cluster import Cluster
    from servers.server import Server

# The timeout holds for BEGIN itself, which may take some time on a busy machine. Making the tables takes longer.
SET = {
    "serializable": ("role", "default_transaction_isolation = serializable", "default_transaction_deferrable = on"),
    "repeatable read": ("database", "default_transaction_isolation = 'repeatable read'"),
    "read only": ("database", "default_transaction_read_only = on", "lock_timeout = '1ms'"),
    "a role that is read only": ("role", "default_transaction_read_only = on", "statement_timeout = '100ms'"),
    "not durable": ("role", "synchronous_commit = off", "default_transaction_deferrable = on"),
}

_ALL_IDLE = (
    "SELECT count(*) >= 2 AND bool_and(state = 'idle' AND state_change < now() - interval '500 ms')"
    " FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'chargegate'"
)


@pytest.fixture
def new_role(postgres_server: Server, new_database: Callable[[], str]) -> Callable[..., str]:
    """Makes a role and its database with these settings for one of them; the URL."""

    def make(whose: str, *settings: str) -> str:
        base, _, name = new_database().rpartition("/")
        role = f"r{uuid.uuid4().hex[:12]}"
        named = {"role": f"ROLE {role}", "database": f"DATABASE {name}"}[whose]
        statements = [f"CREATE ROLE {role} LOGIN", f"ALTER DATABASE {name} OWNER TO {role}"]
        for statement in [*statements, *(f"ALTER {named} SET {setting}" for setting in settings)]:
            asyncio.run(execute(postgres_server.url, statement))
        return f"{base.replace('chargegate:', f'{role}:', 1)}/{name}"

    return make


@some_of("which", SET, ["serializable", "a role that is read only", "not durable"])
def test_what_a_role_or_a_database_has_by_default_changes_nothing(
    clusters: Callable[..., Cluster], new_role: Callable[..., str], receiver: Site, which: str
) -> None:
    url = new_role(*SET[which])
    with clusters(url, url) as cluster:
        cluster.add("api")
        cluster.add("worker")
        cluster.start()
        with Load(cluster, receiver, per_second=200) as load:
            load.more(150)
        load.check()
        assert not load.refused
        assert not load.broken


@pytest.mark.parametrize(
    ("key", "encoding"), [("queue.url", "SQL_ASCII"), ("database.url", "LATIN1"), ("database.url", "EUC_JP")]
)
def test_a_database_that_does_not_keep_every_text_is_refused(
    clusters: Callable[..., Cluster], postgres_server: Server, new_database: Callable[[], str], key: str, encoding: str
) -> None:
    base, _, name = new_database().rpartition("/")
    made = f"CREATE DATABASE {name}x ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    asyncio.run(execute(postgres_server.url, made))
    urls = {"queue.url": f"{base}/{name}", "database.url": f"{base}/{name}"} | {key: f"{base}/{name}x"}
    with clusters(urls["queue.url"], urls["database.url"]) as cluster:
        worker = cluster.add("worker").spawn()
        eventually(lambda: not worker.running, 30, lambda: f"it started\n{worker.tail()}")
        (line,) = [line for line in worker.tail().splitlines() if line.startswith("chargegate: ")]
        assert key in line
        assert "UTF8" in line
        assert encoding in line
        assert "Traceback" not in worker.tail()


def test_connections_that_a_firewall_forgot_cost_no_request(
    clusters: Callable[..., Cluster],
    postgres_server: Server,
    new_database: Callable[[], str],
    receiver: Site,
) -> None:
    direct = new_database()
    with postgres_server.proxied() as proxy:
        there = f"{proxy.url.rpartition('/')[0]}/{direct.rpartition('/')[2]}"
        with clusters(there, there) as cluster:
            api = cluster.add("api")
            cluster.start()
            load = Load(cluster, receiver, per_second=100, flaky=0)
            with load:
                load.more(30)
            for _ in range(3):
                eventually(idle(direct), 10, "the connections are never idle")
                proxy.forget()
                with httpx.Client(verify=PLAIN, trust_env=False, timeout=15) as client:
                    assert load.ask(client, api.url), cluster.tails()
            cluster.add("worker")
            cluster.start()
            load.check()
            rows = [row["request_id"] for row in cluster.decisions()]
            assert len(rows) == len(set(rows)) == len(load.accepted)


def idle(url: str) -> Callable[[], bool]:
    """Whether no connection of the service did anything for half a second."""

    async def count() -> bool:
        connection = await asyncpg.connect(url)
        try:
            found = await connection.fetchval(_ALL_IDLE)
            return bool(found)
        finally:
            await connection.close()

    return lambda: asyncio.run(count())
