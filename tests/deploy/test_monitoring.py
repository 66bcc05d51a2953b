"""Rules and dashboards: tested by promtool, and run by a real Prometheus that reads the metrics of real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import httpx
import pytest
import yaml

from deploy.certificate import write_certificate
from deploy.promql import metrics_in
from outside import eventually, sites

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.servers  # Prometheus is provisioned together with the servers

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES: dict[str, Any] = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())
ALL = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL if "alert" in rule}
RECORDS = {rule["record"]: rule["expr"] for rule in ALL if "record" in rule}
BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "deploy" / "grafana").glob("*.json"))}
CHARGEGATE = str(Path(sys.executable).with_name("chargegate"))
CHARGING = "/api/v1/charging-session"

# Metrics that the contract names, and that other changes bring. A name goes from here once the service exports it.
TO_COME = {"audit_anomalies", "audit_chain_intact", "audit_sink_lag_seconds", "clock_skew_seconds"}

EXPECTED_ALERTS = {
    "ChargegateDown",
    "ChargegateNoAnswers",
    "ChargegateSlowAnswers",
    "ChargegateSlowAnswersForHours",
    "ChargegateQueueFilling",
    "ChargegateQueueStuck",
    "ChargegateAuthorizerFailing",
    "ChargegateCircuitOpen",
    "ChargegateReceiversAway",
    "ChargegateDeadLettersGrowing",
    "ChargegateSinkBehind",
    "ChargegateAuditChainBroken",
    "ChargegateDiskFilling",
    "ChargegateClockOff",
    "ChargegateCertificateExpiring",
}


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", [])


def expressions() -> dict[str, str]:
    """All that is asked of Prometheus, by where it stands. Grafana's variables have the values that Grafana gives."""
    found = {f"rule {rule.get('alert') or rule.get('record')}": rule["expr"] for rule in ALL}
    for name, board in BOARDS.items():
        for panel in panels(board):
            for target in panel.get("targets", []):
                text = target["expr"].replace("$namespace", ".*").replace("$__rate_interval", "15s")
                assert "$" not in text, text
                found[f"{name}, {panel['title']}, {target['refId']}"] = text
    return found


EXPRESSIONS = expressions()


# What is written


def test_each_alert_is_tested_both_ways_and_has_its_page() -> None:
    assert ALERTS.keys() == EXPECTED_ALERTS
    cases = [
        case
        for test in yaml.safe_load((PROMETHEUS / "tests.yaml").read_text())["tests"]
        for case in test.get("alert_rule_test", [])
    ]
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    pages = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", runbook, re.MULTILINE | re.DOTALL))
    assert [name for name in pages if name.startswith("Chargegate")] == list(ALERTS)
    for name, alert in ALERTS.items():
        assert any(case["alertname"] == name and case["exp_alerts"] for case in cases), f"{name} never fires in a test"
        assert "for" in alert
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description", "runbook_url"} <= alert["annotations"].keys()
        assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert f"**{alert['labels']['severity']}**" in pages[name]
        for heading in ("What it means", "Look at", "Do", "Comes with"):
            assert f"**{heading}**" in pages[name], f"{name}: {heading}"
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    # This one has its limit in another alert's test, and the chain's in its own.
    assert silent >= ALERTS.keys() - {"ChargegateSlowAnswersForHours", "ChargegateDiskFilling"}


def test_other_alerts_that_a_page_names_exist() -> None:
    named = set(re.findall(r"\bChargegate\w+", (ROOT / "docs" / "runbook.md").read_text()))
    assert named == ALERTS.keys()


