"""Anomalies from outside: found while requests are made, listed, counted, and told by a signed webhook."""

from __future__ import annotations

import json
import subprocess
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks import Webhook

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service

    from outside import Reply, Site

PATH = "/api/v1/anomalies"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
FIELDS = {"type", "severity", "subject", "since", "until", "description", "value", "threshold"}


def messages(site: Site, path: str) -> list[dict[str, Any]]:
    for call in site.calls_to(path):
        Webhook(SECRET).verify(call.body, call.headers)
    return [call.json for call in site.calls_to(path)]


def test_anomalies_are_listed_counted_and_told_once(
    service: Callable[..., Service],
    site: Callable[..., Site],
    answer: Callable[..., Reply],
    reply: type[Reply],
    command: str,
    eventually: Callable[..., Any],
) -> None:
    receiver = site()
    broken = str(uuid.uuid4())
    authorizer = site(
        lambda call: reply(500) if call.json["station_id"] == broken else answer("not_allowed", "token_blocked")
    )
    webhook = receiver.planned(reply(500), reply(200))
    served = service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        authorization__max_retries=0,
        authorization__circuit_breaker__enabled=False,
        callback__signing_secrets=[SECRET],
        analysis__interval_ms=200,
        analysis__station_min_decisions=4,
        analysis__token_stations=3,
        analysis__webhook_url=webhook,
    )
    assert served.client.get(PATH).json() == {"items": [], "next_cursor": None}
    for _ in range(5):
        served.ask(receiver.url(), station_id=broken)
    token = f"stolen-{uuid.uuid4().hex}"
    for _ in range(3):
        served.ask(receiver.url(), driver_token=token)

    def both() -> list[dict[str, Any]]:
        items = served.client.get(PATH, params={"open": "true"}).json()["items"]
        return items if len(items) == 2 else []

    found = {item["type"]: item for item in eventually(both, 40, "they were not found")}
    errors, denied = found["STATION_HIGH_ERROR_RATE"], found["TOKEN_DENIED_WIDELY"]
    assert errors.keys() == denied.keys() == FIELDS
    assert (errors["subject"], errors["severity"], errors["value"], errors["threshold"]) == (broken, "CRITICAL", 1, 0.5)
    assert errors["until"] is None
    assert datetime.fromisoformat(errors["since"]).tzinfo is not None
    [decided] = {
        item["driver_token_hash"] for item in served.client.get("/api/v1/decisions?status=not_allowed").json()["items"]
    }
    assert (denied["subject"], denied["value"], denied["threshold"]) == (decided, 3, 3)
    metrics = served.metrics()
    assert metrics['audit_anomalies{severity="CRITICAL",type="STATION_HIGH_ERROR_RATE"}'] == 1
    assert metrics['audit_anomalies{severity="WARNING",type="STATION_SILENT"}'] == 0

    # One page after another, and only one type.
    first = served.client.get(PATH, params={"limit": 1}).json()
    second = served.client.get(PATH, params={"limit": 1, "cursor": first["next_cursor"]}).json()
    assert second["next_cursor"] is None
    assert {first["items"][0]["type"], second["items"][0]["type"]} == found.keys()
    only = served.client.get(PATH, params={"type": "TOKEN_DENIED_WIDELY"}).json()["items"]
    assert [item["subject"] for item in only] == [decided]
    assert served.client.get(PATH, params={"open": "false"}).json()["items"] == []

    # Each is told once, signed; what was refused is sent again under the same id; a restart tells nothing again.
    eventually(lambda: len(receiver.calls_to(webhook)) >= 3, 40, "they were not told")
    served.restart()
    eventually(lambda: served.client.get(PATH).json()["items"], 20, "they were forgotten")
    looks = served.log.count('"anomaly"')
    told = messages(receiver, webhook)
    assert looks == 2
    ids = [call.headers["webhook-id"] for call in receiver.calls_to(webhook)]
    assert (len(ids), len(set(ids))) == (3, 2)
    assert ids[0] == ids[1]
    assert {message["type"] for message in told} == {"anomaly.opened"}
    assert {message["data"]["subject"] for message in told} == {broken, decided}
    assert not [call for call in receiver.calls_to(webhook) if token.encode() in call.body]
    assert token not in served.log

    listed = subprocess.run(
        [command, "audit", "anomalies", "--open", "--json"],
        cwd=served.folder,
        capture_output=True,
        check=True,
        timeout=60,
    )
    lines = [json.loads(line) for line in listed.stdout.splitlines()]
    assert {line["type"] for line in lines} == found.keys()
    assert all(line.keys() == FIELDS for line in lines)


@pytest.mark.parametrize("query", [{"type": "ANYTHING"}, {"open": "maybe"}, {"cursor": "x"}, {"limit": "0"}])
def test_a_wrong_parameter_is_named(shared: Service, query: dict[str, str]) -> None:
    answer = shared.client.get(PATH, params=query)
    assert (answer.status_code, list(answer.json()["details"])) == (400, list(query))


@pytest.fixture(scope="module")
def shared(shared_service: Callable[..., Service]) -> Service:
    return shared_service()


@pytest.mark.parametrize("url", ["ftp://example.com", "nowhere", "http://"])
def test_a_wrong_webhook_stops_the_start(service: Callable[..., Service], url: str) -> None:
    served = service(started=False, analysis__webhook_url=url)
    served.spawn()
    assert served.ended() == 1
    assert "analysis.webhook_url" in served.log
