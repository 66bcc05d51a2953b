"""The HTTP surface over real sockets, in a thread with a loop of its own, on a real database."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import uvloop
from starlette.types import ASGIApp

from chargegate.api import Parts, Server, build
from chargegate.delivering.guard import AddressGuard
from chargegate.engines.memory.queue import MemoryQueue
from chargegate.engines.redis.cache import RedisCache
from chargegate.engines.sqlite.access_list import SqliteAccessList
from chargegate.engines.sqlite.anomalies import SqliteAnomalies
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.counts import SqliteCounts
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.keys import AccessKeys, Keyring
from chargegate.ledger.records import Finished
from chargegate.model import ChargingRequest, Decision, RequestStatus, Status, new_request_id
from chargegate.observe import Metrics
from chargegate.operations.health import Component
from chargegate.queues.base import Message, Queue
from chargegate.queues.envelope import seal_dead_letter
from outside import PLAIN

T = TypeVar("T")

TOKEN = "a.Driver_Token~0123456789-abcdef"
STATION = "6F9619FF-8B86-D011-B42D-00C04FC964FF"
BODY = {"station_id": STATION, "driver_token": TOKEN, "callback_url": "https://example.com/callback?session=1"}
SESSION = "/api/v1/charging-session"


class Service:
    """A served surface. ``run`` runs a coroutine where the service runs."""

    def __init__(self, directory: Path, options: dict[str, Any]) -> None:
        self.changed: list[frozenset[str]] = []
        self.draining = False
        self.server = Server()
        self._directory = directory
        self._options = options
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.run(self._start())
        self.port = self.server.port
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, verify=PLAIN)

    async def _start(self) -> None:
        options = dict(self._options)
        keys = AccessKeys(options.pop("keys", []))
        timeout_ms = options.pop("request_timeout_ms", 10_000)
        size = options.pop("queue_size", 100)
        wrap: Callable[[ASGIApp], ASGIApp] = options.pop("wrap", lambda app: app)
        self.store = await SqliteStore.open(self._directory / "api.db", ALL_TABLES, exclusive=False)
        self.queue: Queue = options.pop("queue", None) or MemoryQueue(size)
        self.ledger = SqliteLedger(self.store)
        self.access_list = SqliteAccessList(self.store)
        self.keyring = Keyring([b"k" * 32], b"h" * 32)
        self.metrics = Metrics()
        cache = options.pop("cache", None)
        self.shared = RedisCache(cache[0], ttl_ms=60_000, name=cache[1]) if cache else None
        everything = {
            "claims": self.shared,
            "queue": self.queue,
            "ledger": self.ledger,
            "counts": SqliteCounts(self.store),
            "anomalies": SqliteAnomalies(self.store),
            "access_list": self.access_list,
            "keyring": self.keyring,
            "access_keys": keys,
            "metrics": self.metrics,
            "check_address": AddressGuard(["192.0.2.0/24"]).check,
            "access_changed": self.changed.append,
            "components": {"queue": self._up, "database": self._up},
            "draining": lambda: self.draining,
            "queue_size": size,
            "queue_share": 0.5,
            "require_https": False,
            "max_body_bytes": 16384,
            "rate_limit_per_second": 0.0,
            "rate_limit_burst": 0,
            "metrics_enabled": True,
            "health_enabled": True,
        }
        self.parts = Parts(**{**everything, **options})
        await self.server.start(wrap(build(self.parts)), "127.0.0.1", 0, request_timeout_ms=timeout_ms)

    async def _up(self) -> Component:
        return Component("UP", {"note": "well"})

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _stop(self) -> None:
        await self.server.stop(0.2)
        if self.shared is not None:
            await self.shared.close()
        await self.store.close()

    def close(self) -> None:
        self.http.close()
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def accepted(self) -> int:
        """How many requests are in the queue."""
        return self.run(self.queue.depth()).waiting

    def received(self) -> list[Message]:
        """The messages that are in the queue; they stay taken."""
        return [delivery.message for delivery in self.run(self.queue.receive(1000))] if self.accepted() else []

    def counted(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("charging_requests_total", {"outcome": outcome}) or 0

    def decide(
        self, status: Status = Status.ALLOWED, reason: str = "", at: int = 1_700_000_000_000, **named: Any
    ) -> Decision:
        """A decision in the ledger, as the worker would leave it."""
        decision = Decision(
            named.get("request_id") or new_request_id(),
            named.get("station_id", STATION),
            "0123456789abcdef",
            status,
            reason,
            12,
            at,
        )
        self.run(self.ledger.record(decision, at - 100))
        return decision

    def give_up(self, at: int = 1_700_000_000_000) -> Decision:
        """A dead letter in the ledger."""
        decision = self.decide(at=at)
        request = ChargingRequest(decision.request_id, STATION, TOKEN, BODY["callback_url"], at)
        sealed = seal_dead_letter(self.keyring, request, decision)
        self.run(
            self.ledger.finish(
                Finished(decision.request_id, RequestStatus.FAILED, 3, 500, "status_500", at + 9, sealed)
            )
        )
        return decision


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start a service; options are those of ``Parts``, and keys, queue_size, request_timeout_ms, folder (of its
    ledger), and cache: Redis's URL and a name there."""
    started: list[Service] = []

    def start(**options: Any) -> Service:
        service = Service(options.pop("folder", tmp_path), options)
        started.append(service)
        return service

    yield start
    for service in started:
        service.close()


@pytest.fixture
def service(serve: Callable[..., Service]) -> Service:
    return serve()


@pytest.fixture
def client(service: Service) -> httpx.Client:
    return service.http


class Raw:
    """A bare connection, for what no HTTP library would send."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers in lower case, body."""
        file = self._file
        status = int(file.readline().split()[1])
        headers: dict[str, str] = {}
        while (line := file.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        body = file.read(int(headers.get("content-length", "0")))
        return status, headers, body

    def rest(self) -> bytes:
        """Everything until the server closes; a reset counts as closed."""
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := self._file.read1():
                received += data
        return received

    def end(self) -> bytes:
        """Everything until the server closes in good order: a reset is an error."""
        return self._file.read()

    def statuses(self, count: int) -> list[int]:
        """The statuses of the next answers."""
        return [self.answer()[0] for _ in range(count)]

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture
def raw(service: Service) -> Iterator[Callable[[], Raw]]:
    opened: list[Raw] = []

    def connect(port: int | None = None) -> Raw:
        opened.append(Raw(port or service.port))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def eventually(holds: Callable[[], bool], limit_s: float = 20) -> None:
    """Wait until a condition holds, or fail."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
