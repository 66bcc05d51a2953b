"""A server that is away, or not what a URL says, is one line that names the key, and exit 1. SIGTERM ends a start."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from outside import eventually
from ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers.server import Server

Run = Callable[..., Any] if TYPE_CHECKING else Any
Start = Callable[..., subprocess.Popen[str]] if TYPE_CHECKING else Any
Set = Callable[..., None] if TYPE_CHECKING else Any

SECRET = "hunter2SECRET"
REQUEST = {
    "station_id": str(uuid.uuid4()),
    "driver_token": "driver-token.0123456789",
    "callback_url": "https://receiver.example/",
}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets keys, with ``__`` for the dots; all others are the defaults, on free ports, and only errors are logged."""

    def configure(**values: str | int) -> None:
        for name, value in values.items():
            monkeypatch.setenv("CHARGEGATE_" + name.upper(), str(value))

    configure(server__port=0, worker__port=0, logging__level="error")
    return configure


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections, and says nothing."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as listening:
        listening.settimeout(30)
        yield listening


def port_of(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


def refused(result: Any, key: str, *words: str) -> None:
    assert result.code == 1, result
    (line,) = result.err.splitlines()
    assert line.startswith(f"chargegate: {key}: ")
    for word in words:
        assert word in line
    for text in (SECRET, " object at ", " exception"):
        assert text not in line


@pytest.mark.parametrize(
    "rest",
    [
        f"u:{SECRET}@127.0.0.1:x{SECRET}/1",
        f"u:{SECRET}/{SECRET}@127.0.0.1/1",
        f"u:{SECRET}?{SECRET}@127.0.0.1/1",
        f"u:{SECRET}\u2100@127.0.0.1/1",
        f"u:{SECRET}@[::1/1",
    ],
    ids=["port", "slash", "question", "nfkc", "bracket"],
)
@pytest.mark.parametrize(
    ("key", "scheme"),
    [
        ("queue__url", "postgresql"),
        ("queue__url", "redis"),
        ("queue__url", "amqp"),
        ("queue__url", "kafka"),
        ("database__url", "postgresql"),
        ("cache__url", "redis"),
    ],
)
def test_a_url_that_is_malformed(run: Run, settings: Set, key: str, scheme: str, rest: str) -> None:
    settings(**{key: f"{scheme}://{rest}"})
    refused(run("worker"), key.replace("__", "."), "percent-encoded")
    shown = run("config", "show")
    assert SECRET not in shown.out + shown.err


@pytest.mark.parametrize(
    ("key", "url", "said"),
    [
        ("queue__url", "redis://127.0.0.1/0?frobnicate=1", "frobnicate"),
        ("queue__url", "redis://127.0.0.1/one", "number"),
        ("cache__url", "redis+sentinel://127.0.0.1", "service"),
        ("queue__url", "amqp://127.0.0.1/?frobnicate=1", "frobnicate"),
        ("queue__url", "amqp://127.0.0.1/?heartbeat=soon", "heartbeat"),
        ("queue__url", "kafka://127.0.0.1:9092/t?frobnicate=1", "frobnicate"),
        ("queue__url", f"kafka://u:{SECRET}@127.0.0.1:9092/t", "sasl_mechanism"),
        ("queue__url", "postgresql://127.0.0.1/d?table=No", "table"),
        ("database__url", "postgresql://127.0.0.1/d?sslmode=frob", "PostgreSQL"),
    ],
)
def test_a_part_of_a_url_that_is_wrong(run: Run, settings: Set, key: str, url: str, said: str) -> None:
    settings(**{key: url})
    refused(run("serve"), key.replace("__", "."), said)


@pytest.mark.parametrize("role", ["api", "worker"])
@pytest.mark.parametrize(
    "url", ["postgresql://{}/d", "redis://{}", "redis+sentinel://{}/main", "redis+cluster://{}", "amqp://{}"]
)
def test_a_queue_whose_server_is_away(run: Run, settings: Set, url: str, role: str) -> None:
    settings(queue__url=url.format(f"u:{SECRET}@127.0.0.1:{free_port()}"))
    refused(run(role), "queue.url")


def test_a_database_that_is_away_keeps_a_worker_from_starting(run: Run, settings: Set, redis_server: Server) -> None:
    database = f"postgresql://u:{SECRET}@127.0.0.1:{free_port()}/d"
    settings(queue__url=redis_server.url, database__url=database)
    refused(run("worker"), "database.url", "refused")


def test_redis_refuses_who_asks(run: Run, settings: Set, redis_server: Server) -> None:
    settings(queue__url=redis_server.url.replace("//", f"//nobody:{SECRET}@"))
    refused(run("api"), "queue.url", "password")


def test_postgresql_refuses_who_asks(run: Run, settings: Set, postgres_server: Server) -> None:
    settings(queue__url=f"postgresql://nobody:{SECRET}@{postgres_server.url.partition('@')[2]}")
    refused(run("api"), "queue.url", '"nobody" does not exist')
    settings(queue__url=f"{postgres_server.url}-not-there")
    refused(run("worker"), "queue.url", "-not-there", "does not exist")


def test_rabbitmq_refuses_who_asks(run: Run, settings: Set, rabbitmq_server: Server) -> None:
    settings(queue__url=rabbitmq_server.url.replace("guest@", f"{SECRET}@"))
    refused(run("api"), "queue.url", "ACCESS_REFUSED")
    settings(queue__url=f"{rabbitmq_server.url}not-there")
    refused(run("worker"), "queue.url", "virtual host")


@pytest.mark.parametrize(
    ("module", "key", "extra", "url"),
    [
        ("redis", "queue__url", "redis", "redis://127.0.0.1"),
        ("redis", "cache__url", "redis", "redis://127.0.0.1"),
        ("asyncpg", "queue__url", "postgres", "postgresql://127.0.0.1/d"),
        ("asyncpg", "database__url", "postgres", "postgresql://127.0.0.1/d"),
        ("confluent_kafka", "queue__url", "kafka", "kafka://127.0.0.1:9092"),
        ("aio_pika", "queue__url", "rabbitmq", "amqp://127.0.0.1"),
    ],
)
def test_an_extra_that_is_not_installed(settings: Set, module: str, key: str, extra: str, url: str) -> None:
    settings(**{key: url})
    code = f"import sys; sys.modules[{module!r}] = None; from chargegate import cli; sys.exit(cli.main(['serve']))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"chargegate: {key.replace('__', '.')}: needs `pip install 'chargegate[{extra}]'` ({module}")


def test_a_workers_port_that_is_taken(run: Run, settings: Set, silent: socket.socket, redis_server: Server) -> None:
    settings(queue__url=redis_server.url, worker__port=port_of(silent))
    refused(run("worker"), "worker.port", str(port_of(silent)))


@pytest.mark.parametrize("scheme", ["postgresql", "redis", "amqp", "kafka"])
def test_sigterm_ends_a_start_that_waits_for_a_queue(
    start: Start, settings: Set, silent: socket.socket, scheme: str
) -> None:
    settings(queue__url=f"{scheme}://127.0.0.1:{port_of(silent)}")
    ended_by_sigterm(start("worker"), silent)


def test_sigterm_ends_a_start_that_waits_for_the_database(start: Start, settings: Set, silent: socket.socket) -> None:
    settings(queue__url="redis://127.0.0.1", database__url=f"postgresql://127.0.0.1:{port_of(silent)}")
    ended_by_sigterm(start("worker"), silent)


def ended_by_sigterm(process: subprocess.Popen[str], silent: socket.socket) -> None:
    with contextlib.closing(silent.accept()[0]):
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=9)  # less than the starts would take by themselves
    assert (process.returncode, said) == (0, "")


def is_ready(port: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5).status == 200)
    return False


