"""The servers that other tests rely on: they start, keep what they were given, lose it when told to, leave nothing."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import aio_pika
import asyncpg
import confluent_kafka
import pytest
import redis
from confluent_kafka.admin import AdminClient, NewTopic

from ports import free_port
from servers.fixtures import provide
from servers.influxdb import query
from servers.server import GivenServer, Server

pytestmark = pytest.mark.servers  # most of them start one themselves

STARTED_ELSEWHERE = """
import sys, time
from servers import engines
server = getattr(engines, sys.argv[1])()
server.start()
print(server.folder, server.port, flush=True)
time.sleep(600)
"""


def write_redis(url: str) -> None:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        client.set("kept", "yes")


def read_redis(url: str) -> bool:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        return client.get("kept") == b"yes"


async def in_postgres(url: str, statement: str) -> bool:
    connection = await asyncpg.connect(url)
    try:
        return bool(await connection.fetchval(statement))
    finally:
        await connection.close()


def write_postgres(url: str) -> None:
    asyncio.run(in_postgres(url, "CREATE TABLE kept ()"))


def read_postgres(url: str) -> bool:
    return asyncio.run(in_postgres(url, "SELECT to_regclass('kept') IS NOT NULL"))


def write_rabbitmq(url: str) -> None:
    async def publish() -> None:
        async with await aio_pika.connect(url) as connection, connection.channel() as channel:
            await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
            message = aio_pika.Message(b"yes", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, "kept")

    asyncio.run(publish())


def read_rabbitmq(url: str) -> bool:
    async def count() -> int:
        async with await aio_pika.connect(url) as connection, connection.channel() as channel:
            try:
                queue = await channel.declare_queue("kept", passive=True)
                message = await queue.get(fail=False, timeout=10)
            except aio_pika.exceptions.ChannelNotFoundEntity:
                return False
            if message:
                await message.nack(requeue=True)
            return message is not None

    return asyncio.run(count())


def write_kafka(url: str) -> None:
    brokers = url.removeprefix("kafka://")
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(20)
    producer = confluent_kafka.Producer({"bootstrap.servers": brokers, "acks": "all"})
    producer.produce("kept", b"yes")
    assert producer.flush(20) == 0


def read_kafka(url: str) -> bool:
    settings = {"bootstrap.servers": url.removeprefix("kafka://"), "group.id": "reader", "log_level": 0}
    consumer = confluent_kafka.Consumer(settings)
    try:
        if "kept" not in consumer.list_topics(timeout=5).topics:
            return False
        consumer.assign([confluent_kafka.TopicPartition("kept", 0, confluent_kafka.OFFSET_BEGINNING)])
        message = consumer.poll(20)
        return message is not None and message.value() == b"yes"
    finally:
        consumer.close()


def write_influxdb(url: str) -> None:
    query(url, "CREATE DATABASE kept")
    with urllib.request.urlopen(f"{url}/write?db=kept", b"kept value=1i 1", timeout=20) as answer:
        assert answer.status == 204


def read_influxdb(url: str) -> bool:
    databases = [row["name"] for row in query(url, "SHOW DATABASES")]
    return "kept" in databases and bool(query(url, "SELECT value FROM kept", "kept"))


class Client(NamedTuple):
    write: Callable[[str], None]
    read: Callable[[str], bool]


CLIENTS = {
    "redis": Client(write_redis, read_redis),
    "postgres": Client(write_postgres, read_postgres),
    "rabbitmq": Client(write_rabbitmq, read_rabbitmq),
    "kafka": Client(write_kafka, read_kafka),
    "influxdb": Client(write_influxdb, read_influxdb),
}


# Tests of the tests' own servers. The slow ones are started and wiped by every other suite anyway.
SLOW_LATER = [
    "redis",
    "postgres",
    "influxdb",
    *(pytest.param(each, marks=pytest.mark.soak) for each in ("rabbitmq", "kafka")),
]


@pytest.fixture(params=CLIENTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(request: pytest.FixtureRequest, name: str) -> Server:
    return request.getfixturevalue(f"{name}_server")


@pytest.fixture
def client(name: str) -> Client:
    return CLIENTS[name]


@pytest.mark.parametrize("name", SLOW_LATER)
def test_it_keeps_its_data_until_they_are_wiped(server: Server, client: Client) -> None:
    server.wipe()
    server.start()
    assert not client.read(server.url)
    client.write(server.url)
    assert client.read(server.url)
    server.kill()
    assert not server.running
    server.start()
    assert client.read(server.url)
    server.stop()
    assert not server.running
    server.start()
    assert client.read(server.url)
    server.wipe()
    assert not server.running
    server.start()
    assert not client.read(server.url)


@pytest.mark.parametrize("name", SLOW_LATER)
def test_a_client_that_goes_through_the_proxy_depends_on_it(server: Server, client: Client) -> None:
    server.wipe()
    server.start()
    with server.proxied() as proxy:
        client.write(proxy.url)
        assert client.read(proxy.url)
        proxy.reset()
        with pytest.raises((OSError, redis.ConnectionError, confluent_kafka.KafkaException)):
            client.read(proxy.url)
        assert client.read(server.url)
        proxy.heal()
        assert client.read(proxy.url)


@pytest.mark.parametrize("kind", ["Redis", "Postgres"])
def test_it_ends_with_the_run_even_if_that_is_killed(kind: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{kind.lower()}_server")  # skips where there is none
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", STARTED_ELSEWHERE, kind], stdout=subprocess.PIPE, text=True, env=environment
    ) as run:
        assert run.stdout is not None
        folder, port = run.stdout.readline().split()
        run.kill()
    end = time.monotonic() + 20
    while Path(folder).exists() or answers(int(port)):
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.05)


def answers(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


class Absent(Server):
    name = "absent"

    @classmethod
    def missing(cls) -> str:
        return "absent is not installed"


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_one_that_is_not_there_is_skipped_at_home_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="absent is not installed; `make servers` provides it"):
        next(provide(Absent))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server | GivenServer]:
    monkeypatch.setenv("CHARGEGATE_TEST_ABSENT_URL", f"absent://127.0.0.1:{free_port()}")
    return provide(Absent)


def test_one_that_is_given_by_url_is_used_and_left_alone(given: Iterator[Server | GivenServer]) -> None:
    server = next(given)
    assert server.url == os.environ["CHARGEGATE_TEST_ABSENT_URL"]
    for disturb in (server.stop, server.kill, server.start, server.wipe, server.proxied):
        with pytest.raises(pytest.skip.Exception, match="needs a server of its own"):
            disturb()
