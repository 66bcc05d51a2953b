"""Every kind of Redis URL, each against real servers of its kind."""

import asyncio
import datetime as dt
import ipaddress
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from chargegate.engines.redis.cache import RedisCache
from chargegate.engines.redis.connection import RedisServer
from chargegate.engines.redis.queue import RedisQueue
from chargegate.model import new_request_id
from chargegate.queues.base import Message, QueueUnavailable
from chargegate.storage.unavailable import Unavailable
from ports import free_port
from scenario import run
from servers.engines import Redis
from servers.proxy import Proxy
from servers.server import Server

PASSWORD = "p@ss/w:rd"
QUOTED = "p%40ss%2Fw%3Ard"

MakeMessage = Callable[..., Message]
T = TypeVar("T")


class SecuredRedis(Redis):
    """A server that wants a password, and listens over TLS only."""

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
    """A Cluster of one node, which has every slot; its client must work as with many."""

    def url_at(self, port: int) -> str:
        return f"redis+cluster://127.0.0.1:{port}"

    def __init__(self) -> None:
        super().__init__()
        self.bus = free_port()

    def command(self) -> list[str]:
        return [*super().command(), "--cluster-enabled", "yes", "--cluster-port", str(self.bus)]

    def start(self) -> None:
        super().start()
        redis_cli(self.port, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        while "cluster_state:ok" not in redis_cli(self.port, "CLUSTER", "INFO"):
            time.sleep(0.02)


class PartOfCluster(ClusterNode):
    """A node that has no slots yet."""

    def start(self) -> None:
        Redis.start(self)

    @property
    def node_id(self) -> str:
        return redis_cli(self.port, "CLUSTER", "MYID").strip()


class OnASmallDisk(Redis):
    """A server whose files can be kept from growing."""

    def __init__(self, fsync: str) -> None:
        super().__init__()
        self._fsync = fsync

    def command(self) -> list[str]:
        # A full disk is an error of the write, not a signal.
        return ["/bin/sh", "-c", 'trap \'\' XFSZ; exec "$0" "$@"', *super().command(), "--appendfsync", self._fsync]

    def fill(self, *, leaving: int) -> None:
        (log,) = self.data.glob("*/*.incr.aof")
        self._limit(log.stat().st_size + leaving)

    def make_room(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        assert self._process is not None
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class Replica(Redis):
    def __init__(self, of: Redis) -> None:
        super().__init__()
        self._of = of

    def command(self) -> list[str]:
        return [*super().command(), "--replicaof", f"127.0.0.1 {self._of.port}"]


class Sentinel(Redis):
    """A Sentinel that decides alone that a master is dead."""

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


async def until_it_is_done(port: int, *words: str) -> None:
    """``redis-cli`` exits with 0 also where a server refuses a command, as one does that has not heard of another."""
    async with asyncio.timeout(30):
        while redis_cli(port, *words).strip() not in ("OK", "NOKEY"):
            await asyncio.sleep(0.1)


@contextmanager
def running(server: Redis) -> Iterator[Redis]:
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
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


def new_message() -> Message:
    return Message("0198c0de-0000-7000-8000-000000000001", "123e4567-e89b-12d3-a456-426614174000", 1, b"sealed")


async def use(url: str) -> None:
    """Use every command of the queue and the cache once."""
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
        with pytest.raises(Unavailable, match="password") as raised:
            await client.command("PING")
        assert "guessed" not in str(raised.value)
        await client.close()

    with running(SecuredRedis(*certificate)) as server:
        run(scenario(server.url.replace(QUOTED, "guessed")))


def test_a_certificate_that_nobody_vouches_for_is_refused(redis_server: Server, certificate: tuple[Path, Path]) -> None:
    async def scenario(url: str) -> None:
        client = RedisServer(url, timeout_s=5, at_once=1)
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
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
        run(scenario(master, replica, sentinel.url), 90)


def test_sentinels_that_are_silent_are_passed_over_in_time(redis_server: Server) -> None:
    async def scenario(sentinel: Redis) -> None:
        deaf = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
        others = ",".join(f"127.0.0.1:{each.getsockname()[1]}" for each in deaf)
        client = RedisServer(f"redis+sentinel://{others},127.0.0.1:{sentinel.port}/gate", timeout_s=1.5, at_once=1)
        assert await client.command("PING")
        await client.close()
        for each in deaf:
            each.close()

    with running(Redis()) as master, running(Sentinel(master)) as sentinel:
        run(scenario(sentinel))


def test_a_name_that_leads_to_a_new_master_is_followed(redis_server: Server) -> None:
    async def scenario(first: Redis, second: Redis) -> None:
        with Proxy(first.port) as proxy:
            queue = await RedisQueue.open(first.url_at(proxy.port), max_size=100, consumer="first")
            await queue.put(new_message())
            await queue.ack(*await queue.receive(1))
            while await queue.find(new_message().request_id):
                await asyncio.sleep(0.01)
            proxy._target = second.port  # of new connections; the old ones stay
            redis_cli(first.port, "REPLICAOF", "127.0.0.1", str(second.port))
            while True:
                try:
                    await queue.put(new_message())
                    (delivery,) = await queue.receive(1)
                    break
                except QueueUnavailable:
                    await asyncio.sleep(0.01)
            assert "role:slave" in redis_cli(first.port, "INFO", "replication")
            assert delivery.message == new_message()
            await queue.close()
            first.kill()  # in order, it would wait for a copy to end
            second.kill()

    with running(Redis()) as first, running(Redis()) as second:
        run(scenario(first, second))


async def until_it_does(asked: Callable[[], Coroutine[Any, Any, T]]) -> T:
    while True:
        try:
            return await asked()
        except QueueUnavailable:
            await asyncio.sleep(0.05)


async def meet(first: PartOfCluster, *others: PartOfCluster) -> None:
    """Make one Cluster of them, in which the first node has all slots."""
    # Different from the start, as redis-cli makes them: of two equal ones the others would never follow the heir's.
    for epoch, node in enumerate((first, *others), 1):
        redis_cli(node.port, "CLUSTER", "SET-CONFIG-EPOCH", str(epoch))
    redis_cli(first.port, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    for other in others:
        redis_cli(first.port, "CLUSTER", "MEET", "127.0.0.1", str(other.port), str(other.bus))
    known = f"cluster_known_nodes:{1 + len(others)}"
    while any(known not in redis_cli(node.port, "CLUSTER", "INFO") for node in (first, *others)):
        await asyncio.sleep(0.02)


def slot_owner(asked: PartOfCluster, slot: str) -> str:
    """The id of the node that has the slot, as the asked node knows it."""
    for line in redis_cli(asked.port, "CLUSTER", "NODES").splitlines():
        node, _, _, _, _, _, _, _, *slots = line.split()
        for first, _, last in (each.partition("-") for each in slots if not each.startswith("[")):
            if int(first) <= int(slot) <= int(last or first):
                return node
    return ""


def test_a_cluster_that_hands_the_queue_over_and_then_loses_its_new_node(redis_server: Server) -> None:
    async def scenario(old: PartOfCluster, new: PartOfCluster, heir: PartOfCluster) -> None:
        await meet(old, new, heir)
        redis_cli(heir.port, "CLUSTER", "REPLICATE", new.node_id)
        while "cluster_state:ok" not in redis_cli(old.port, "CLUSTER", "INFO"):
            await asyncio.sleep(0.02)
        queue = await RedisQueue.open(old.url, max_size=10, consumer="first")
        await until_it_does(lambda: queue.put(new_message()))
        held = await until_it_does(lambda: queue.receive(1))
        await until_it_does(lambda: queue.put(new_message()))

        slot = redis_cli(old.port, "CLUSTER", "KEYSLOT", "{chargegate}").strip()
        await until_it_is_done(new.port, "CLUSTER", "SETSLOT", slot, "IMPORTING", old.node_id)
        await until_it_is_done(old.port, "CLUSTER", "SETSLOT", slot, "MIGRATING", new.node_id)
        keys = redis_cli(old.port, "CLUSTER", "GETKEYSINSLOT", slot, "10").split()
        there = ("127.0.0.1", str(new.port), "", "0", "5000", "REPLACE", "KEYS")
        await until_it_is_done(old.port, "MIGRATE", *there, *keys)
        for node in (new, old):
            await until_it_is_done(node.port, "CLUSTER", "SETSLOT", slot, "NODE", new.node_id)
        await until_it_does(lambda: queue.put(new_message()))
        assert redis_cli(new.port, "XLEN", "{chargegate}:queue").strip() == "3"
        held += await until_it_does(lambda: queue.receive(1))

        while f"port={heir.port},state=online" not in redis_cli(new.port, "INFO", "replication"):
            await asyncio.sleep(0.02)
        redis_cli(new.port, "WAIT", "1", "0")
        while redis_cli(heir.port, "--raw", "CONFIG", "GET", "cluster-enabled") and (
            "master_link_status:up" not in redis_cli(heir.port, "INFO", "replication")
        ):
            await asyncio.sleep(0.02)
        # A replica claims only those slots of its master's of which it has heard, and nobody tells it more afterwards.
        while slot_owner(heir, slot) != new.node_id:
            await asyncio.sleep(0.02)
        new.kill()
        async with asyncio.timeout(2):
            with pytest.raises(QueueUnavailable):
                await queue.put(new_message())
        redis_cli(heir.port, "CLUSTER", "FAILOVER", "TAKEOVER")
        await until_it_does(lambda: queue.put(new_message()))
        for _ in range(2):
            held += await until_it_does(lambda: queue.receive(1))
        assert len({delivery.handle for delivery in held}) == 4
        await queue.close()

    with running(PartOfCluster()) as old, running(PartOfCluster()) as new, running(PartOfCluster()) as heir:
        assert isinstance(old, PartOfCluster)
        assert isinstance(new, PartOfCluster)
        assert isinstance(heir, PartOfCluster)
        run(scenario(old, new, heir))


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_full_disk(redis_server: Server, fsync: str) -> None:
    """With the first setting the server ends itself; with the second it lives on and refuses writes."""

    async def scenario(server: OnASmallDisk) -> None:
        queue = await RedisQueue.open(server.url, max_size=10_000, consumer="first")
        stored = set()

        async def put_for_ever() -> None:
            while True:
                message = Message(new_request_id(), "station", 1, b"sealed")
                await queue.put(message)
                stored.add(message.request_id)

        server.fill(leaving=20_000)
        with pytest.raises(QueueUnavailable):
            await put_for_ever()
        with pytest.raises(QueueUnavailable):
            await queue.check()
        assert len(stored) > 10
        while fsync == "always" and server.running:  # it refuses before it has ended
            await asyncio.sleep(0.01)
        assert server.running == (fsync == "everysec")
        server.make_room() if server.running else server.start()
        await until_it_does(queue.check)
        while stored:
            for delivery in await until_it_does(lambda: queue.receive(100)):
                stored.discard(delivery.message.request_id)
        await queue.close()

    server = OnASmallDisk(fsync)
    with running(server):
        run(scenario(server))


GARBAGE = [
    b"",
    b"\0" * 64,
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    b"-\r\n",
    b"-\xff\xfe\r\n",
    b"-MOVED\r\n",
    b"-MOVED x y\r\n",
    b"-ASK 1 nowhere\r\n",
    b":nine\r\n",
    b"*-7\r\n",
    b"$99999999999999999999\r\nx",
    b"$10\r\nhalf",
]


@pytest.mark.parametrize("kind", ["redis", "redis+sentinel", "redis+cluster"])
def test_whatever_answers_there_it_is_said_to_be_unavailable(kind: str) -> None:
    """It may be a proxy's error page, another service's port, or an answer that was cut short."""

    async def scenario() -> None:
        answer = b""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(65536):
                writer.write(answer)
                if answer.endswith(b"half") or not answer:
                    break
            writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        path = "/gate" if kind == "redis+sentinel" else ""
        try:
            for answer in GARBAGE:  # noqa: B007 - what the server says
                queue = await RedisQueue.open(f"{kind}://127.0.0.1:{port}{path}", max_size=10, consumer="first")
                for asked in (queue.put(new_message()), queue.check(), queue.find("x"), queue.depth()):
                    with pytest.raises(QueueUnavailable):
                        await asked
                with pytest.raises(QueueUnavailable):
                    await queue.receive(1)
                await queue.close()
        finally:
            server.close()

    run(scenario())


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
