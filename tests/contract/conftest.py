"""The service as anyone outside has it: a command, files in a folder, sockets. Nothing of its code is imported."""

import contextlib
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

import outside
from outside import PLAIN, Reply, Site, sites, verdict
from ports import free_port

COMMAND = str(Path(sys.executable).with_name("chargegate"))
PATH = "/api/v1/charging-session"
LOOPBACK = {"callback.allowed_networks": ["127.0.0.0/8"]}
FINAL = {"COMPLETED", "FAILED", "TIMEOUT"}


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    return outside.eventually


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
        self.port = free_port()
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
        outside.eventually(lambda: process.poll() is not None or self.ready() == 200, 60, "not ready in time")
        assert process.poll() is None, self.log
        return self

    @property
    def client(self) -> httpx.Client:
        if self._client is None:
            headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
            self._client = httpx.Client(base_url=self.url, headers=headers, verify=PLAIN, trust_env=False, timeout=30)
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

    def decided(self, receiver: Site, count: int) -> set[str]:
        """The ids of so many new requests, which have all come to their end."""
        asked = [self.ask(receiver.url()) for _ in range(count)]
        return {each.request_id for each in asked if self.finished(each)}

    def run(self, *words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """A command beside the service, in its folder and with its environment, once it has ended."""
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def finished(self, asked: Asked, limit_s: float = 30) -> dict[str, Any]:
        """Wait until a request has come to its end; what is known of it then."""

        def final() -> dict[str, Any] | None:
            found = self.session(asked.request_id)
            return found if found["status"] in FINAL else None

        return outside.eventually(final, limit_s, "the request came to no end")

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
    with sites() as make:
        yield make


@pytest.fixture(scope="module")
def receiver() -> Iterator[Site]:
    """Receives callbacks; 200 to all that is not planned."""
    with sites() as make:
        yield make()


@pytest.fixture(scope="module")
def authorizer() -> Iterator[Site]:
    """A microservice that decides, told per token; without a plan it allows."""
    with sites() as make:
        yield make(lambda _call: verdict("allowed"), lambda call: call.json["driver_token"])


@pytest.fixture(scope="session")
def command() -> str:
    """The command as it was installed."""
    return COMMAND


@pytest.fixture
def audit(command: str) -> Callable[..., list[dict[str, Any]]]:
    """``chargegate audit … --json`` beside a service; what it wrote. ``largest_file``: the most bytes of a file."""

    def audit(
        service: Service, *arguments: str, code: int = 0, largest_file: int = 0, **environ: str
    ) -> list[dict[str, Any]]:
        def limit() -> None:
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, most))

        done = subprocess.run(
            [command, "audit", *arguments, "--json"],
            cwd=service.folder,
            env={**service._environ, **environ},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            preexec_fn=limit if largest_file else None,
        )
        assert done.returncode == code, done.stderr
        # An error is one line, but ``verify`` has one for each of its problems.
        assert code == 0 or arguments[0] == "verify" or done.stderr.count("\n") == 1, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return audit


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from browsing import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page of a service's dashboard in a window of its own, which must meet no fault."""
    from browsing import Visit

    made: list[Visit] = []

    def open_page(service: Service, address: str = "/dashboard", **options: Any) -> Any:
        made.append(Visit(browser, service, **options))
        made[-1].page.goto(address)
        return made[-1].page

    yield open_page
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def reply() -> type[Reply]:
    return Reply


@pytest.fixture(scope="session")
def answer() -> Callable[..., Reply]:
    """Makes an authorizer's answer from a status and a reason."""
    return verdict