def test_promtool(promtool: str) -> None:
    for command in (
        ["check", "config", "prometheus.yaml"],
        ["check", "rules", "rules.yaml"],
        ["test", "rules", "tests.yaml"],
    ):
        done = subprocess.run(
            [promtool, *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_dashboards_can_be_imported() -> None:
    assert set(BOARDS) == {"overview", "processes"}
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)
    for board in BOARDS.values():
        assert {"title", "uid", "schemaVersion", "templating", "panels"} <= board.keys()
        ids = [panel["id"] for panel in panels(board)]
        assert len(ids) == len(set(ids))
        for panel in panels(board):
            position = panel["gridPos"]
            assert position["x"] + position["w"] <= 24
            if panel["type"] != "row":
                assert panel["description"]
                assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
                assert panel["targets"]


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (a, b) (rate(x_total{c="d{e"}[5m])) / on(a) y:z offset 30m', {"x_total", "y:z"}),
        ("absent(up{job='x'} == 1) unless time() - a_b > 14 * 24 * 3600", {"up", "a_b"}),
        (
            "histogram_quantile(0.5, sum by (le) (rate(h_bucket[1m]))) and bool_metric > bool 1.5e3",
            {"h_bucket", "bool_metric"},
        ),
    ],
)
def test_names_are_found_in_expressions(expression: str, names: set[str]) -> None:
    assert metrics_in(expression) == names


# What a Prometheus makes of it


class Scraped(NamedTuple):
    """A Prometheus that reads an API and a worker, through which requests went, and the metrics of each."""

    prometheus: httpx.Client
    exported: dict[str, set[str]]

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = self.prometheus.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found


@contextlib.contextmanager
def running(command: list[str], folder: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHARGEGATE_")}
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=inherited | variables, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        finally:
            process.kill()
            process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


def sample_names(text: str) -> set[str]:
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line and not line.startswith("#")}


def traffic(api: httpx.Client, receiver: str, nobody: str) -> None:
    """Requests of every kind: allowed, denied, cached, refused, and with a receiver that is away."""
    token, station = f"listed-{uuid.uuid4().hex}", str(uuid.uuid4())
    assert api.put("/api/v1/acl", json={"driver_token": token}).status_code == 200
    for callback in (receiver, receiver, receiver, nobody, nobody):
        body = {"station_id": station, "driver_token": token, "callback_url": callback}
        assert api.post(CHARGING, json=body).status_code == 202
    denied = {"station_id": station, "driver_token": f"nobody-{uuid.uuid4().hex}", "callback_url": receiver}
    assert api.post(CHARGING, json=denied).status_code == 202
    assert api.post(CHARGING, json={}).status_code == 400


@pytest.fixture(scope="module")
def scraped(prometheus: str, postgres_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    folder = tmp_path_factory.mktemp("scraped")
    write_certificate(folder / "tls.crt", folder / "tls.key")
    ports = {role: free_port() for role in ("api", "worker", "prometheus")}
    database = with_schema(postgres_server.url, f"t{uuid.uuid4().hex}")
    key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
    shared = {
        "CHARGEGATE_QUEUE__URL": database,
        "CHARGEGATE_DATABASE__URL": database,
        "CHARGEGATE_SECURITY__ENCRYPTION_KEYS": key,
        "CHARGEGATE_SECURITY__TOKEN_HASH_KEY": key,
        "CHARGEGATE_CALLBACK__ALLOWED_NETWORKS": "127.0.0.0/8",
        "CHARGEGATE_CALLBACK__RETRY_DELAY_MS": "1",
        "CHARGEGATE_CALLBACK__DEADLINE_MS": "600000",  # those to nobody wait as long as the tests take
    }
    own = {
        "api": {
            "CHARGEGATE_SERVER__PORT": str(ports["api"]),
            "CHARGEGATE_SERVER__TLS_CERTIFICATE": str(folder / "tls.crt"),
            "CHARGEGATE_SERVER__TLS_KEY": str(folder / "tls.key"),
        },
        "worker": {"CHARGEGATE_WORKER__PORT": str(ports["worker"])},
    }
    rules = (PROMETHEUS / "rules.yaml").read_text().replace("interval: 30s", "interval: 1s")
    (folder / "rules.yaml").write_text(rules)
    scrape = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": role,
                "scheme": "https" if role == "api" else "http",
                "tls_config": {"insecure_skip_verify": True},
                "static_configs": [{"targets": [f"127.0.0.1:{ports[role]}"]}],
                "relabel_configs": [{"target_label": "job", "replacement": "chargegate"}],
            }
            for role in own
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(scrape))
    with contextlib.ExitStack() as stack:
        processes = {}
        for role, variables in own.items():
            (folder / role).mkdir()
            processes[role] = stack.enter_context(running([CHARGEGATE, role], folder / role, **shared, **variables))
        options = [
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
        ]
        processes["prometheus"] = stack.enter_context(running([prometheus, *options], folder))
        clients = {
            name: stack.enter_context(
                httpx.Client(
                    base_url=f"http{'s' if name == 'api' else ''}://127.0.0.1:{port}",
                    verify=False,
                    trust_env=False,
                    timeout=30,
                )
            )
            for name, port in ports.items()
        }
        receiver = stack.enter_context(sites())()
        for name, path in (("api", "/health/ready"), ("worker", "/health/ready"), ("prometheus", "/-/ready")):
            process = processes[name]
            eventually(lambda p=process, n=name, q=path: p.poll() is not None or answers(clients[n], q), 60)
            assert process.poll() is None, [log.read_text()[-2000:] for log in folder.glob("**/*.log")]
        found = Scraped(clients["prometheus"], {})
        nobody = f"http://127.0.0.1:{free_port()}/"

        def seen() -> bool:
            traffic(clients["api"], receiver.url(), nobody)
            return all(found.query(expression) for name, expression in EXPRESSIONS.items() if must_find(name))

        with contextlib.suppress(AssertionError):  # the tests say which expression finds nothing
            eventually(seen, 45)
        for role in own:
            found.exported[role] = sample_names(clients[role].get("/metrics").text)
        yield found


