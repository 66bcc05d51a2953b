"""What is said to somebody who asks for something that there is not: the words that would be right, and no token."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service

TOKEN = "driver-token.0123456789"
TYPES = ["HIGH_TIMEOUT_RATE", "STATION_HIGH_ERROR_RATE", "STATION_SILENT", "TOKEN_DENIED_WIDELY"]


def said(service: Service, command: str, *arguments: str) -> tuple[int, str]:
    done = service.run(command, *arguments, timeout_s=60)
    assert done.stderr.count("\n") == 1
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def stopped(shared_service: Callable[..., Service]) -> Service:
    return shared_service(started=False)


RUNBOOK = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
STATION = "018d5c1e-7f00-7000-8000-000000000001"


@pytest.mark.parametrize("written", sorted(set(re.findall(r"`(chargegate [^`]+)`", RUNBOOK.replace("\n", " ")))))
def test_the_commands_of_the_runbook_can_be_used_as_they_are_written(
    shared_service: Callable[..., Service], command: str, written: str
) -> None:
    """Somebody who was woken copies them."""
    gate = shared_service(audit__influx_url="http://127.0.0.1:1", audit__influx_database="audit")
    assert gate.stop() == 0
    words = written.replace("--station …", f"--station {STATION}").replace("…", "2026-01-31").split()[1:]
    done = gate.run(command, *words, timeout_s=60)
    assert done.returncode != 2, done.stderr


def test_valid_words_are_shown_and_what_could_be_a_token_is_not(stopped: Service, command: str) -> None:
    code, text = said(stopped, command, "audit", "anomalies", "--type", TOKEN)
    assert code == 2
    assert all(word in text for word in (*TYPES, "CLIENT_CALLBACKS_FAILING"))
    assert TOKEN not in text
    for arguments in (
        ("audit", "list", "--status", TOKEN),
        ("audit", "list", TOKEN),
        ("audit", TOKEN),
        ("acl", "list", f"--{TOKEN}"),
        ("dead-letters", "list", "--from", TOKEN),
        ("audit", "anomalies", "--type", f"STATION_HIGH_ERROR_RATE.{TOKEN}"),
    ):
        code, text = said(stopped, command, *arguments)
        assert code == 2
        assert TOKEN not in text, arguments


@pytest.mark.parametrize(
    "words",
    [
        "audit list",
        "audit stats",
        "audit timeouts",
        "audit restore",
        "audit backfill --sink csv",
        "dead-letters list",
        "dead-letters replay",
        "dead-letters discard",
    ],
)
def test_a_range_that_ends_before_it_begins_is_wrong_usage(stopped: Service, command: str, words: str) -> None:
    code, text = said(stopped, command, *words.split(), "--from", "2026-02-01", "--to", "2026-01-31")
    assert code == 2
    assert "--from" in text
    assert "--to" in text


def test_a_range_that_ends_before_it_begins_holds_nothing_over_http(service: Callable[..., Service]) -> None:
    running = service()
    times = {"from": "2026-02-01", "to": "2026-01-31"}
    for path in ("decisions", "dead-letters", "statistics/series", "statistics/stations", "audit/timeouts"):
        answer = running.client.get(f"/api/v1/{path}", params=times)
        assert (answer.status_code, answer.json()["items"]) == (200, []), path
    assert running.client.get("/api/v1/statistics", params=times).json()["total"] == 0
    assert running.client.post("/api/v1/dead-letters/replay", params=times).json()["replayed"] == 0


@pytest.mark.parametrize("port", ["99999999", "65536", "0", "x", "-1"])
@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("audit.archive_url", "s3://bucket/x?endpoint=http://host:PORT"),
        ("audit.influx_url", "http://host:PORT"),
        ("analysis.webhook_url", "http://host:PORT/x"),
        ("cache.url", "redis://host:PORT"),
        ("database.url", "postgresql://host:PORT/x"),
        ("queue.url", "kafka://host:9092,other:PORT"),
    ],
)
def test_a_url_with_a_port_that_is_none_is_a_wrong_setting(
    service: Callable[..., Service], command: str, key: str, url: str, port: str
) -> None:
    stopped = service(
        started=False, **{key.replace(".", "__"): url.replace("PORT", port), "audit__influx_database": "d"}
    )
    code, text = said(stopped, command, "config", "check")
    assert (code, key in text) == (1, True), text


def test_a_dry_run_names_what_would_come(service: Callable[..., Service], command: str) -> None:
    stopped = service(started=False)
    stopped.csv_file.write_text(
        "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms\n"
        "2025-03-01T00:00:00.000Z,a,b,0123456789abcdef,allowed,,1\n"
    )
    rotated = stopped.folder / "authorization_audit.log.20250302T000000.000Z"
    rotated.write_bytes(stopped.csv_file.read_bytes())

    def planned(*arguments: str) -> dict[str, str]:
        words = [command, "audit", *arguments, "--dry-run", "--json"]
        done = subprocess.run(words, cwd=stopped.folder, env=stopped._environ, capture_output=True, check=True)
        (line,) = done.stdout.splitlines()
        return json.loads(line)

    assert planned("compress")["to"] == f"{rotated.name}.zst"
    assert planned("rotate", "--at", "2025-03-03")["to"] == "authorization_audit.log.20250303T000000.000Z"
