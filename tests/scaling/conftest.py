"""The service as several processes, seen from outside, with real servers. Nothing of its code is imported.

`cluster.py` starts and kills `chargegate api` and `chargegate worker`. `load.py` makes requests at the same time, and
then verifies that each acknowledged request got one decision and a callback with it. A test that uses `engine` runs
with each engine as the queue; the database is always PostgreSQL. The tests of an engine in one file share its
`cluster` (two APIs, two workers). A test that needs another set of processes makes it with `clusters`. Tests that take
too long for `make test` have the marker `soak`.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from outside import Reply, Site, sites, verdict
from scaling.cluster import Cluster
from scaling.engines import ENGINES, Engine, empty_redis, execute
from scaling.load import new_receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from outside import Call
    from servers.proxy import Proxy
    from servers.server import Server

# Each of these takes long, because its server must start. `make test` has the same test in another form.
SLOW = {
    "test_the_queues_server_comes_back[kafka-stop]",
    "test_the_queues_server_comes_back[rabbitmq-stop]",
    "test_the_queues_server_comes_back_empty[kafka]",
    "test_the_queues_server_comes_back_empty[rabbitmq]",
    "test_the_way_to_the_queue_is_cut[postgres-drop]",
}
VERDICTS = (verdict("allowed"), verdict("not_allowed", "token_blocked"), verdict("invalid"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name in SLOW:
            item.add_marker("soak")


@pytest.fixture(scope="session")
def new_database(postgres_server: Server) -> Callable[[], str]:
    """Makes a database, and returns its URL."""

    def make() -> str:
        name = f"d{uuid.uuid4().hex[:12]}"
        asyncio.run(execute(postgres_server.url, f"CREATE DATABASE {name}"))
        return f"{postgres_server.url.rpartition('/')[0]}/{name}"

    return make


@pytest.fixture(scope="session")
def new_cache(redis_server: Server) -> Callable[[], str]:
    return lambda: empty_redis(redis_server.url)


@pytest.fixture(scope="session")
def new_engine(request: pytest.FixtureRequest, new_database: Callable[[], str]) -> Callable[[str], Engine]:
    """Finds an engine by its name."""
    return lambda name: Engine(name, request.getfixturevalue(f"{name}_server"), new_database)


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest, new_engine: Callable[[str], Engine]) -> Engine:
    """Each engine in turn."""
    return new_engine(request.param)


@pytest.fixture(scope="session")
def receiver() -> Iterator[Site]:
    """Receives all callbacks."""
    site = new_receiver()
    yield site
    site.close()


@pytest.fixture(scope="session")
def authorizer() -> Iterator[Site]:
    """An authorizer that decides at random, so that a test would notice a second decision for one request.

    Under ``/held`` it does not answer until it is released.
    """

    def decided(call: Call) -> Reply:
        return Reply(how="held") if call.path.startswith("/held") else random.choice(VERDICTS)

    with sites() as make:
        yield make(decided)


@pytest.fixture(scope="session")
def clusters(
    tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[], str], authorizer: Site
) -> Callable[..., Cluster]:
    """Makes clusters on a new database. They have no processes yet."""

    def make(queue_url: str, database_url: str = "", **settings: Any) -> Cluster:
        """The names of settings have ``__`` instead of dots."""
        named = {name.replace("__", "."): value for name, value in settings.items()}
        values = {
            "queue.url": queue_url,
            "queue.lease_ms": 10_000,
            "database.url": database_url or new_database(),
            "authorization.backend": "http",
            "authorization.url": authorizer.url("/decide"),
        }
        return Cluster(tmp_path_factory.mktemp("cluster"), values | named)

    return make


class Shared:
    """The cluster that the tests of an engine in one file share. It is replaced when a test has left it damaged."""

    def __init__(self, make: Callable[[], Cluster]) -> None:
        self._make = make
        self._cluster: Cluster | None = None

    def well(self) -> Cluster:
        if self._cluster is not None and not (
            all(process.running for process in self._cluster.processes) and self._cluster.all_ready()
        ):
            self.close()
        if self._cluster is None:
            self._cluster = self._make()
            self._cluster.start()
        return self._cluster

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.__exit__()
            self._cluster = None


@pytest.fixture(scope="module")  # and no longer: four processes with nothing to do still cost processor time
def shared_cluster(engine: Engine, clusters: Callable[..., Cluster], new_cache: Callable[[], str]) -> Iterator[Shared]:
    def make() -> Cluster:
        queue = engine.new_queue()
        # These vary the cache: PostgreSQL and RabbitMQ run without Redis as the cache, the others with it.
        cache = {} if engine.name in ("postgres", "rabbitmq") else {"cache__url": new_cache()}
        cluster = clusters(queue, queue if engine.name == "postgres" else "", **cache)
        for role in ("api", "api", "worker", "worker"):
            cluster.add(role)
        return cluster

    shared = Shared(make)
    yield shared
    shared.close()


@pytest.fixture
def cluster(shared_cluster: Shared) -> Cluster:
    """Two APIs and two workers, running."""
    return shared_cluster.well()


@pytest.fixture
def proxy(engine: Engine) -> Iterator[Proxy]:
    """A proxy to the server of the queue."""
    with engine.server.proxied() as between:
        yield between


@pytest.fixture
def distant_cluster(engine: Engine, proxy: Proxy, clusters: Callable[..., Cluster]) -> Iterator[Cluster]:
    """An API and a worker, running, which reach the queue through ``proxy``."""
    lease_ms = 10_000 if engine.name == "kafka" else 2000
    with clusters(engine.new_queue(proxy.url), queue__lease_ms=lease_ms) as cluster:
        cluster.add("api")
        cluster.add("worker")
        cluster.start()
        yield cluster
