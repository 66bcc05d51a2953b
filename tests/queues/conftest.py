"""Every queue backend as the contract suite sees it: what it declares, and how it is opened.

Another backend is another line in ``BACKENDS``. Run as a script, this file is a process that uses a backend and is
then killed: ``conftest.py put|hold BACKEND PLACE COUNT``.
"""

import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
import uvloop

from chargegate.engines.kafka import KafkaQueue
from chargegate.engines.memory.queue import MemoryQueue
from chargegate.engines.postgres.queue import PostgresQueue
from chargegate.engines.rabbitmq.queue import RabbitQueue
from chargegate.engines.redis.queue import RedisQueue
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.queue import SqliteQueue
from chargegate.engines.sqlite.statements import QUEUE_TABLES
from chargegate.observe import configure_logging
from chargegate.queues.base import Capabilities, Queue

sys.path.append(str(Path(__file__).parents[1]))  # when this file runs as a script, pytest has not done so
from messages import new_message


class Backend(NamedTuple):
    """``open(place, max_size)`` gives a queue, and closes it and all below it. A place is a folder, or what ``server``
    (a fixture) has for a URL, and after a ``#`` a name that is free there."""

    name: str
    capabilities: Capabilities
    open: Callable[[str, int], AbstractAsyncContextManager[Queue]]
    server: str = ""


@asynccontextmanager
async def open_memory(_place: str, max_size: int) -> AsyncIterator[Queue]:
    queue = MemoryQueue(max_size)
    yield queue
    await queue.close()


@asynccontextmanager
async def open_sqlite(place: str, max_size: int) -> AsyncIterator[Queue]:
    store = await SqliteStore.open(Path(place) / "queue.db", QUEUE_TABLES, exclusive=True)
    queue = await SqliteQueue.open(store, max_size)
    yield queue
    await queue.close()
    await store.close()


@asynccontextmanager
async def open_postgres(place: str, max_size: int) -> AsyncIterator[Queue]:
    url, _, name = place.partition("#")
    queue = await PostgresQueue.open(f"{url}?table={name}", max_size, lease_ms=4000)
    yield queue
    await queue.close()


redis_consumers: set[tuple[str, str]] = set()


@asynccontextmanager
async def open_redis(place: str, max_size: int) -> AsyncIterator[Queue]:
    """Opened again, or in the process after a killed one, it is the same consumer; beside another it is a second."""
    url, _, name = place.partition("#")
    consumer = next(each for each in ("first", "second") if (name, each) not in redis_consumers)
    redis_consumers.add((name, consumer))
    queue = await RedisQueue.open(url, max_size=max_size, consumer=consumer, lease_ms=4000, name=name)
    yield queue
    await queue.close()
    redis_consumers.remove((name, consumer))


@asynccontextmanager
async def open_kafka(place: str, max_size: int) -> AsyncIterator[Queue]:
    url, _, name = place.partition("#")
    queue = await KafkaQueue.open(f"{url}/{name}?partitions=4", max_size, lease_ms=10_000)
    yield queue
    await queue.close()


@asynccontextmanager
async def open_rabbitmq(place: str, max_size: int) -> AsyncIterator[Queue]:
    url, _, name = place.partition("#")
    queue = await RabbitQueue.open(f"{url}?queue={name}", max_size=max_size)
    yield queue
    await queue.close()


BACKENDS = (
    Backend("memory", Capabilities(durable=False, shared=False, find=True), open_memory),
    Backend("sqlite", Capabilities(durable=True, shared=False, find=True), open_sqlite),
    Backend("kafka", Capabilities(durable=True, shared=True, find=False), open_kafka, "kafka_server"),
    Backend("postgres", Capabilities(durable=True, shared=True, find=True), open_postgres, "postgres_server"),
    Backend("rabbitmq", Capabilities(durable=True, shared=True, find=False), open_rabbitmq, "rabbitmq_server"),
    Backend("redis", Capabilities(durable=True, shared=True, find=True), open_redis, "redis_server"),
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "declares(capability=value): only the backends that declare so, none skipped")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each backend in turn, of those that the test is about."""
    if "backend" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("declares")
        asked = marker.kwargs.items() if marker else ()
        chosen = [each for each in BACKENDS if all(getattr(each.capabilities, name) == value for name, value in asked)]
        assert chosen, f"no backend declares {dict(asked)}"
        values = [pytest.param(each, id=each.name, marks=[pytest.mark.servers] * bool(each.server)) for each in chosen]
        metafunc.parametrize("backend", values)


@pytest.fixture
def server(request: pytest.FixtureRequest, backend: Backend) -> Any:
    """The backend's server; None where it needs none."""
    return request.getfixturevalue(backend.server) if backend.server else None


@pytest.fixture
def place(server: Any, tmp_path: Path) -> str:
    """Where nothing is yet."""
    return f"{server.url}#q{uuid4().hex[:12]}" if server else str(tmp_path)


async def use_until_killed(job: str, backend: Backend, place: str, count: int) -> None:
    async with backend.open(place, 1000) as queue:
        for number in range(count):
            if job == "put":
                message = new_message(body=str(number).encode())
                await queue.put(message)
                print(message.request_id, flush=True)
        held = 0
        while job == "hold" and held < count:
            for delivery in await queue.receive(count - held):
                held += 1
                print(delivery.message.request_id, flush=True)
        time.sleep(600)  # noqa: ASYNC251 - held still until the test kills it


if __name__ == "__main__":
    configure_logging("error")  # standard output is for ids
    job, name, place, count = sys.argv[1:]
    chosen = next(backend for backend in BACKENDS if backend.name == name)
    uvloop.run(use_until_killed(job, chosen, place, int(count)))
