"""Processes of the service, a Prometheus that reads their metrics and evaluates the rules, and whom they call."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import yaml

from certificates import Authority
from deploy.promql import PROMETHEUS
from outside import Reply, Site, eventually, verdict
from ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

CHARGEGATE = str(Path(sys.executable).with_name("chargegate"))
CHARGING = "/api/v1/charging-session"
KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
SMALL_DISK = 'mount -t tmpfs -o mode=0700,size="$1" none "$0" && shift && exec "$@"'
IN_ITS_OWN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK]
_OWN_DISK_BYTES = 1 << 30
"""The disks that an installation mounts are smaller than this, and the machine's is larger."""


def _place(labels: dict[str, str]) -> tuple[str, str]:
    """Which disk labels are about."""
    return labels["instance"], labels["folder"]


def with_schema(url: str) -> str:
    """The URL of a new and empty schema of PostgreSQL."""
    schema = f"t{uuid.uuid4().hex}"

    async def make() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(f"CREATE SCHEMA {schema}")
        await connection.close()

    with ThreadPoolExecutor(1) as apart:  # the browser's loop may run in this thread
        apart.submit(asyncio.run, make()).result()
    return f"{url}?search_path={schema}"


def can_mount(folder: Path) -> bool:
    """Whether this machine lets a process have a disk of its own."""
    with contextlib.suppress(OSError):
        command = [*IN_ITS_OWN_NAMESPACE, str(folder), "1m", "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def quicker(rules: str) -> str:
    """Rules that are the same but for their times: minutes are seconds, so that a fault shows, and is over, soon."""

    def seconds(found: re.Match[str]) -> str:
        return f"{found[1]}{int(found[2]) * (60 if found[3] == 'h' else 1)}s"

    rules = re.sub(r"(\[|offset |for: )(\d+)([mh])\b", seconds, rules)
    assert rules.count("interval: 30s") == 2
    rules = rules.replace("interval: 30s", "interval: 1s")
    for usual, quick in (("oldest_age_seconds > 60", "oldest_age_seconds > 3"), ('"}) > 300', '"}) > 5')):
        assert usual in rules
        rules = rules.replace(usual, quick)
    return rules


class Installation:
    """The processes of some roles, the first of which answers requests. Each has a folder of its own."""

    def __init__(
        self,
        folder: Path,
        prometheus: str,
        site: Callable[..., Site],
        roles: tuple[str, ...],
        *,
        tls: bool = False,
        disks: dict[str, tuple[str, str]] | None = None,
        **settings: Any,
    ) -> None:
        """``disks``: a folder within a role's own that is a disk by itself, and its size. Settings have ``__`` for
        their dots."""
        self.folder = folder
        self.roles = roles
        self._tls = tls
        self._disks = disks or {}
        self._ports = {name: free_port() for name in (*roles, "prometheus")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.authorizer: Site = site(lambda _call: self.verdict)
        self.verdict: Reply = verdict("allowed")
        self.receiver: Site = site()
        values = {
            "callback__allowed_networks": "127.0.0.0/8",
            "callback__retry_delay_ms": 1,
            "authorization__backend": "http",
            "authorization__url": self.authorizer.url("/decide"),
            "authorization__max_retries": 0,
            "authorization__circuit_breaker__recovery_timeout_ms": 1000,
            "security__encryption_keys": KEY,
            "security__token_hash_key": KEY,
            "server__port": self._ports[roles[0]],
            **settings,
        }
        if tls:
            values |= {"server__tls_certificate": folder / "tls.pem", "server__tls_key": folder / "tls.key"}
        if "worker" in roles:
            values["worker__port"] = self._ports["worker"]
        self._variables = {f"CHARGEGATE_{name.upper()}": str(value) for name, value in values.items()}
        self._commands = {role: self._command(role) for role in roles}
        self._commands["prometheus"] = [
            prometheus,
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{self._ports['prometheus']}",
        ]
        self.clients = {
            name: httpx.Client(base_url=self.url(name), verify=False, trust_env=False, timeout=30)
            for name in self._ports
        }
        self._write_files()

    def url(self, name: str) -> str:
        scheme = "https" if self._tls and name == self.roles[0] else "http"
        return f"{scheme}://127.0.0.1:{self._ports[name]}"

    def _command(self, role: str) -> list[str]:
        command = [CHARGEGATE, role]
        if role in self._disks:
            name, size = self._disks[role]
            command = [*IN_ITS_OWN_NAMESPACE, str(self.folder / role / name), size, *command]
        return command

    def _write_files(self) -> None:
        Authority(self.folder, "authority").sign("tls")
        (self.folder / "rules.yaml").write_text(quicker((PROMETHEUS / "rules.yaml").read_text()))
        jobs = [
            {
                "job_name": role,
                "scheme": self.url(role).partition(":")[0],
                "tls_config": {"insecure_skip_verify": True},
                "static_configs": [{"targets": [f"127.0.0.1:{self._ports[role]}"]}],
                "relabel_configs": [{"target_label": "job", "replacement": "chargegate"}],
            }
            for role in self.roles
        ]
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": ["rules.yaml"], "scrape_configs": jobs}
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def start(self, *names: str) -> None:
        """All, or these."""
        names = names or (*self.roles, "prometheus")
        for name in names:
            folder = self.folder / name
            (folder / self._disks.get(name, ("", ""))[0]).mkdir(parents=True, exist_ok=True)
            inherited = {key: value for key, value in os.environ.items() if not key.startswith("CHARGEGATE_")}
            with (folder / "log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    self._commands[name], cwd=folder, env=inherited | self._variables, stdout=log, stderr=log
                )
        for name in names:
            eventually(lambda n=name: self._processes[n].poll() is not None or self._ready(n), 60)
            assert self._processes[name].poll() is None, (self.folder / name / "log").read_text()[-2000:]

    def _ready(self, name: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            path = "/-/ready" if name == "prometheus" else "/health/ready"
            return self.clients[name].get(path).status_code == 200
        return False

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait(20)

    def disk_of(self, name: str) -> Path:
        """A process's own disk, seen from here."""
        process = self._processes[name]
        return Path(f"/proc/{process.pid}/root{self.folder / name / self._disks[name][0]}")

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
            process.kill()
            process.wait(20)

    def post(self, callback: str | None = None, **fields: str) -> int:
        """Make a request; the status of its answer."""
        body = {
            "station_id": str(uuid.uuid4()),
            "driver_token": f"driver-{uuid.uuid4().hex}",
            "callback_url": callback or self.receiver.url(),
        } | fields
        return self.clients[self.roles[0]].post(CHARGING, json=body).status_code

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = self.clients["prometheus"].get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def firing(self) -> set[str]:
        """The alerts that fire now, but for those about the disk of this machine, which others may fill."""
        groups = self.clients["prometheus"].get("/api/v1/rules").json()["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert {rule.get("lastError", "") for rule in rules} == {""}
        own = {_place(each["metric"]) for each in self.query(f"disk_size_bytes < {_OWN_DISK_BYTES}")}
        return {
            rule["name"]
            for rule in rules
            for alert in rule.get("alerts", [])
            if alert["state"] == "firing" and ("folder" not in alert["labels"] or _place(alert["labels"]) in own)
        }

    def overview(self) -> dict[str, Any]:
        answer = self.clients[self.roles[0]].get("/api/v1/overview")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def problems(self) -> list[str]:
        """What the overview says on top, the worst first."""
        return [problem["text"] for problem in self.overview()["problems"]]

    def exported(self) -> set[str]:
        texts = [self.clients[role].get("/metrics").text for role in self.roles]
        return {re.split("[{ ]", line)[0] for text in texts for line in text.splitlines() if line[:1] not in ("", "#")}

    def told(self) -> str:
        """For a test that fails."""
        logs = {role: (self.folder / role / "log").read_text()[-1500:] for role in self.roles}
        return json.dumps({"firing": sorted(self.firing()), "problems": self.problems(), "logs": logs}, indent=1)
