"""Rules, alerts and dashboards as they are written: each alert has a page and tests, which promtool runs."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from deploy.promql import ALERTS, BOARDS, PROMETHEUS, ROOT, metrics_in, panels

EXPECTED_ALERTS = {
    "ChargegateDown",
    "ChargegateNoAnswers",
    "ChargegateRefusing",
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
    "ChargegateSinkRefusing",
    "ChargegateAuditLifeFailing",
    "ChargegateAnomaly",
    "ChargegateDeadLettersDropped",
}


def test_each_alert_is_tested_both_ways_and_has_its_page() -> None:
    assert ALERTS.keys() == EXPECTED_ALERTS
    cases = [
        case
        for test in yaml.safe_load((PROMETHEUS / "tests" / "rules_test.yaml").read_text())["tests"]
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
    assert silent == ALERTS.keys(), "each stays silent in a test too"


def test_other_alerts_that_a_page_names_exist() -> None:
    named = set(re.findall(r"\bChargegate\w+", (ROOT / "docs" / "runbook.md").read_text()))
    assert named == ALERTS.keys()


@pytest.mark.servers  # Prometheus is provisioned together with the servers
def test_promtool(promtool: str) -> None:
    for command in (
        ["check", "config", "example/prometheus.yaml"],
        ["check", "rules", "rules.yaml"],
        ["test", "rules", "tests/rules_test.yaml"],
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
