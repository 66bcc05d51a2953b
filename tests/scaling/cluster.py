"""Processes of the service on one queue and one database. Each has a folder of its own, as on separate machines."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import httpx

from outside import PLAIN, eventually
from ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = str(Path(sys.executable).with_name("chargegate"))
PATH = "/api/v1/charging-session"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CHARGEGATE_")}
START_S = 60.0

Role = Literal["api", "worker"]


class Process:
    """``chargegate api`` or ``chargegate worker``. It keeps its port when it is started again."""

    def __init__(self, role: Role, folder: Path, settings: dict[str, Any]) -> None:
        self.role = role
        self.name = folder.name
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment: dict[str, str] = {}
        """Beside that of the tests."""
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(base_url=self.url, verify=PLAIN, trust_env=False, timeout=10)
        folder.mkdir()
        values = {"server.port" if role == "api" else "worker.port": self.port, **settings}
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]  # JSON's values are TOML's
        (folder / "chargegate.toml").write_text("".join(lines))

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> Process:
        """Start the process without waiting for it to be ready."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [COMMAND, self.role, "--config", "chargegate.toml"],
                cwd=self.folder,
                env=ENVIRONMENT | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def await_ready(self) -> None:
        eventually(lambda: not self.running or self.ready() == 200, START_S, lambda: f"not ready\n{self.tail()}")
        assert self.running, self.tail()

    def start(self) -> None:
        self.spawn().await_ready()

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def ended(self, limit_s: float = 40) -> None:
        """Wait until the process has ended with exit code 0."""
        assert self._process is not None
        try:
            code = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        assert code == 0, f"exit {code}\n{self.tail()}"

    def close(self) -> None:
        self.kill()
        self._client.close()

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        return self._client.get(path, params=parameters)

    def post(self, body: dict[str, str], **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._client.post(PATH, json=body, headers=named)

    def ready(self) -> int:
        """The HTTP status of the readiness probe; 0 without an answer."""
        try:
            return self.get("/health/ready").status_code
        except httpx.TransportError:
            return 0

    def health(self) -> dict[str, Any]:
        return dict(self.get("/health").json())

    def tail(self, lines: int = 25) -> str:
        """The last lines of its log, without those about single requests."""
        log = self.folder / "log"
        text = log.read_text(errors="replace") if log.exists() else ""
        told = [line for line in text.splitlines() if "request_id" not in line]
        return "\n".join([f"--- {self.name} ({'running' if self.running else 'ended'})", *told[-lines:]])


class Cluster:
    """The ``apis`` and ``workers`` of one service. Used by ``with``, which kills them at its end."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.apis: list[Process] = []
        self.workers: list[Process] = []
        self._every: list[Process] = []
        keys = [base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2)]
        self._settings = {
            "callback.allowed_networks": ["127.0.0.0/8"],
            "callback.retry_delay_ms": 100,
            "authorization.circuit_breaker.enabled": False,
            "security.encryption_keys": [keys[0]],
            "security.token_hash_key": keys[1],
            "logging.format": "json",
            **settings,
        }

    @property
    def queue_url(self) -> str:
        return str(self._settings["queue.url"])

    @property
    def processes(self) -> list[Process]:
        """The processes that belong to the service now, whether they run or not."""
        return self.apis + self.workers

    def add(self, role: Role, **settings: Any) -> Process:
        """Add a process, not started yet. The names of settings have ``__`` instead of dots."""
        named = {name.replace("__", "."): value for name, value in settings.items()}
        process = Process(role, self.folder / f"{role}-{len(self._every) + 1}", self._settings | named)
        self._every.append(process)
        (self.apis if role == "api" else self.workers).append(process)
        return process

    def start(self) -> None:
        """Start all processes that do not run, at the same time."""
        for process in self.processes:
            if not process.running:
                process.spawn()
        for process in self.processes:
            process.await_ready()

    def leave(self, worker: Process) -> None:
        """Send SIGTERM to a worker, and wait for its end."""
        self.workers.remove(worker)
        worker.terminate()
        worker.ended()

    def ready(self) -> dict[str, int]:
        """The status of each process's readiness probe. All are asked at the same time."""
        processes = self.processes
        with ThreadPoolExecutor(len(processes)) as asking:
            statuses = list(asking.map(Process.ready, processes))
        return {process.name: status for process, status in zip(processes, statuses, strict=True)}

    def all_ready(self) -> bool:
        return set(self.ready().values()) == {200}

    def decisions(self) -> Iterator[dict[str, Any]]:
        """All rows of the audit."""
        cursor: dict[str, str] = {}
        while True:
            answer = self.apis[0].get("/api/v1/decisions", limit=1000, **cursor)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            yield from page["items"]
            if not page["next_cursor"]:
                return
            cursor = {"cursor": page["next_cursor"]}

    def status(self, request_id: str) -> str:
        """The status of a request; empty where the service does not know the request."""
        answer = self.apis[0].get(f"{PATH}/{request_id}")
        assert answer.status_code in (200, 404), answer.text
        return str(answer.json()["status"]) if answer.status_code == 200 else ""

    def tails(self) -> str:
        """The last log lines of all processes."""
        return "\n".join(process.tail() for process in self._every)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._every:
            process.close()
