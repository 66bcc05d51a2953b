"""The server of the database or of the cache stops. Requests are accepted all the same."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import pytest

from outside import eventually
from scaling.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from outside import Site
    from scaling.cluster import Cluster
    from servers.server import Server


@pytest.fixture
def on_redis_and_postgres(
    new_cache: Callable[[], str], clusters: Callable[..., Cluster], postgres_server: Server
) -> Cluster:
    """A cluster with its queue on Redis."""
    with clusters(new_cache()) as cluster:
        for role in ("api", "api", "worker", "worker"):
            cluster.add(role)
        cluster.start()
        yield cluster


@pytest.mark.parametrize("how", ["stop", pytest.param("kill", marks=pytest.mark.soak)])
def test_workers_wait_for_the_database(
    on_redis_and_postgres: Cluster, postgres_server: Server, receiver: Site, how: str
) -> None:
    cluster = on_redis_and_postgres
    with Load(cluster, receiver, per_second=100) as load:
        load.more(50)
        getattr(postgres_server, how)()
        gone_at = time.monotonic()
        load.more(200)
        assert {api.ready() for api in cluster.apis} == {200}
        health = cluster.workers[0].health()
        assert health["components"]["database"]["status"] == "DOWN", health
        undecided = load.accepted_since(gone_at)
        assert len(undecided) >= 150
        assert not load.told().keys() & undecided.keys(), "told before it was recorded"
        postgres_server.start()
        load.more(50)
    load.check()
    assert not load.refused
    eventually(lambda: all(each.health()["status"] == "UP" for each in cluster.processes), 10, cluster.tails)


@pytest.fixture
def with_a_cache(
    new_database: Callable[[], str], new_cache: Callable[[], str], clusters: Callable[..., Cluster]
) -> Cluster:
    """A cluster with queue and database on PostgreSQL and its cache on Redis."""
    database = new_database()
    with clusters(database, database, cache__url=new_cache()) as cluster:
        for role in ("api", "api", "worker"):
            cluster.add(role)
        cluster.start()
        yield cluster


def test_the_cache_is_done_without(with_a_cache: Cluster, redis_server: Server, receiver: Site) -> None:
    cluster = with_a_cache
    with Load(cluster, receiver) as load:
        load.more(50)
        before = load.new_body(), uuid.uuid4().hex
        known = same_request(cluster, *before)
        redis_server.kill()
        eventually(
            lambda: {each.health()["status"] for each in cluster.processes} == {"DEGRADED"},
            10,
            lambda: f"{[each.health() for each in cluster.processes]}\n{cluster.tails()}",
        )
        assert cluster.all_ready()
        assert same_request(cluster, *before) == known
        same_request(cluster, load.new_body(), uuid.uuid4().hex)
        load.more(100)
        redis_server.start()
        eventually(
            lambda: {each.health()["status"] for each in cluster.processes} == {"UP"},
            10,
            lambda: f"{[each.health() for each in cluster.processes]}\n{cluster.tails()}",
        )
        assert same_request(cluster, *before) == known
    load.check()
    assert not load.refused


def same_request(cluster: Cluster, body: dict[str, str], key: str) -> str:
    """Send one request with one idempotency key to every API twice. Returns the one id that they answer with."""
    answers = [api.post(body, idempotency_key=key) for api in cluster.apis * 2]
    assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers]
    (request_id,) = {answer.json()["request_id"] for answer in answers}
    return str(request_id)