def with_schema(url: str, schema: str) -> str:
    """The URL of a new and empty schema of PostgreSQL."""

    async def make() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(f"CREATE SCHEMA {schema}")
        await connection.close()

    asyncio.run(make())
    return f"{url}?search_path={schema}"


def must_find(name: str) -> bool:
    """Whether an expression finds something while all is well: no alert does, and no metric that is to come."""
    if name.removeprefix("rule ") in ALERTS:
        return False
    return not metrics_in(EXPRESSIONS[name]) & TO_COME


def test_every_metric_is_exported_or_to_come(scraped: Scraped) -> None:
    exported = scraped.exported["api"] | scraped.exported["worker"]
    known = exported | TO_COME | RECORDS.keys() | {"up"}
    for name, expression in EXPRESSIONS.items():
        assert metrics_in(expression) <= known, name
    assert not TO_COME & exported, "take these from the list of metrics to come"


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_is_answered(scraped: Scraped, name: str) -> None:
    found = scraped.query(EXPRESSIONS[name])
    assert found or not must_find(name), EXPRESSIONS[name]


def test_rules_are_evaluated_and_alerts_are_those_of_the_faults(scraped: Scraped) -> None:
    """The certificate is good for one day, and a receiver is away; nothing else is wrong."""

    def groups() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = scraped.prometheus.get("/api/v1/rules").json()["data"]["groups"]
        return found

    def raised() -> set[str]:
        rules = [rule for group in groups() for rule in group["rules"]]
        assert {rule.get("lastError", "") for rule in rules} == {""}
        return {rule["name"] for rule in rules if rule.get("state", "inactive") != "inactive"}

    eventually(
        lambda: raised() >= {"ChargegateCertificateExpiring", "ChargegateReceiversAway"}, 30, lambda: str(raised())
    )
    # How full this machine's disk is, and how slow it is, are not the tests' matter.
    ours = raised() - {"ChargegateDiskFilling", "ChargegateSlowAnswers", "ChargegateSlowAnswersForHours"}
    assert ours == {"ChargegateCertificateExpiring", "ChargegateReceiversAway"}


def test_every_process_tells_of_itself(scraped: Scraped) -> None:
    """Each process of a host has an address of its own, and the dashboard shows them side by side."""
    for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"):
        found = scraped.query(f'process_{name}{{job="chargegate"}}')
        assert len({sample["metric"]["instance"] for sample in found}) == 2, name
        assert len(found) == 2
