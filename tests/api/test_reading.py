"""One request, decisions, statistics and dead letters, read over HTTP."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.api.conftest import BODY, SESSION, STATION, TOKEN, Service

from chargegate.engines.memory.queue import MemoryQueue
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.ledger.records import Finished
from chargegate.model import Reason, RequestStatus, Status, new_request_id, to_iso
from chargegate.queues.base import Message, Waiting
from chargegate.queues.envelope import unwrap

AT = 1_700_000_000_000


def pages(client: httpx.Client, path: str, **query: Any) -> list[list[dict[str, Any]]]:
    """Every page of a list, following its cursors."""
    found, cursor = [], None
    while True:
        answer = client.get(path, params={**query, **({"cursor": cursor} if cursor else {})})
        assert answer.status_code == 200
        page = answer.json()
        assert set(page) == {"items", "next_cursor"}
        found.append(page["items"])
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def test_a_request_from_queued_to_completed(service: Service, client: httpx.Client) -> None:
    accepted = client.post(SESSION, json=BODY).json()
    path = f"{SESSION}/{accepted['request_id']}"
    waiting = {
        "request_id": accepted["request_id"],
        "station_id": STATION,
        "status": "QUEUED",
        "created_at": to_iso(accepted["timestamp"]),
        "processed_at": None,
        "decision": None,
        "callback": None,
    }
    assert client.get(path).json() == waiting
    [delivery] = service.run(service.queue.receive(1))
    assert client.get(path).json() == {**waiting, "status": "PROCESSING"}
    service.decide(request_id=accepted["request_id"], at=AT)
    service.run(service.queue.ack(delivery))
    decided = client.get(path).json()
    assert decided["status"] == "PROCESSING"
    assert decided["decision"] == {"status": "allowed", "reason": "", "processing_time_ms": 12, "timestamp": AT}
    finished = Finished(accepted["request_id"], RequestStatus.COMPLETED, 2, 204, None, AT + 40, None)
    service.run(service.ledger.finish(finished))
    completed = client.get(path.upper().replace("/API/V1/CHARGING-SESSION", SESSION)).json()
    assert completed["status"] == "COMPLETED"
    assert completed["processed_at"] == to_iso(AT + 40)
    assert completed["callback"] == {
        "attempts": 2,
        "last_status_code": 204,
        "last_error": None,
        "delivered_at": to_iso(AT + 40),
        "history": [],
    }


@pytest.mark.parametrize("name", ["0" * 32, "01a2008a-e255-7ea6-8a2f-cd81fdc43d51" + "0", "%20", "..%2F"])
def test_an_id_that_is_none(client: httpx.Client, name: str) -> None:
    answer = client.get(f"{SESSION}/{name}")
    assert answer.status_code in (400, 404)
    if answer.status_code == 400:
        assert list(answer.json()["details"]) == ["request_id"]
        assert name not in answer.text


class Moving(MemoryQueue):
    """The request is decided and leaves the queue while it is looked for."""

    service: Service | None = None

    async def find(self, request_id: str) -> Waiting | None:
        assert self.service is not None
        await asyncio.to_thread(sqlite_decide, self.service, request_id)
        return None


def sqlite_decide(service: Service, request_id: str) -> None:
    service.decide(request_id=request_id)


def test_a_request_that_moves_while_it_is_looked_for(serve: Callable[..., Service]) -> None:
    queue = Moving(1)
    queue.service = serve(queue=queue)
    request_id = new_request_id()
    answer = queue.service.http.get(f"{SESSION}/{request_id}")
    assert (answer.status_code, answer.json()["status"]) == (200, "PROCESSING")


def test_decisions_are_newest_first_and_complete(service: Service, client: httpx.Client) -> None:
    made = [service.decide(at=AT + number // 3) for number in range(10)]
    found = pages(client, "/api/v1/decisions", limit=3)
    assert [len(page) for page in found] == [3, 3, 3, 1]
    items = [item for page in found for item in page]
    assert [item["request_id"] for item in items] == [
        decision.request_id for decision in sorted(made, key=lambda d: (d.timestamp, d.request_id), reverse=True)
    ]
    assert items[0] == {
        "timestamp": AT + 3,
        "request_id": made[9].request_id,
        "station_id": STATION,
        "driver_token_hash": "0123456789abcdef",
        "status": "allowed",
        "reason": "",
        "processing_time_ms": 12,
    }
    assert len(pages(client, "/api/v1/decisions", limit=10)) == 1
    assert len(pages(client, "/api/v1/decisions")) == 1


def test_decisions_are_filtered(service: Service, client: httpx.Client) -> None:
    other = new_request_id()
    service.decide(at=AT)
    late = service.decide(Status.UNKNOWN, Reason.TIMEOUT, at=AT + 1000)
    service.decide(Status.NOT_ALLOWED, Reason.BLOCKED, at=AT + 2000, station_id=other)

    def count(**query: Any) -> int:
        return len(client.get("/api/v1/decisions", params=query).json()["items"])

    assert count() == 3
    assert count(status="unknown") == count(status="UNKNOWN") == 1
    assert count(**{"from": to_iso(AT + 1000)}) == 2
    assert count(to=to_iso(AT + 1000)) == 1
    assert count(**{"from": "2023-11-14T22:13:21", "to": "2023-11-14T23:13:22+01:00"}) == 1
    assert count(**{"from": "2023-11-15"}) == 0
    assert count(anything="else") == 3
    timeouts = client.get("/api/v1/audit/timeouts").json()
    assert [item["request_id"] for item in timeouts["items"]] == [late.request_id]
    stats = client.get("/api/v1/audit/stats", params={"from": to_iso(AT)}).json()
    # New ids begin with the time, and so come before this one.
    assert stats["items"][1] == {
        "station_id": STATION.lower(),
        "total": 2,
        "allowed": 1,
        "not_allowed": 0,
        "unknown": 1,
        "invalid": 0,
    }
    assert [station["total"] for station in stats["items"]] == [1, 2]


def test_timeouts_are_found_by_an_index(
    service: Service, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.decide(Status.UNKNOWN, Reason.TIMEOUT)
    asked: list[str] = []
    scan = SqliteStore.scan

    async def scan_traced(store: SqliteStore, query: Callable[[sqlite3.Connection], Any]) -> Any:
        def traced(connection: sqlite3.Connection) -> Any:
            connection.set_trace_callback(asked.append)
            try:
                return query(connection)
            finally:
                connection.set_trace_callback(None)

        return await scan(store, traced)

    monkeypatch.setattr(SqliteStore, "scan", scan_traced)
    assert len(client.get("/api/v1/audit/timeouts").json()["items"]) == 1
    [query] = asked
    with closing(sqlite3.connect(tmp_path / "api.db")) as connection:
        plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + query)]
    assert "INDEX audit_timeouts" in plan[0]


def test_every_wrong_parameter_is_named_at_once(client: httpx.Client) -> None:
    query = "station_id=x&status=maybe&from=yesterday&to=2026-13-01&limit=0&cursor=!"
    answer = client.get(f"/api/v1/decisions?{query}")
    assert answer.status_code == 400
    assert set(answer.json()["details"]) == {"station_id", "status", "from", "to", "limit", "cursor"}
    assert "maybe" not in answer.text


@pytest.mark.parametrize("query", ["limit=", "limit=1e2", "limit=٣", "limit=1&limit=1", "cursor=AAAA"])
def test_limits_and_cursors_are_checked(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/api/v1/decisions?{query}")
    assert answer.status_code == 400
    assert set(answer.json()["details"]) == {query.partition("=")[0]}


def test_dead_letters_are_listed_without_what_is_sealed(service: Service, client: httpx.Client) -> None:
    letters = [service.give_up(at=AT + number) for number in range(5)]
    found = pages(client, "/api/v1/dead-letters", limit=2)
    items = [item for page in found for item in page]
    assert [item["request_id"] for item in items] == [letter.request_id for letter in reversed(letters)]
    assert items[-1] == {
        "request_id": letters[0].request_id,
        "station_id": STATION,
        "driver_token_hash": "0123456789abcdef",
        "status": "allowed",
        "reason": "",
        "created_at": to_iso(AT - 100),
        "failed_at": to_iso(AT + 9),
        "attempts": 3,
        "last_status_code": 500,
        "last_error": "status_500",
        "client": "",
    }
    some = client.get("/api/v1/dead-letters", params={"from": to_iso(AT + 10), "to": to_iso(AT + 12)}).json()
    assert [item["request_id"] for item in some["items"]] == [letters[2].request_id, letters[1].request_id]


def test_replaying_one(service: Service, client: httpx.Client) -> None:
    letter = service.give_up()
    answer = client.post(f"/api/v1/dead-letters/{letter.request_id.upper()}/replay")
    assert answer.status_code == 202
    replayed = answer.json()
    assert set(replayed) == {"status", "message", "request_id", "timestamp"}
    assert (replayed["status"], replayed["request_id"]) == ("accepted", letter.request_id)
    [message] = service.received()
    request, replayed_at = unwrap(service.keyring, message)
    assert (request.request_id, request.driver_token, request.callback_url) == (
        letter.request_id,
        TOKEN,
        BODY["callback_url"],
    )
    assert replayed_at == AT + 10  # after the callback was given up


def test_replaying_what_is_no_dead_letter(service: Service, client: httpx.Client) -> None:
    alive = service.decide()
    for request_id in (alive.request_id, new_request_id()):
        answer = client.post(f"/api/v1/dead-letters/{request_id}/replay")
        assert (answer.status_code, answer.json()["status"]) == (404, "not_found")
    assert client.post("/api/v1/dead-letters/x/replay").status_code == 400
    assert service.accepted() == 0


def test_replaying_a_range_of_several_pages(serve: Callable[..., Service]) -> None:
    service = serve(queue_size=1000)
    client = service.http
    letters = [service.give_up(at=AT + number) for number in range(250)]
    query = {"from": to_iso(AT + 19), "to": to_iso(AT + 249)}
    answer = client.post("/api/v1/dead-letters/replay", params=query)
    assert answer.status_code == 202
    assert set(answer.json()) == {"status", "replayed", "timestamp"}
    assert answer.json()["replayed"] == 230
    assert {sent.request_id for sent in service.received()} == {letter.request_id for letter in letters[10:240]}
    for bound in ({"from": to_iso(0)}, {"to": to_iso(AT + 1000)}):
        assert client.post("/api/v1/dead-letters/replay", params=bound).json()["replayed"] == 250


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("FROM=2026-01-31", {"FROM"}),
        ("from=", {"from"}),
        ("from=yesterday&limit=1&station_id=x", {"from", "limit", "station_id"}),
        ("from=2026-01-31&from=2026-02-01", {"from"}),
    ],
)
def test_a_range_that_is_not_understood_replays_nothing(
    service: Service, client: httpx.Client, query: str, fields: set[str]
) -> None:
    service.give_up()
    answer = client.post(f"/api/v1/dead-letters/replay?{query}")
    assert (answer.status_code, answer.json()["status"]) == (400, "validation_error")
    assert set(answer.json()["details"]) == fields
    assert TOKEN not in answer.text
    assert service.accepted() == 0


def test_replaying_into_a_full_queue(serve: Callable[..., Service]) -> None:
    service = serve(queue_size=0)
    letter = service.give_up()
    for path in ("/api/v1/dead-letters/replay?from=2020-01-01", f"/api/v1/dead-letters/{letter.request_id}/replay"):
        answer = service.http.post(path)
        assert (answer.status_code, answer.json()["status"]) == (503, "service_unavailable")
        assert answer.headers["retry-after"]


class Broken(MemoryQueue):
    async def put(self, message: Message) -> None:
        raise KeyError(message.request_id + TOKEN)


def test_a_defect_of_another_route_is_no_request_to_charge(serve: Callable[..., Service]) -> None:
    service = serve(queue=Broken(1))
    answer = service.http.post(f"/api/v1/dead-letters/{service.give_up().request_id}/replay")
    assert (answer.status_code, answer.json()["status"]) == (500, "internal_error")
    assert TOKEN not in answer.text
    assert service.counted("internal_error") == 0


def test_a_database_that_does_not_answer(service: Service, client: httpx.Client, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "api.db")
    for table in ("charging_requests", "authorization_audit", "access_list"):
        connection.execute(f"DROP TABLE {table}")
    connection.close()
    for method, path in [
        ("GET", f"{SESSION}/{new_request_id()}"),
        ("GET", "/api/v1/decisions"),
        ("GET", "/api/v1/audit/stats"),
        ("GET", "/api/v1/dead-letters"),
        ("POST", "/api/v1/dead-letters/replay?from=2020-01-01"),
        ("GET", "/api/v1/acl"),
        ("DELETE", "/api/v1/acl/" + "0" * 64),
    ]:
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["status"]) == (503, "service_unavailable")
        assert answer.headers["retry-after"] == "1"


def test_head_is_get_without_the_body(client: httpx.Client) -> None:
    for path in ("/api/v1/decisions", "/health/live", "/openapi.json", "/docs"):
        answer = client.head(path)
        assert answer.status_code == 200
        assert answer.content == b""
        assert int(answer.headers["content-length"]) > 0
