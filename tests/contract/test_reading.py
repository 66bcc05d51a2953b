"""The reading routes: one request, decisions, dead letters, the access list, health, metrics, documentation."""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Asked, Reply, Service, Site

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z").fullmatch
COUNTED = [
    "charging_requests_total",
    "authorization_status_total",
    "authorization_processing_time_seconds",
    "audit_log_entries_total",
    "callback_deliveries_total",
    "callback_duration_seconds",
    "end_to_end_seconds",
    "queue_depth",
    "queue_oldest_age_seconds",
    "requests_in_flight",
    "circuit_breaker_state",
    "circuit_breaker_transitions_total",
    "dead_letters",
    "process_resident_memory_bytes",
]


@pytest.fixture(scope="module")
def kept(shared_service: Callable[..., Service]) -> Service:
    return shared_service(callback__retry_delay_ms=10)


@pytest.fixture(scope="module")
def asked(kept: Service, receiver: Site, reply: type[Reply]) -> list[Asked]:
    """23 ended requests, oldest first: of two stations; every third was allowed, every fifth is a dead letter."""
    stations = [str(uuid.uuid4()).upper(), str(uuid.uuid4())]
    driver = kept.allow()
    made = []
    for number in range(23):
        url = receiver.planned(reply(500 if number % 5 == 0 else 200))
        fields = {"driver_token": driver} if number % 3 == 0 else {}
        made.append(kept.ask(url, station_id=stations[number % 2], **fields))
        kept.finished(made[-1])
    return made


def pages(service: Service, path: str, **query: Any) -> Iterator[list[dict[str, Any]]]:
    cursor: str | None = ""
    while cursor is not None:
        answer = service.client.get(path, params={**query, **({"cursor": cursor} if cursor else {})})
        assert answer.status_code == 200, answer.text
        assert answer.json().keys() == {"items", "next_cursor"}
        cursor = answer.json()["next_cursor"]
        yield answer.json()["items"]


def listed(service: Service, path: str, **query: Any) -> list[str]:
    return [item["request_id"] for page in pages(service, path, **query) for item in page]


def test_one_request(kept: Service, asked: list[Asked]) -> None:
    found = kept.session(asked[1].request_id)
    assert found.keys() == {
        *("request_id", "station_id", "status", "created_at", "processed_at", "decision", "callback")
    }
    assert (found["request_id"], found["station_id"]) == (asked[1].request_id, asked[1].station_id)
    assert found["status"] == "COMPLETED"
    assert found["decision"].keys() == {"status", "reason", "processing_time_ms", "timestamp"}
    assert found["callback"].keys() == {"attempts", "last_status_code", "last_error", "delivered_at", "history"}
    assert ISO(found["created_at"])
    assert ISO(found["processed_at"])
    assert ISO(found["callback"]["delivered_at"])
    assert isinstance(found["decision"]["timestamp"], int)
    assert kept.session(asked[1].request_id.upper())["request_id"].lower() == asked[1].request_id


def test_one_request_with_a_wrong_id(kept: Service) -> None:
    answer = kept.client.get("/api/v1/charging-session/none")
    assert (answer.status_code, answer.json()["details"].keys()) == (400, {"request_id"})


@pytest.mark.parametrize("limit", [1, 7, 22, 23, 24, 1000])
def test_pages_have_no_gaps_and_no_repeats(kept: Service, asked: list[Asked], limit: int) -> None:
    newest_first = [one.request_id for one in reversed(asked)]
    found = list(pages(kept, "/api/v1/decisions", limit=limit))
    assert max(map(len, found)) == min(limit, 23)
    items = [item for page in found for item in page]
    assert [item["request_id"] for item in items] == newest_first
    assert items[0].keys() == {
        *("timestamp", "request_id", "station_id", "driver_token_hash", "status", "reason", "processing_time_ms")
    }
    assert len(items[0]["driver_token_hash"]) == 16
    times = [item["timestamp"] for item in items]
    assert times == sorted(times, reverse=True)


def test_what_arrives_meanwhile_moves_no_page(service: Callable[..., Service], receiver: Site) -> None:
    kept = service()
    before = [kept.ask(receiver.url()) for _ in range(9)]
    for one in before:
        kept.finished(one)
    found = []
    for page in pages(kept, "/api/v1/decisions", limit=2):
        found += [item["request_id"] for item in page]
        kept.finished(kept.ask(receiver.url()))
    assert sorted(found) == sorted(one.request_id for one in before)


def test_filters(kept: Service, asked: list[Asked]) -> None:
    first, second = ([one.request_id for one in asked[start::2]][::-1] for start in (0, 1))
    for station in (asked[0].station_id, asked[0].station_id.lower()):
        assert listed(kept, "/api/v1/decisions", station_id=station, limit=5) == first
    assert listed(kept, "/api/v1/decisions", station_id=asked[1].station_id) == second
    assert listed(kept, "/api/v1/decisions", station_id=str(uuid.uuid4())) == []
    allowed = [one.request_id for one in asked[::3]][::-1]
    assert listed(kept, "/api/v1/decisions", status="allowed", limit=3) == allowed
    assert listed(kept, "/api/v1/decisions", status="invalid") == []
    both = {"station_id": asked[0].station_id, "status": "allowed"}
    assert listed(kept, "/api/v1/decisions", **both) == [one.request_id for one in asked[::6]][::-1]
    middle = kept.session(asked[10].request_id)["decision"]["timestamp"] / 1000
    iso = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(middle)) + f".{round(middle * 1000) % 1000:03}Z"
    since, until = (listed(kept, "/api/v1/decisions", **{name: iso}) for name in ("from", "to"))
    assert since + until == [one.request_id for one in reversed(asked)]
    assert since[-1] == asked[10].request_id


