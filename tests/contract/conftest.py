"""The service as anyone outside has it: a command, files in a folder, sockets. Nothing of its code is imported."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import httpx
import pytest

T = TypeVar("T")

COMMAND = str(Path(sys.executable).with_name("chargegate"))
PATH = "/api/v1/charging-session"
LOOPBACK = {"callback.allowed_networks": ["127.0.0.0/8"]}
FINAL = {"COMPLETED", "FAILED", "TIMEOUT"}


def _eventually(condition: Callable[[], T], limit_s: float = 20, why: str = "it did not happen in time") -> T:
    """Wait until the condition is true, and return what it gave."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, why
        time.sleep(0.01)
    return value


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    return _eventually


@dataclass(frozen=True)
class Call:
    """A request that a site was sent. ``at`` is in Unix seconds."""

    at: float
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """How a site answers. ``held``: once ``release`` says so; ``dripped``: a byte now and then, never to the end;
    ``cut``: the connection ends without an answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    how: Literal["at_once", "held", "dripped", "cut"] = "at_once"

    def content(self) -> bytes:
        named = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        length = 10_000 if self.how == "dripped" else len(self.body)
        return f"HTTP/1.1 {self.status} X\r\ncontent-length: {length}\r\n{named}\r\n".encode() + self.body


def verdict(status: str, reason: str = "", **reply: Any) -> Reply:
    """An authorizer's answer."""
    return Reply(200, json.dumps({"status": status, "reason": reason}).encode(), **reply)


class Site:
    """A real HTTP server in a thread. It records every request, and answers each ``key`` (by default its path) with
    the replies that were planned for it, the last of them again and again; anything else with ``otherwise``."""

    def __init__(
        self,
        otherwise: Callable[[Call], Reply] = lambda _call: Reply(),
        key: Callable[[Call], str] = lambda call: call.path,
    ) -> None:
        self.calls: list[Call] = []
        self.connected = self.most_connected = 0
        self.port = 0
        self._otherwise = otherwise
        self._key = key
        self._plans: dict[str, list[Reply]] = {}
        self._gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.up()

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        """An address of this site; without a path, one that nothing else uses."""
        return f"http://{host}:{self.port}{path or '/' + uuid.uuid4().hex}"

    def plan(self, key: str, *replies: Reply) -> None:
        self._plans[_path_of(key)] = list(replies)

    def planned(self, *replies: Reply) -> str:
        """A fresh address that answers so."""
        url = self.url()
        self.plan(url, *replies)
        return url

    def release(self, key: str) -> None:
        """Let every reply that is or will be held for this key go."""
        self._in_loop(self._release(_path_of(key)))

    def calls_to(self, key: str) -> list[Call]:
        path = _path_of(key)
        return [call for call in list(self.calls) if self._key(call) == path]

    def up(self) -> None:
        """Listen, on the same port as before."""
        self._in_loop(self._up())

    def down(self) -> None:
        """Refuse connections, and end those that are open."""
        self._in_loop(self._down())

    def close(self) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(20)

    async def _release(self, path: str) -> None:
        self._gates[path].set()

    async def _up(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1000)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connected += 1
        self.most_connected = max(self.most_connected, self.connected)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the caller left, or this site goes down
        finally:
            self.connected -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        call = Call(time.time(), first.split(" ")[1], headers, body)
        self.calls.append(call)
        key = self._key(call)
        plan = self._plans.get(key)
        reply = self._otherwise(call) if plan is None else plan.pop(0) if len(plan) > 1 else plan[0]
        if reply.how == "held":
            await self._gates[key].wait()
        if reply.how == "cut":
            return False
        writer.write(reply.content())
        while reply.how == "dripped":
            await asyncio.sleep(0.05)
            writer.write(b"x")
            await writer.drain()
        await writer.drain()
        return True


def _path_of(key: str) -> str:
    return re.sub(r"https?://[^/]+", "", key)


class Asked(NamedTuple):
    """A request that was accepted, as its client knows it."""

    request_id: str
    station_id: str
    driver_token: str
    callback_url: str


