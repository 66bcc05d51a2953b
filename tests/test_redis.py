"""Every kind of URL, each against a real set-up of its kind."""

import asyncio
import datetime as dt
import ipaddress
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from chargegate.cache_redis import RedisCache
from chargegate.queues.base import Message, QueueUnavailable
from chargegate.queues.redis import RedisQueue
from chargegate.redis import Batches, RedisServer, RedisUnavailable
from servers.engines import Redis
from servers.server import Server, free_port

LIMIT_S = 30
PASSWORD = "p@ss/w:rd"
QUOTED = "p%40ss%2Fw%3Ard"

MakeMessage = Callable[..., Message]


class SecuredRedis(Redis):
    """With a password, over TLS only."""

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__()
        self._files = {"tls-cert-file": certificate, "tls-key-file": key, "tls-ca-cert-file": certificate}

    def url_at(self, port: int) -> str:
        return f"rediss://:{QUOTED}@127.0.0.1:{port}/3?ssl_ca_certs={self._files['tls-ca-cert-file']}"

    def command(self) -> list[str]:
        options = {"port": 0, "tls-port": self.port, "tls-auth-clients": "no", "requirepass": PASSWORD} | self._files
        return [*super().command(), *(str(word) for name, value in options.items() for word in (f"--{name}", value))]

    def ready(self) -> bool:
        command = [
            "redis-cli",
            "--tls",
            "--insecure",
            "-p",
            str(self.port),
            "--no-auth-warning",
            "-a",
            PASSWORD,
            "PING",
        ]
        return subprocess.run(command, capture_output=True, check=False).stdout == b"PONG\n"