def test_dead_letters_are_paged(kept: Service, asked: list[Asked]) -> None:
    dead = [one.request_id for one in asked[::5]][::-1]
    assert listed(kept, "/api/v1/dead-letters", limit=2) == dead
    assert kept.metrics()["dead_letters"] == len(dead)
    assert listed(kept, "/api/v1/dead-letters", to="2020-01-01T00:00:00Z") == []
    assert listed(kept, "/api/v1/dead-letters", **{"from": "2020-01-01"}) == dead


def test_stations_are_counted_and_paged(kept: Service, asked: list[Asked]) -> None:
    expected = {asked[0].station_id.lower(): (12, 4), asked[1].station_id.lower(): (11, 4)}
    for limit in (1, 2, 3):
        found = [item for page in pages(kept, "/api/v1/audit/stats", limit=limit) for item in page]
        assert [item["station_id"] for item in found] == sorted(expected)
        assert {item["station_id"]: (item["total"], item["allowed"]) for item in found} == expected
    [[one]] = pages(kept, "/api/v1/audit/stats", station_id=asked[1].station_id.upper())
    assert (one["station_id"], one["total"]) == (asked[1].station_id.lower(), 11)
    assert list(pages(kept, "/api/v1/audit/stats", station_id=str(uuid.uuid4()))) == [[]]


def test_timeouts(
    service: Callable[..., Service], receiver: Site, authorizer: Site, answer: Callable[..., Reply]
) -> None:
    slow = service(authorization__backend="http", authorization__url=authorizer.url(), authorization__timeout_ms=1500)
    made = []
    for how in ("held", "held", "at_once"):
        token = f"driver-{uuid.uuid4().hex}"
        authorizer.plan(token, answer("allowed", how=how))
        made.append(slow.ask(receiver.url(), driver_token=token))
        slow.finished(made[-1])
        authorizer.release(token)
    assert listed(slow, "/api/v1/audit/timeouts") == [made[1].request_id, made[0].request_id]
    assert listed(slow, "/api/v1/audit/timeouts", station_id=made[0].station_id) == [made[0].request_id]
    assert listed(slow, "/api/v1/audit/timeouts", station_id=made[2].station_id) == []


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("form=2020-01-01", {"form"}),
        ("from=2020-01-01&until=2021-01-01", {"until"}),
        ("to=never", {"to"}),
        ("from=2020-01-01&driver-0123456789.0123456789=", {"unknown parameter"}),
    ],
)
def test_a_range_that_is_not_understood_replays_nothing(
    kept: Service, asked: list[Asked], query: str, fields: set[str]
) -> None:
    answer = kept.client.post(f"/api/v1/dead-letters/replay?{query}")
    assert (answer.status_code, answer.json()["status"]) == (400, "validation_error")
    assert answer.json()["details"].keys() == fields
    assert "0123456789" not in answer.text
    assert kept.metrics()["dead_letters"] == len(asked[::5])
    empty = kept.client.post("/api/v1/dead-letters/replay?to=2020-01-01")
    assert (empty.status_code, empty.json()["replayed"]) == (202, 0)


@pytest.mark.parametrize(
    "path",
    [f"/api/v1/{name}" for name in ("decisions", "dead-letters", "acl", "audit/timeouts", "audit/stats")],
)
@pytest.mark.parametrize(
    ("name", "value"),
    [("limit", "0"), ("limit", "1001"), ("limit", "-1"), ("limit", "x"), ("cursor", "x"), ("cursor", "")],
)
def test_a_wrong_page_is_refused(kept: Service, path: str, name: str, value: str) -> None:
    answer = kept.client.get(path, params={name: value})
    assert (answer.status_code, answer.json()["status"]) == (400, "validation_error")
    assert answer.json()["details"].keys() == {name}


@pytest.mark.parametrize(
    ("name", "value"),
    [("station_id", "x"), ("status", "perhaps"), ("from", "yesterday"), ("to", "2026-13-01"), ("from", "99999-01-01")],
)
def test_a_wrong_filter_is_refused(kept: Service, name: str, value: str) -> None:
    for path in ("/api/v1/decisions", *(["/api/v1/audit/timeouts", "/api/v1/audit/stats"] if name != "status" else [])):
        answer = kept.client.get(path, params={name: value})
        assert (answer.status_code, answer.json()["details"].keys()) == (400, {name})