class Service:
    """A process that serves in a folder. Settings are the configuration file's, with dotted keys."""

    def __init__(self, folder: Path, settings: dict[str, Any], environ: dict[str, str]) -> None:
        self.folder = folder
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.csv_file = folder / "authorization_audit.log"
        self.data = folder / "data"
        self._key = ""
        self.log_file = folder / "service.log"
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("CHARGEGATE_")}
        self._environ |= environ
        self._client: httpx.Client | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.configure(**settings)

    def configure(self, **settings: Any) -> None:
        """Write the configuration file; JSON's values are TOML's."""
        values = {"server.port": self.port, **LOOPBACK, **settings}
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
        (self.folder / "chargegate.toml").write_text("".join(lines))

    def spawn(self, *launcher: str) -> subprocess.Popen[bytes]:
        """Start it without waiting for anything."""
        command = [*(launcher or [COMMAND]), "serve", "--config", "chargegate.toml"]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self.process

    def start(self, *launcher: str) -> "Service":
        """Start it and wait until it is ready."""
        process = self.spawn(*launcher)
        _eventually(lambda: process.poll() is not None or self.ready() == 200, 30, "not ready in time")
        assert process.poll() is None, self.log
        return self

    @property
    def client(self) -> httpx.Client:
        if self._client is None:
            headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
            self._client = httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=30)
        return self._client

    def sign_in(self, key: str) -> None:
        """Present this access key from now on."""
        self._forget_connections()
        self._key = key

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.is_file() else ""

    def ready(self) -> int:
        """The status of the readiness probe; 0 where nobody answers."""
        try:
            return self.client.get("/health/ready").status_code
        except httpx.TransportError:
            return 0

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def ended(self, limit_s: float = 40) -> int:
        """Wait for the process to end; its exit code."""
        assert self.process is not None
        code = self.process.wait(limit_s)
        self._forget_connections()
        return code

    def stop(self) -> int:
        self.terminate()
        return self.ended()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.ended()

    def restart(self) -> None:
        """Stop it in order, and start it again in the same folder."""
        assert self.stop() == 0, self.log
        self.start()

    def _forget_connections(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def body(self, callback_url: str, **fields: Any) -> dict[str, Any]:
        """The body of a request that nobody made before."""
        return {
            "station_id": str(uuid.uuid4()),
            "driver_token": f"driver-{uuid.uuid4().hex}",
            "callback_url": callback_url,
        } | fields

    def post(self, body: Any, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(PATH, json=body, headers=named)

    def ask(self, callback_url: str, *, headers: dict[str, str] | None = None, **fields: Any) -> Asked:
        """Make a request and see it accepted."""
        body = self.body(callback_url, **fields)
        answer = self.post(body, **(headers or {}))
        assert answer.status_code == 202, answer.text
        return Asked(answer.json()["request_id"], **body)

    def allow(self, **entry: Any) -> str:
        """Put a token into the access list; the token."""
        token = f"listed-{uuid.uuid4().hex}"
        answer = self.client.put("/api/v1/acl", json={"driver_token": token, **entry})
        assert answer.status_code == 200, answer.text
        return token

    def session(self, request_id: str) -> dict[str, Any]:
        answer = self.client.get(f"{PATH}/{request_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def finished(self, asked: Asked, limit_s: float = 30) -> dict[str, Any]:
        """Wait until a request has come to its end; what is known of it then."""

        def final() -> dict[str, Any] | None:
            found = self.session(asked.request_id)
            return found if found["status"] in FINAL else None

        return _eventually(final, limit_s, "the request came to no end")

    def metrics(self) -> dict[str, float]:
        """Every sample by its name and labels, as they are written."""
        text = self.client.get("/metrics").text
        pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def csv_rows(self) -> list[list[str]]:
        """The audit log's lines, without the header."""
        lines = self.csv_file.read_text().splitlines()
        assert lines[0] == "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms"
        return [line.split(",") for line in lines[1:]]

    def audit_rows(self) -> list[tuple[str, str, str]]:
        """Request id, status and reason of each row of ``authorization_audit``, of a service that is stopped."""
        with contextlib.closing(sqlite3.connect(self.data / "chargegate.db")) as database:
            return database.execute("SELECT request_id, status, reason FROM authorization_audit").fetchall()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(*, started: bool = True, environ: dict[str, str] | None = None, **settings: Any) -> Service:
        """Keys are written with ``__`` for the dots: ``queue__max_size=1``."""
        named = {name.replace("__", "."): value for name, value in settings.items()}
        made.append(Service(tmp_path_factory.mktemp("service"), named, environ or {}))
        return made[-1].start() if started else made[-1]

    try:
        yield make
    finally:
        for service in made:
            service.kill()


@contextlib.contextmanager
def _sites() -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(*arguments: Any) -> Site:
        made.append(Site(*arguments))
        return made[-1]

    try:
        yield make
    finally:
        for site in made:
            site.close()


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Makes services of one test."""
    with _services(tmp_path_factory) as make:
        yield make


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Makes services that the tests of a file share."""
    with _services(tmp_path_factory) as make:
        yield make


@pytest.fixture
def site() -> Iterator[Callable[..., Site]]:
    """Makes sites of one test."""
    with _sites() as make:
        yield make


@pytest.fixture(scope="module")
def receiver() -> Iterator[Site]:
    """Receives callbacks; 200 to all that is not planned."""
    with _sites() as make:
        yield make()


@pytest.fixture(scope="module")
def authorizer() -> Iterator[Site]:
    """A microservice that decides, told per token; without a plan it allows."""
    with _sites() as make:
        yield make(lambda _call: verdict("allowed"), lambda call: call.json["driver_token"])


@pytest.fixture(scope="session")
def command() -> str:
    """The command as it was installed."""
    return COMMAND


@pytest.fixture(scope="session")
def reply() -> type[Reply]:
    return Reply


@pytest.fixture(scope="session")
def answer() -> Callable[..., Reply]:
    """Makes an authorizer's answer from a status and a reason."""
    return verdict
