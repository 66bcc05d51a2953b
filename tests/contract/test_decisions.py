"""Every decision, and the callback that tells it."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

SECRETS = ["whsec_bmV3ZXN0LXNlY3JldC1vZi0yNC1ieXRlcw==", "whsec_b2xkZXItc2VjcmV0LW9mLTIzLWJ5dGU="]
HERE = "5E8A6AB5-91A2-4D3B-8F51-0C1D2E3F4A5B"
ELSEWHERE = "00000000-0000-4000-8000-000000000001"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def by_list(shared_service: Callable[..., Service]) -> Service:
    return shared_service(callback__signing_secrets=SECRETS, callback__retry_delay_ms=20)


@pytest.fixture(scope="module")
def by_microservice(shared_service: Callable[..., Service], authorizer: Site) -> Service:
    return shared_service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        authorization__timeout_ms=1500,
        authorization__max_retries=1,
        authorization__circuit_breaker__enabled=False,
    )


def token() -> str:
    return f"~driver.{uuid.uuid4().hex}_-"


@pytest.mark.parametrize(
    ("entry", "status", "reason"),
    [
        ({}, "allowed", ""),
        ({"allowed_stations": [HERE, ELSEWHERE]}, "allowed", ""),
        ({"valid_from": "2020-01-01T00:00:00Z", "valid_until": "2999-01-01T00:00:00Z"}, "allowed", ""),
        (None, "not_allowed", "driver_not_in_acl"),
        ({"blocked": True}, "not_allowed", "token_blocked"),
        ({"valid_until": "2020-01-01T00:00:00Z"}, "not_allowed", "token_expired"),
        ({"valid_from": "2999-01-01T00:00:00Z"}, "not_allowed", "token_not_yet_valid"),
        ({"denied_stations": [HERE.lower()]}, "not_allowed", "not_at_this_location"),
        ({"allowed_stations": [ELSEWHERE]}, "not_allowed", "not_at_this_location"),
        ({"allowed_stations": [HERE], "denied_stations": [HERE]}, "not_allowed", "not_at_this_location"),
        (
            {"blocked": True, "valid_until": "2020-01-01T00:00:00Z", "denied_stations": [HERE]},
            "not_allowed",
            "token_blocked",
        ),
        ({"valid_until": "2020-01-01T00:00:00Z", "denied_stations": [HERE]}, "not_allowed", "token_expired"),
    ],
)
def test_the_access_list_decides(
    by_list: Service, receiver: Site, entry: dict[str, Any] | None, status: str, reason: str
) -> None:
    driver = token() if entry is None else by_list.allow(**entry)
    asked = by_list.ask(receiver.url(), station_id=HERE, driver_token=driver)
    ended = by_list.finished(asked)
    assert ended["status"] == "COMPLETED"
    assert (ended["decision"]["status"], ended["decision"]["reason"]) == (status, reason)
    assert ended["callback"]["attempts"] == 1
    (call,) = receiver.calls_to(asked.callback_url)
    assert call.body == b'{"station_id":"%b","driver_token":"%b","status":"%b"}' % (
        HERE.encode(),
        driver.encode(),
        status.encode(),
    )
    checked = by_list.client.post("/api/v1/acl/check", json={"station_id": HERE, "driver_token": driver})
    assert (checked.json()["status"], checked.json()["reason"]) == (status, reason)


def test_every_attempt_is_signed_anew_under_one_id(by_list: Service, receiver: Site, reply: type[Reply]) -> None:
    before = time.time()
    asked = by_list.ask(receiver.planned(reply(500), reply(500), reply(204)))
    assert by_list.finished(asked)["callback"]["attempts"] == 3
    calls = receiver.calls_to(asked.callback_url)
    assert len(calls) == 3
    for call in calls:
        assert call.headers["content-type"] == "application/json"
        assert call.headers["webhook-id"] == asked.request_id
        assert before - 1 <= int(call.headers["webhook-timestamp"]) <= call.at
        assert call.headers["host"] == f"127.0.0.1:{receiver.port}"
        assert len(call.headers["webhook-signature"].split(" ")) == len(SECRETS)
        for secret in SECRETS:
            assert Webhook(secret).verify(call.body, call.headers) == call.json
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRETS[0]).verify(call.body.replace(b"not_allowed", b"allowed"), call.headers)


def test_without_a_secret_nothing_is_signed(by_microservice: Service, receiver: Site) -> None:
    asked = by_microservice.ask(receiver.url())
    by_microservice.finished(asked)
    (call,) = receiver.calls_to(asked.callback_url)
    assert call.headers["webhook-id"] == asked.request_id
    assert "webhook-signature" not in call.headers


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("allowed", ""),
        ("not_allowed", "token_blocked"),
        ("not_allowed", ""),
        ("invalid", "unheard_of"),
        ("unknown", "authorization_error"),
    ],
)
def test_the_microservice_decides(
    by_microservice: Service,
    receiver: Site,
    authorizer: Site,
    answer: Callable[..., Reply],
    status: str,
    reason: str,
) -> None:
    driver = token()
    authorizer.plan(driver, answer(status, reason))
    asked = by_microservice.ask(receiver.url(), station_id=HERE, driver_token=driver, headers={"traceparent": TRACE})
    ended = by_microservice.finished(asked)
    assert ended["status"] == "COMPLETED"
    assert (ended["decision"]["status"], ended["decision"]["reason"]) == (status, reason)
    (question,) = authorizer.calls_to(driver)
    assert question.json == {"request_id": asked.request_id, "station_id": HERE, "driver_token": driver}
    assert question.headers["content-type"] == "application/json"
    (call,) = receiver.calls_to(asked.callback_url)
    assert call.json["status"] == status
    assert call.headers["traceparent"] == question.headers["traceparent"] == TRACE


LATER = "cc" + TRACE[2:]
LONG = "a=" + "x" * 250 + ",b=" + "y" * 250
STATE = "fw529a3039@dt=FfhxBVNiGhs2KIz7, congo=t61rcWkgMzE"


@pytest.mark.parametrize(
    ("given", "parent", "state"),
    [
        ({"traceparent": TRACE, "tracestate": STATE}, TRACE, STATE.replace(" ", "")),
        ({"traceparent": TRACE, "tracestate": LONG}, TRACE, LONG),
        ({"traceparent": TRACE, "tracestate": "a=" + "x" * 511}, TRACE, None),
        ({"traceparent": TRACE, "tracestate": "nonsense"}, TRACE, None),
        ({"traceparent": TRACE, "tracestate": "a=1,a=2"}, TRACE, None),
        ({"traceparent": "nonsense", "tracestate": STATE}, None, None),
        ({"tracestate": STATE}, None, None),
        ({"traceparent": f"{LATER}-future"}, TRACE, None),
        ({"traceparent": f"{LATER}-", "tracestate": "a=1"}, TRACE, "a=1"),
        ({"traceparent": f"{LATER}.future"}, None, None),
        ({"traceparent": f"ff{LATER[2:]}-future"}, None, None),
    ],
)  # fmt: skip
def test_the_trace_context_is_carried_by_the_w3c_rules(
    by_microservice: Service,
    authorizer: Site,
    receiver: Site,
    given: dict[str, str],
    parent: str | None,
    state: str | None,
) -> None:
    asked = by_microservice.ask(receiver.url(), headers=given)
    by_microservice.finished(asked)
    (question,) = authorizer.calls_to(asked.driver_token)
    (call,) = receiver.calls_to(asked.callback_url)
    for carried in (question.headers, call.headers):
        assert (carried.get("traceparent"), carried.get("tracestate")) == (parent, state)


def test_a_tracestate_that_holds_the_drivers_token_is_dropped(by_microservice: Service, receiver: Site) -> None:
    token = f"a0123456789-{uuid.uuid4().hex}"
    asked = by_microservice.ask(
        receiver.url(), driver_token=token, headers={"traceparent": TRACE, "tracestate": f"a={token}"}
    )
    by_microservice.finished(asked)
    (call,) = receiver.calls_to(asked.callback_url)
    assert call.headers["traceparent"] == TRACE
    assert "tracestate" not in call.headers
    assert token not in by_microservice.log


@pytest.mark.parametrize("traceparent", ["", "nonsense", TRACE.upper(), f"{TRACE}-more", "00-" + "0" * 32 + TRACE[35:]])
def test_what_is_no_traceparent_is_not_carried(by_microservice: Service, receiver: Site, traceparent: str) -> None:
    asked = by_microservice.ask(receiver.url(), headers={"traceparent": traceparent})
    by_microservice.finished(asked)
    (call,) = receiver.calls_to(asked.callback_url)
    assert "traceparent" not in call.headers


def test_a_silent_microservice(by_microservice: Service, receiver: Site, authorizer: Site, reply: type[Reply]) -> None:
    driver = token()
    authorizer.plan(driver, reply(how="held"))
    asked = by_microservice.ask(receiver.url(), driver_token=driver)
    ended = by_microservice.finished(asked)
    assert ended["status"] == "TIMEOUT"
    assert (ended["decision"]["status"], ended["decision"]["reason"]) == ("unknown", "authorization_timeout")
    assert [call.json["status"] for call in receiver.calls_to(asked.callback_url)] == ["unknown"]
    timeouts = by_microservice.client.get("/api/v1/decisions", params={"status": "unknown"}).json()["items"]
    assert asked.request_id in [item["request_id"] for item in timeouts]


@pytest.mark.parametrize(
    "broken",
    [
        {"status": 500},
        {"status": 302, "headers": {"location": "/"}},
        {"status": 204},
        {"body": b"no JSON"},
        {"body": b'{"status": "perhaps"}'},
        {"body": b'{"verdict": "allowed"}'},
        {"body": b'["allowed"]'},
        {"how": "cut"},
    ],
)
def test_a_broken_microservice(
    by_microservice: Service, receiver: Site, authorizer: Site, reply: type[Reply], broken: dict[str, Any]
) -> None:
    driver = token()
    authorizer.plan(driver, reply(**broken))
    asked = by_microservice.ask(receiver.url(), driver_token=driver)
    ended = by_microservice.finished(asked)
    assert ended["status"] == "COMPLETED"
    assert (ended["decision"]["status"], ended["decision"]["reason"]) == ("unknown", "authorization_error")
    assert [call.json["status"] for call in receiver.calls_to(asked.callback_url)] == ["unknown"]


def test_a_failed_question_is_asked_again(
    by_microservice: Service, receiver: Site, authorizer: Site, reply: type[Reply], answer: Callable[..., Reply]
) -> None:
    driver = token()
    authorizer.plan(driver, reply(503), answer("allowed"))
    ended = by_microservice.finished(by_microservice.ask(receiver.url(), driver_token=driver))
    assert ended["decision"]["status"] == "allowed"
    assert len(authorizer.calls_to(driver)) == 2


def test_no_reason_ever_holds_the_token(
    by_microservice: Service, receiver: Site, authorizer: Site, answer: Callable[..., Reply]
) -> None:
    driver = uuid.uuid4().hex
    authorizer.plan(driver, answer("not_allowed", f"no_{driver}"))
    asked = by_microservice.ask(receiver.url(), driver_token=driver)
    ended = by_microservice.finished(asked)
    assert ended["decision"]["status"] == "not_allowed"
    assert driver not in json.dumps(ended)
    assert driver not in by_microservice.csv_file.read_text() + by_microservice.log


def test_an_open_circuit(
    service: Callable[..., Service],
    receiver: Site,
    authorizer: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    guarded = service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        authorization__max_retries=0,
        authorization__circuit_breaker__failure_threshold=3,
        authorization__circuit_breaker__recovery_timeout_ms=1500,
    )
    for _ in range(3):
        driver = token()
        authorizer.plan(driver, reply(500))
        ended = guarded.finished(guarded.ask(receiver.url(), driver_token=driver))
        assert ended["decision"]["reason"] == "authorization_error"
    driver = token()
    asked = guarded.ask(receiver.url(), driver_token=driver)
    ended = guarded.finished(asked)
    assert ended["status"] == "COMPLETED"
    assert (ended["decision"]["status"], ended["decision"]["reason"]) == ("unknown", "circuit_open")
    assert [call.json["status"] for call in receiver.calls_to(asked.callback_url)] == ["unknown"]
    assert not authorizer.calls_to(driver)
    health = guarded.client.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "DEGRADED")
    assert health.json()["components"]["authorization"]["status"] == "DEGRADED"
    assert guarded.metrics()['circuit_breaker_state{name="authorization"}'] > 0
    assert guarded.metrics()['circuit_breaker_transitions_total{name="authorization",to="open"}'] == 1

    def recovered() -> bool:
        return guarded.finished(guarded.ask(receiver.url()))["decision"]["status"] == "allowed"

    eventually(recovered)
    assert guarded.client.get("/health").json()["status"] == "UP"
    assert guarded.metrics()['circuit_breaker_state{name="authorization"}'] == 0


def test_one_after_another_and_too_late(
    service: Callable[..., Service],
    receiver: Site,
    authorizer: Site,
    answer: Callable[..., Reply],
    eventually: Callable[..., Any],
) -> None:
    narrow = service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        queue__consumer_concurrency=1,
        queue__max_age_ms=300,
    )
    first, second = token(), token()
    authorizer.plan(first, answer("allowed", how="held"))
    slow = narrow.ask(receiver.url(), driver_token=first)
    eventually(lambda: authorizer.calls_to(first))
    late = narrow.ask(receiver.url(), driver_token=second)
    assert narrow.session(slow.request_id)["status"] == "PROCESSING"
    waiting = narrow.session(late.request_id)
    assert (waiting["status"], waiting["decision"], waiting["callback"]) == ("QUEUED", None, None)
    old_at = time.time() + 0.4
    eventually(lambda: time.time() > old_at)
    authorizer.release(first)
    assert narrow.finished(slow)["decision"]["status"] == "allowed"
    ended = narrow.finished(late)
    assert ended["status"] == "COMPLETED"
    assert (ended["decision"]["status"], ended["decision"]["reason"]) == ("unknown", "expired_in_queue")
    assert [call.json["status"] for call in receiver.calls_to(late.callback_url)] == ["unknown"]
    assert not authorizer.calls_to(second)


def test_a_cached_decision_is_a_decision_of_its_own(by_microservice: Service, receiver: Site, authorizer: Site) -> None:
    driver = token()
    first, again = (
        by_microservice.finished(by_microservice.ask(receiver.url(), station_id=HERE, driver_token=driver))
        for _ in range(2)
    )
    other = by_microservice.finished(by_microservice.ask(receiver.url(), station_id=ELSEWHERE, driver_token=driver))
    assert [ended["decision"]["status"] for ended in (first, again, other)] == ["allowed"] * 3
    assert again["decision"]["processing_time_ms"] == 0
    assert len(authorizer.calls_to(driver)) == 2
    rows = {row[1]: row for row in by_microservice.csv_rows()}
    assert {first["request_id"], again["request_id"], other["request_id"]} <= rows.keys()


def test_unknown_is_not_remembered(
    by_microservice: Service, receiver: Site, authorizer: Site, answer: Callable[..., Reply]
) -> None:
    driver = token()
    authorizer.plan(driver, answer("unknown"), answer("invalid"), answer("allowed"))
    statuses = [
        by_microservice.finished(by_microservice.ask(receiver.url(), station_id=HERE, driver_token=driver))
        for _ in range(3)
    ]
    assert [ended["decision"]["status"] for ended in statuses] == ["unknown", "invalid", "allowed"]


def test_a_change_of_the_list_is_followed(
    by_list: Service, receiver: Site, command: str, eventually: Callable[..., Any]
) -> None:
    driver = token()

    def decided() -> str:
        return by_list.finished(by_list.ask(receiver.url(), station_id=HERE, driver_token=driver))["decision"]["status"]

    assert decided() == "not_allowed"
    answer = by_list.client.put("/api/v1/acl", json={"driver_token": driver})
    assert decided() == "allowed"
    assert by_list.client.delete(f"/api/v1/acl/{answer.json()['driver_token_hash']}").status_code == 204
    assert decided() == "not_allowed"
    file = by_list.folder / "list.csv"
    file.write_text(f"driver_token\n{driver}\n")
    subprocess.run([command, "acl", "import", file.name, "--config", "chargegate.toml"], cwd=by_list.folder, check=True)
    eventually(lambda: decided() == "allowed", 5)
    file.write_text(f"driver_token,blocked\n{driver},true\n")
    subprocess.run([command, "acl", "import", file.name, "--config", "chargegate.toml"], cwd=by_list.folder, check=True)
    eventually(lambda: decided() == "not_allowed", 5)


def test_the_audit_line(by_list: Service, receiver: Site) -> None:
    driver = by_list.allow()
    asked = by_list.ask(receiver.url(), station_id=HERE, driver_token=driver)
    decision = by_list.finished(asked)["decision"]
    (line,) = [row for row in by_list.csv_rows() if row[1] == asked.request_id]
    at, _, station, token_hash, status, reason, took = line
    assert (station, status, reason, took) == (HERE, "allowed", "", str(decision["processing_time_ms"]))
    second, _, rest = at.partition(".")
    assert time.strptime(second, "%Y-%m-%dT%H:%M:%S")
    assert (len(rest), rest[3:]) == (4, "Z")
    assert (len(token_hash), int(token_hash, 16) > 0) == (16, True)
    (item,) = by_list.client.get("/api/v1/decisions", params={"station_id": HERE, "limit": 1}).json()["items"]
    assert (item["request_id"], item["driver_token_hash"]) == (asked.request_id, token_hash)
