"""The rules and dashboards of `deploy/`, what they ask of Prometheus, and which metrics an expression names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALL = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL if "alert" in rule}
RECORDS = {rule["record"]: rule["expr"] for rule in ALL if "record" in rule}
BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "deploy" / "grafana").glob("*.json"))}

# Metrics that the contract names, and that other changes bring. A name goes from here once the service exports it.
TO_COME: set[str] = set()

_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"|' + r"'(?:[^'\\]|\\.)*'")
_LABELS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME = re.compile(r"(?<![\w:.])[A-Za-z_:][\w:]*(?!\s*\(|[\w:])")
_WORDS = {"and", "or", "unless", "offset", "bool", "by", "without", "on", "ignoring", "group_left", "group_right"}


def metrics_in(expression: str) -> set[str]:
    """The names of the metrics, without functions, labels and words of the language."""
    bare = _LABELS.sub(" ", _TEXT.sub('""', expression))
    return set(_NAME.findall(bare)) - _WORDS - {"inf", "nan", "Inf", "NaN"}


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