def test_the_access_list(service: Callable[..., Service]) -> None:
    kept = service()
    tokens = [f"driver-{uuid.uuid4().hex}" for _ in range(11)]
    entry = {
        "blocked": True,
        "valid_from": "2026-01-01T00:00:00.000Z",
        "valid_until": "2027-01-01T00:00:00.000Z",
        "allowed_stations": [str(uuid.uuid4())],
        "denied_stations": [str(uuid.uuid4())],
        "note": "the depot's \u20ac card",
    }
    put = [kept.client.put("/api/v1/acl", json={"driver_token": token, **entry}) for token in tokens]
    assert {answer.status_code for answer in put} == {200}
    hashes = [answer.json()["driver_token_hash"] for answer in put]
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in hashes)
    items = [item for page in pages(kept, "/api/v1/acl", limit=3) for item in page]
    assert sorted(item["driver_token_hash"] for item in items) == sorted(hashes)
    assert {name: items[0][name] for name in entry} == entry
    answers = "".join(answer.text for answer in (*put, kept.client.get("/api/v1/acl")))
    assert not [token for token in tokens if token in answers]
    kept.client.put("/api/v1/acl", json={"driver_token": tokens[0]})
    items = [item for page in pages(kept, "/api/v1/acl") for item in page]
    (replaced,) = [item for item in items if item["driver_token_hash"] == hashes[0]]
    assert (replaced["blocked"], replaced["note"], replaced["valid_from"]) == (False, "", None)
    for status in (204, 404):
        assert kept.client.delete(f"/api/v1/acl/{hashes[0]}").status_code == status
    question = {"station_id": str(uuid.uuid4()), "driver_token": tokens[1]}
    answer = kept.client.post("/api/v1/acl/check", json=question)
    assert (answer.json()["status"], answer.json()["reason"]) == ("not_allowed", "token_blocked")
    assert kept.client.get("/api/v1/decisions").json()["items"] == []
    assert kept.stop() == 0
    assert kept.audit_rows() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("driver_token", "short"),
        ("blocked", "yes"),
        ("valid_from", "yesterday"),
        ("valid_until", 5),
        ("allowed_stations", "x"),
        ("allowed_stations", ["x"]),
        ("denied_stations", [None]),
        ("note", 5),
        ("note", "this is driver-0123456789.0123456789"),
    ],
)
def test_a_wrong_entry_is_refused(kept: Service, field: str, value: Any) -> None:
    answer = kept.client.put("/api/v1/acl", json={"driver_token": "driver-0123456789.0123456789", field: value})
    assert (answer.status_code, answer.json()["status"]) == (400, "validation_error")
    assert answer.json()["details"].keys() == {field}
    assert "driver-0123456789" not in answer.text


def test_health(kept: Service) -> None:
    answer = kept.client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "UP")
    assert answer.json().keys() == {"status", "timestamp", "components"}
    assert answer.json()["components"].keys() == {"queue", "authorization", "callbacks", "audit", "database"}
    for component in answer.json()["components"].values():
        assert component.keys() == {"status", "details"}
        assert component["status"] == "UP"
    assert kept.client.get("/health/live").status_code == kept.client.get("/health/ready").status_code == 200


def test_metrics(kept: Service, asked: list[Asked], receiver: Site) -> None:
    answer = kept.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    named = {line.split(" ")[2] for line in answer.text.splitlines() if line.startswith("# TYPE ")}
    assert set(COUNTED) <= named
    for one in asked:
        for secret in (one.station_id.lower(), one.driver_token, one.request_id, one.callback_url):
            assert secret not in answer.text.lower()
    assert str(receiver.port) not in re.sub(r"[ \t].*", "", answer.text)
    metrics = kept.metrics()
    assert metrics['authorization_status_total{status="allowed"}'] == 8
    assert metrics['authorization_status_total{status="not_allowed"}'] == 15
    assert metrics['audit_log_entries_total{sink="csv"}'] == 23
    assert metrics["end_to_end_seconds_count"] == 18
    assert metrics['charging_requests_total{outcome="accepted"}'] == 23
    assert metrics["queue_depth"] == metrics["requests_in_flight"] == 0


def test_the_documentation(kept: Service) -> None:
    document = kept.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert {
        "/api/v1/charging-session",
        "/api/v1/charging-session/{request_id}",
        "/api/v1/decisions",
        "/api/v1/dead-letters",
        "/api/v1/dead-letters/{request_id}/replay",
        "/api/v1/dead-letters/replay",
        "/api/v1/acl",
        "/api/v1/acl/{driver_token_hash}",
        "/api/v1/acl/check",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
    } <= document["paths"].keys()
    page = kept.client.get("/docs")
    assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert all(path in page.text for path in document["paths"])


def test_metrics_and_health_can_be_turned_off(service: Callable[..., Service], eventually: Callable[..., Any]) -> None:
    quiet = service(started=False, monitoring__metrics__enabled=False, monitoring__health_check__enabled=False)
    quiet.spawn()
    eventually(lambda: quiet.ready() == 404)
    for path in ("/metrics", "/health", "/health/live"):
        assert quiet.client.get(path).status_code == 404
        assert path not in quiet.client.get("/openapi.json").json()["paths"]
    assert quiet.client.get("/api/v1/decisions").status_code == 200
