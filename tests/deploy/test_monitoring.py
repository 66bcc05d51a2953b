"""Rules and dashboards on a real Prometheus, which reads the metrics of a real API and a real worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest
import yaml

from certificates import Authority
from deploy.promql import ALERTS, EXPRESSIONS, PROMETHEUS, RECORDS, TO_COME, metrics_in
from outside import Reply, Site, eventually, sites, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.servers  # Prometheus is provisioned together with the servers

CHARGEGATE = str(Path(sys.executable).with_name("chargegate"))
CHARGING = "/api/v1/charging-session"
KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
# What is wrong all the time: the certificate is good for one day, and a receiver is away.
ALWAYS = {"ChargegateCertificateExpiring", "ChargegateReceiversAway"}
# How full and how slow this machine is, is not the tests' matter.
MAYBE = {"ChargegateDiskFilling", "ChargegateSlowAnswers", "ChargegateSlowAnswersForHours"}
# So that a fault shows, and is over, within seconds.
QUICKER = (("interval: 30s", "interval: 1s"), ("[5m]", "[5s]"), ("oldest_age_seconds > 60", "oldest_age_seconds > 3"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def with_schema(url: str) -> str:
    """The URL of a new and empty schema of PostgreSQL."""
    schema = f"t{uuid.uuid4().hex}"

    async def make() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(f"CREATE SCHEMA {schema}")
        await connection.close()

    asyncio.run(make())
    return f"{url}?search_path={schema}"


class Installation:
    """An API with TLS, a worker, and a Prometheus that evaluates the rules; an authorizer and receivers."""

    def __init__(self, folder: Path, prometheus: str, database: str, site: Any) -> None:
        self._folder = folder
        self._ports = {name: free_port() for name in ("api", "worker", "prometheus")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.authorizer: Site = site(lambda _call: self.verdict)
        self.verdict: Reply = verdict("allowed")
        self.receiver: Site = site()
        self._nobody = f"http://127.0.0.1:{free_port()}/"
        self._commands = {
            "api": [CHARGEGATE, "api"],
            "worker": [CHARGEGATE, "worker"],
            "prometheus": [
                prometheus,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/tsdb",
                f"--web.listen-address=127.0.0.1:{self._ports['prometheus']}",
            ],
        }
        self._variables = {
            "CHARGEGATE_QUEUE__URL": database,
            "CHARGEGATE_QUEUE__LEASE_MS": "2000",
            "CHARGEGATE_DATABASE__URL": database,
            "CHARGEGATE_SECURITY__ENCRYPTION_KEYS": KEY,
            "CHARGEGATE_SECURITY__TOKEN_HASH_KEY": KEY,
            "CHARGEGATE_AUTHORIZATION__BACKEND": "http",
            "CHARGEGATE_AUTHORIZATION__URL": self.authorizer.url("/decide"),
            "CHARGEGATE_AUTHORIZATION__MAX_RETRIES": "0",
            "CHARGEGATE_AUTHORIZATION__CIRCUIT_BREAKER__RECOVERY_TIMEOUT_MS": "1000",
            "CHARGEGATE_CALLBACK__ALLOWED_NETWORKS": "127.0.0.0/8",
            "CHARGEGATE_CALLBACK__RETRY_DELAY_MS": "1",
            "CHARGEGATE_CALLBACK__DEADLINE_MS": "600000",  # those to nobody wait as long as the tests take
            "CHARGEGATE_SERVER__PORT": str(self._ports["api"]),
            "CHARGEGATE_SERVER__TLS_CERTIFICATE": str(folder / "tls.pem"),
            "CHARGEGATE_SERVER__TLS_KEY": str(folder / "tls.key"),
            "CHARGEGATE_WORKER__PORT": str(self._ports["worker"]),
        }
        self.clients = {
            name: httpx.Client(
                base_url=f"http{'s' if name == 'api' else ''}://127.0.0.1:{port}",
                verify=False,
                trust_env=False,
                timeout=30,
            )
            for name, port in self._ports.items()
        }

    def write_files(self) -> None:
        Authority(self._folder, "authority").sign("tls")
        rules = (PROMETHEUS / "rules.yaml").read_text()
        for usual, quick in QUICKER:
            assert usual in rules
            rules = rules.replace(usual, quick)
        (self._folder / "rules.yaml").write_text(rules)
        jobs = [
            {
                "job_name": role,
                "scheme": "https" if role == "api" else "http",
                "tls_config": {"insecure_skip_verify": True},
                "static_configs": [{"targets": [f"127.0.0.1:{self._ports[role]}"]}],
                "relabel_configs": [{"target_label": "job", "replacement": "chargegate"}],
            }
            for role in ("api", "worker")
        ]
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": ["rules.yaml"], "scrape_configs": jobs}
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def start(self, *names: str) -> None:
        for name in names:
            folder = self._folder / name
            folder.mkdir(exist_ok=True)
            inherited = {key: value for key, value in os.environ.items() if not key.startswith("CHARGEGATE_")}
            with (folder / "log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    self._commands[name], cwd=folder, env=inherited | self._variables, stdout=log, stderr=log
                )
        for name in names:
            eventually(lambda n=name: self._processes[n].poll() is not None or self._ready(n), 60)
            assert self._processes[name].poll() is None, (self._folder / name / "log").read_text()[-2000:]

    def _ready(self, name: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            path = "/-/ready" if name == "prometheus" else "/health/ready"
            return self.clients[name].get(path).status_code == 200
        return False

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait(20)

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

    def ask(self, callback: str | None = None, **fields: str) -> None:
        body = {
            "station_id": str(uuid.uuid4()),
            "driver_token": f"driver-{uuid.uuid4().hex}",
            "callback_url": callback or self.receiver.url(),
        } | fields
        assert self.clients["api"].post(CHARGING, json=body).status_code == 202

    def traffic(self) -> None:
        """Requests of every kind: decided, cached, malformed, and with a receiver that is away."""
        same = {"driver_token": f"driver-{uuid.uuid4().hex}", "station_id": str(uuid.uuid4())}
        for callback in (None, None, None, self._nobody, self._nobody):
            self.ask(callback, **same)
        self.ask()
        assert self.clients["api"].post(CHARGING, json={}).status_code == 400

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = self.clients["prometheus"].get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def raised(self) -> set[str]:
        """The alerts that fire, or will once their fault has lasted for long enough."""
        groups = self.clients["prometheus"].get("/api/v1/rules").json()["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert {rule.get("lastError", "") for rule in rules} == {""}
        return {rule["name"] for rule in rules if rule.get("state", "inactive") != "inactive"} - MAYBE

    def raises(self, *alerts: str) -> None:
        """Send requests until exactly these alerts are raised, beside those that are always."""

        def exactly() -> bool:
            self.traffic()
            return self.raised() - ALWAYS == set(alerts)

        eventually(exactly, 60, lambda: f"raised: {self.raised()}")

    def exported(self) -> set[str]:
        texts = [self.clients[role].get("/metrics").text for role in ("api", "worker")]
        return {re.split("[{ ]", line)[0] for text in texts for line in text.splitlines() if line[:1] not in ("", "#")}


@pytest.fixture(scope="module")
def scraped(prometheus: str, postgres_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with sites() as site:
        folder = tmp_path_factory.mktemp("scraped")
        installation = Installation(folder, prometheus, with_schema(postgres_server.url), site)
        installation.write_files()
        try:
            installation.start("api", "worker", "prometheus")

            def seen() -> bool:
                installation.traffic()
                return all(installation.query(text) for name, text in EXPRESSIONS.items() if must_find(name))

            with contextlib.suppress(AssertionError):  # the tests say which expression finds nothing
                eventually(seen, 45)
            yield installation
        finally:
            installation.close()


def must_find(name: str) -> bool:
    """Whether an expression finds something while all is well: no alert does, and no metric that is to come."""
    return name.removeprefix("rule ") not in ALERTS and not metrics_in(EXPRESSIONS[name]) & TO_COME


def test_every_metric_is_exported_or_to_come(scraped: Installation) -> None:
    exported = scraped.exported()
    known = exported | TO_COME | RECORDS.keys() | {"up"}
    for name, expression in EXPRESSIONS.items():
        assert metrics_in(expression) <= known, name
    assert not TO_COME & exported, "take these from the list of metrics to come"


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_is_answered(scraped: Installation, name: str) -> None:
    found = scraped.query(EXPRESSIONS[name])
    if must_find(name) and not found:  # a busy machine may have left out a few scrapes
        eventually(lambda: scraped.traffic() or scraped.query(EXPRESSIONS[name]), 20, EXPRESSIONS[name])


def test_every_process_tells_of_itself(scraped: Installation) -> None:
    """Each process of a host has an address of its own, and the dashboard shows them side by side."""
    for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"):
        found = scraped.query(f'process_{name}{{job="chargegate"}}')
        assert len({sample["metric"]["instance"] for sample in found}) == 2, name
        assert len(found) == 2


# A fault raises the alerts that its page says, no others, and they end by themselves


def test_what_is_always_wrong_is_raised(scraped: Installation) -> None:
    def exactly() -> bool:
        scraped.traffic()
        return scraped.raised() == ALWAYS

    eventually(exactly, 60, lambda: f"raised: {scraped.raised()}")


def test_an_authorizer_that_fails(scraped: Installation) -> None:
    scraped.verdict = Reply(500)
    scraped.raises("ChargegateAuthorizerFailing", "ChargegateCircuitOpen")
    scraped.verdict = verdict("allowed")
    scraped.raises()


def test_a_worker_that_is_killed(scraped: Installation) -> None:
    scraped.kill("worker")
    scraped.raises("ChargegateQueueStuck", "ChargegateNoAnswers")
    scraped.start("worker")
    scraped.raises()