def test_an_answer_under_way_is_given_before_an_api_ends(start: Start, settings: Set, redis_server: Server) -> None:
    port = free_port()
    with redis_server.proxied() as proxy:
        settings(queue__url=proxy.url, server__port=port)
        process = start("api")
        eventually(lambda: is_ready(port))
        proxy.delay(600)  # and as much on the way back
        body = json.dumps(REQUEST).encode()
        head = f"POST /api/v1/charging-session HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(f"{head}content-type: application/json\r\nexpect: 100-continue\r\n\r\n".encode())
            assert client.recv(1000).startswith(b"HTTP/1.1 100 ")  # it is being answered
            client.sendall(body)
            process.send_signal(signal.SIGTERM)
            assert client.recv(1000).startswith(b"HTTP/1.1 202 ")
        assert process.wait(10) == 0


def test_an_api_with_other_keys_ends_when_the_database_is_back(
    run: Run, start: Start, settings: Set, postgres_server: Server, redis_server: Server
) -> None:
    """Nobody could ever open what it accepts."""
    settings(database__url=postgres_server.url, data_dir="theirs")
    assert run("acl", "add", "-", stdin="driver-token.0123456789\n").code == 0
    port = free_port()
    with postgres_server.proxied() as proxy:
        settings(queue__url=redis_server.url, database__url=proxy.url, data_dir="ours", server__port=port)
        proxy.reset()
        process = start("api")
        eventually(lambda: is_ready(port))
        proxy.heal()
        _, said = process.communicate(timeout=15)
    assert process.returncode == 1
    (line,) = said.splitlines()
    assert line.startswith("chargegate: security.token_hash_key: ")
