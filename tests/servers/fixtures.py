"""``redis_server``, ``postgres_server``, ``rabbitmq_server``, ``kafka_server``, ``influxdb_server``,
``s3_server``: each is a ``Server`` for the whole run, the last for a file.

A server is started when the first test asks for it. CHARGEGATE_TEST_REDIS_URL and the like name a running server to use
instead. Where the machine lacks a server, its tests are skipped, or fail where CI is set.
"""

import asyncio
import os
from collections.abc import Generator, Iterator
from uuid import uuid4

import asyncpg
import pytest

from servers.engines import S3, Kafka, Postgres, Rabbitmq, Redis
from servers.influxdb import Influxdb, query
from servers.server import GivenServer, Server

started: list[Server] = []
left_out = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test that uses a server, so that ``-m "not servers"`` leaves it out.

    A test whose fixtures do not show it (it asks for the server while it runs) must be marked by hand.
    """
    global left_out  # noqa: PLW0603 - a run of pytest is a process
    left_out = "not servers" in config.option.markexpr
    for item in items:
        if any(name.endswith("_server") for name in getattr(item, "fixturenames", ())):
            item.add_marker("servers")


def provide(kind: type[Server]) -> Iterator[Server | GivenServer]:
    if left_out:
        pytest.fail(f"this test uses {kind.name} and lacks the marker `servers`")
    if url := os.environ.get(f"CHARGEGATE_TEST_{kind.name.upper()}_URL"):
        yield GivenServer(kind.name, url)
        return
    if missing := kind.missing():
        lacking = pytest.fail if os.environ.get("CI") else pytest.skip
        lacking(f"{missing}; `make servers` provides it")
    server = kind()
    try:
        server.start()
        started.append(server)
        yield server
    finally:
        if server in started:
            started.remove(server)
        server.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server | GivenServer]:
    yield from provide(Redis)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server | GivenServer]:
    yield from provide(Postgres)


@pytest.fixture
def postgres_url(postgres_server: Server | GivenServer) -> str:
    """The URL of a new and empty schema of PostgreSQL."""
    schema = f"t{uuid4().hex}"

    async def make() -> None:
        connection = await asyncpg.connect(postgres_server.url)
        await connection.execute(f"CREATE SCHEMA {schema}")
        await connection.close()

    asyncio.run(make())
    return f"{postgres_server.url}?search_path={schema}"


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[Server | GivenServer]:
    yield from provide(Rabbitmq)


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[Server | GivenServer]:
    yield from provide(Kafka)


@pytest.fixture(scope="module")  # it is not idle when nobody asks: it looks after every bucket that there ever was
def s3_server() -> Iterator[Server | GivenServer]:
    yield from provide(S3)


@pytest.fixture(scope="session")
def influxdb_server() -> Iterator[Server | GivenServer]:
    yield from provide(Influxdb)


@pytest.fixture
def influx_database(influxdb_server: Server | GivenServer) -> str:
    """The name of a new and empty database of InfluxDB."""
    name = f"t{uuid4().hex}"
    query(influxdb_server.url, f'CREATE DATABASE "{name}"')
    return name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """Start each server again that a test left down, before the next test."""
    yield
    for server in started if nextitem else []:
        server.start()