class ClusterNode(Redis):
    """A Cluster of one node. It has every slot, and sends nobody elsewhere; the client cannot know."""

    def url_at(self, port: int) -> str:
        return f"redis+cluster://127.0.0.1:{port}"

    def command(self) -> list[str]:
        return [*super().command(), "--cluster-enabled", "yes", "--cluster-port", str(free_port())]

    def start(self) -> None:
        super().start()
        redis_cli(self.port, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        while "cluster_state:ok" not in redis_cli(self.port, "CLUSTER", "INFO"):
            time.sleep(0.02)


class Replica(Redis):
    def __init__(self, of: Redis) -> None:
        super().__init__()
        self._of = of

    def command(self) -> list[str]:
        return [*super().command(), "--replicaof", f"127.0.0.1 {self._of.port}"]


class Sentinel(Redis):
    """One that alone decides that a master is dead."""

    def __init__(self, master: Redis) -> None:
        super().__init__()
        self._master = master

    def url_at(self, port: int) -> str:
        return f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/gate/0"  # the first is down

    def command(self) -> list[str]:
        settings = self.folder / "sentinel.conf"
        settings.write_text(
            f"port {self.port}\nbind 127.0.0.1\nsentinel monitor gate 127.0.0.1 {self._master.port} 1\n"
            "sentinel down-after-milliseconds gate 300\nsentinel failover-timeout gate 1000\n"
        )
        return ["redis-server", str(settings), "--sentinel"]


def redis_cli(port: int, *words: str) -> str:
    return subprocess.run(["redis-cli", "-p", str(port), *words], capture_output=True, text=True, check=True).stdout


@contextmanager
def running(server: Redis) -> Iterator[Redis]:
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """For 127.0.0.1, by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = (tmp_path / "certificate.pem", tmp_path / "key.pem")
    paths[0].write_bytes(built.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(LIMIT_S):
            await scenario

    uvloop.run(main())


def new_message() -> Message:
    return Message("0198c0de-0000-7000-8000-000000000001", "123e4567-e89b-12d3-a456-426614174000", 1, b"sealed")


async def use(url: str) -> None:
    """All that is asked of a server, once."""
    queue = await RedisQueue.open(url, max_size=10, consumer="first", lease_ms=800)
    try:
        await queue.check()
        message = new_message()
        await queue.put(message)
        assert (await queue.depth()).waiting == 1
        assert await queue.find(message.request_id)
        (delivery,) = await queue.receive(1)
        assert delivery.message == message
        other = await RedisQueue.open(url, max_size=10, consumer="second", lease_ms=800)
        await queue.close()
        (delivery,) = await other.receive(1)
        await other.ack(delivery)
        while await other.find(message.request_id):
            await asyncio.sleep(0.01)
        await other.close()
    finally:
        await queue.close()
    cache = RedisCache(url, ttl_ms=1000)
    while not (await cache.look("token", "station"))[1]:
        await asyncio.sleep(0.01)
    assert await cache.confirmed("digest") is None
    assert cache.failure is None
    await cache.close()


def test_with_a_password_over_tls(redis_server: Server, certificate: tuple[Path, Path]) -> None:
    with running(SecuredRedis(*certificate)) as server:
        run(use(server.url))


def test_a_wrong_password_is_said_and_not_shown(redis_server: Server, certificate: tuple[Path, Path]) -> None:
    async def scenario(url: str) -> None:
        client = RedisServer(url, timeout_s=5, at_once=1)
        with pytest.raises(RedisUnavailable, match="password") as raised:
            await client.command("PING")
        assert "guessed" not in str(raised.value)
        await client.close()

    with running(SecuredRedis(*certificate)) as server:
        run(scenario(server.url.replace(QUOTED, "guessed")))


def test_a_certificate_that_nobody_vouches_for_is_refused(redis_server: Server, certificate: tuple[Path, Path]) -> None:
    async def scenario(url: str) -> None:
        client = RedisServer(url, timeout_s=5, at_once=1)
        with pytest.raises(RedisUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await client.command("PING")
        await client.close()

    with running(SecuredRedis(*certificate)) as server:
        run(scenario(server.url.partition("?")[0]))


def test_a_cluster(redis_server: Server) -> None:
    with running(ClusterNode()) as server:
        run(use(server.url))


def test_a_cluster_whose_node_was_restarted(redis_server: Server) -> None:
    async def scenario(server: Redis) -> None:
        queue = await RedisQueue.open(server.url, max_size=10, consumer="first")
        await queue.put(new_message())
        server.kill()
        async with asyncio.timeout(2):
            with pytest.raises(QueueUnavailable):
                await queue.put(new_message())
        Server.start(server)
        deliveries = []
        while not deliveries:
            try:
                deliveries = await queue.receive(1)
            except QueueUnavailable:
                await asyncio.sleep(0.05)
        assert not deliveries[0].fresh
        await queue.close()

    with running(ClusterNode()) as server:
        run(scenario(server))


def test_the_master_behind_sentinels_and_its_successor(redis_server: Server) -> None:
    async def scenario(master: Redis, replica: Redis, url: str) -> None:
        await use(url)
        while f"port={replica.port},state=online" not in redis_cli(master.port, "INFO", "replication"):
            await asyncio.sleep(0.05)
        while f"127.0.0.1:{replica.port}" not in redis_cli(sentinel.port, "SENTINEL", "REPLICAS", "gate"):
            await asyncio.sleep(0.05)
        queue = await RedisQueue.open(url, max_size=10, consumer="first")
        await queue.put(new_message())
        redis_cli(master.port, "WAIT", "1", "0")
        master.kill()
        async with asyncio.timeout(2):
            with pytest.raises(QueueUnavailable):
                await queue.put(new_message())
        while True:
            try:
                await queue.put(new_message())
                break
            except QueueUnavailable:
                await asyncio.sleep(0.1)
        received = 0
        while received < 2:
            try:
                deliveries = await queue.receive(1)
            except QueueUnavailable:
                await asyncio.sleep(0.05)
            else:
                received += len(deliveries)
        await queue.close()

    with (
        running(Redis()) as master,
        running(Replica(master)) as replica,
        running(Sentinel(master)) as sentinel,
    ):
        run(scenario(master, replica, sentinel.url))


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis:///0",
        "http://host",
        "redis+unix://host",
        "redis://host/zero",
        "redis://one,two/0",
        "redis://user:secret@host:port",
        "redis://user:sec/ret@host",
        "redis://host?colour=red",
        "redis+sentinel://one,two",
        "redis+sentinel://one,two/service/zero",
        "redis+cluster://one,two/1",
    ],
)
def test_a_wrong_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - each has its own words
        RedisServer(url, timeout_s=1, at_once=1)
    assert "sec" not in str(raised.value)


def test_what_is_asked_while_a_batch_is_under_way_goes_together() -> None:
    async def scenario() -> None:
        batches: list[list[int]] = []
        first_is_over = asyncio.Event()

        async def double(numbers: Any) -> list[int]:
            batches.append(numbers)
            await first_is_over.wait()
            return [2 * number for number in numbers]

        asked = Batches(double, most=3)
        answers = [asyncio.ensure_future(asked.ask(number)) for number in (1, 2)]
        while not batches:
            await asyncio.sleep(0)
        answers += [asyncio.ensure_future(asked.ask(number)) for number in (3, 4, 5, 6)]
        await asyncio.sleep(0)
        answers[3].cancel()
        first_is_over.set()
        done = await asyncio.gather(*answers, return_exceptions=True)
        assert isinstance(done.pop(3), asyncio.CancelledError)
        assert done == [2, 4, 6, 10, 12]
        assert batches == [[1, 2], [3, 4, 5], [6]]

    run(scenario())


def test_a_failed_batch_fails_those_behind_it_and_none_after() -> None:
    async def scenario() -> None:
        failing = True
        tried: list[Any] = []

        async def fail(numbers: Any) -> Any:
            tried.append(numbers)
            await asyncio.sleep(0)
            if failing:
                raise RedisUnavailable("gone")
            return numbers

        asked = Batches(fail, most=1)
        outcomes = await asyncio.gather(*map(asked.ask, range(5)), return_exceptions=True)
        assert {str(outcome) for outcome in outcomes} == {"gone"}
        assert tried == [[0]]
        failing = False
        assert await asked.ask(7) == 7

    run(scenario())
