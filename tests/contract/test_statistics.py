"""Statistics: right at once, right after kills, in pages, and for administrators only."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import sys
import threading
import time
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from outside import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Service

    from outside import Reply, Site

PATH = "/api/v1/charging-session"
STATISTICS = "/api/v1/statistics"
LAUNCHER = Path(__file__).with_name("kill_at.py")
STATUSES = ("allowed", "not_allowed", "unknown", "invalid")


def pages(client: httpx.Client, path: str, **query: Any) -> Iterator[dict[str, Any]]:
    cursor: dict[str, str] = {}
    while True:
        answer = client.get(path, params=query | cursor)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["items"]) <= int(query.get("limit", 100))
        yield from page["items"]
        if page["next_cursor"] is None:
            return
        cursor = {"cursor": page["next_cursor"]}


def decided(client: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    return list(pages(client, "/api/v1/decisions", limit=1000, **query))


def by_status(items: list[dict[str, Any]]) -> dict[str, int]:
    found = Counter(item["status"] for item in items)
    return {"total": len(items), **{status: found[status] for status in STATUSES}}


def statuses(item: dict[str, Any]) -> dict[str, int]:
    return {name: item[name] for name in ("total", *STATUSES)}


def check(client: httpx.Client, limit: int = 3) -> None:
    """Every answer is a count of the decisions that are listed."""
    items = decided(client)
    total = client.get(STATISTICS).json()
    assert statuses(total) == by_status(items)
    assert total["timeouts"] == sum(item["reason"] == "authorization_timeout" for item in items)
    times = [item["processing_time_ms"] for item in items]
    assert [bucket["decisions"] for bucket in total["processing_time"]["histogram"]] == [
        sum(time <= bucket["up_to_ms"] for time in times) for bucket in total["processing_time"]["histogram"]
    ]
    found = {item["station_id"]: statuses(item) for item in pages(client, f"{STATISTICS}/stations", limit=limit)}
    assert list(found) == sorted({item["station_id"] for item in items})
    for station, counted in found.items():
        assert counted == by_status([item for item in items if item["station_id"] == station])
    for step, length in (("minute", 60_000), ("hour", 3_600_000), ("day", 86_400_000)):
        series = list(pages(client, f"{STATISTICS}/series", step=step, limit=limit))
        starts = Counter(item["timestamp"] // length * length for item in items)
        assert {ms(item["start"]): item["total"] for item in series} == starts
        assert [item["start"] for item in series] == sorted((item["start"] for item in series), reverse=True)


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def iso(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat()


def test_statistics_are_right_at_once_and_in_any_range(
    service: Callable[..., Service], site: Callable[..., Site], answer: Callable[..., Reply]
) -> None:
    verdicts = [answer("allowed"), answer("not_allowed", "token_blocked"), answer("invalid"), answer("allowed")]
    authorizer = site(lambda call: verdicts[int(call.json["driver_token"].rpartition("-")[2]) % 4])
    served = service(authorization__backend="http", authorization__url=authorizer.url("/decide"))
    receiver = site()
    assert served.client.get(STATISTICS).json()["total"] == 0
    assert served.client.get(STATISTICS).json()["error_rate"] is None
    stations = [str(uuid.uuid4()) for _ in range(7)]
    asked = [
        served.ask(receiver.url(), driver_token=f"driver-token-number-{number}", station_id=stations[number % 7])
        for number in range(40)
    ]
    for one in asked:
        served.finished(one)
    check(served.client)
    items = decided(served.client)
    assert by_status(items) == {"total": 40, "allowed": 20, "not_allowed": 10, "unknown": 0, "invalid": 10}
    assert served.client.get(STATISTICS).json()["error_rate"] == 0.25
    middle = items[len(items) // 2]["timestamp"]
    for query in ({"from": iso(middle)}, {"to": iso(middle)}, {"from": iso(middle), "to": iso(middle + 1)}):
        total = served.client.get(STATISTICS, params=query).json()
        assert statuses(total) == by_status(decided(served.client, **query))
        of_stations = list(pages(served.client, f"{STATISTICS}/stations", **query))
        assert sum(item["total"] for item in of_stations) == total["total"]
    [one] = pages(served.client, f"{STATISTICS}/stations", station_id=stations[3].upper())
    assert statuses(one) == by_status([item for item in items if item["station_id"] == stations[3]])


@pytest.fixture(scope="module")
def asked_wrongly(shared_service: Callable[..., Service]) -> Service:
    return shared_service()


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (STATISTICS, {"from": "yesterday"}),
        (f"{STATISTICS}/series", {"step": "week"}),
        (f"{STATISTICS}/series", {"limit": "0"}),
        (f"{STATISTICS}/stations", {"station_id": "x"}),
        (f"{STATISTICS}/stations", {"cursor": "x"}),
    ],
)
def test_a_wrong_parameter_is_named(asked_wrongly: Service, path: str, query: dict[str, str]) -> None:
    answer = asked_wrongly.client.get(path, params=query)
    assert (answer.status_code, list(answer.json()["details"])) == (400, list(query))


def count_until_killed(served: Service, receiver: Site, stations: list[str]) -> None:
    def client() -> None:
        with (
            httpx.Client(base_url=served.url, verify=PLAIN, trust_env=False, timeout=30) as connection,
            contextlib.suppress(httpx.TransportError),
        ):
            while served.process.poll() is None:
                body = served.body(receiver.url("/ok"), station_id=random.choice(stations))
                connection.post(PATH, json=body)
                time.sleep(0.02)  # the pace of a client; it waits for nothing

    clients = [threading.Thread(target=client) for _ in range(3)]
    for one in clients:
        one.start()
    assert served.ended(90) == -9, served.log
    for one in clients:
        one.join()


def test_counts_are_exact_after_kills(
    service: Callable[..., Service], site: Callable[..., Site], eventually: Callable[..., Any]
) -> None:
    served, receiver = service(started=False), site()
    stations = [str(uuid.uuid4()) for _ in range(5)]
    for point in ("counting", "counted") * 3:
        served.spawn(sys.executable, str(LAUNCHER), point, str(random.randint(1, 3)))
        eventually(lambda: served.ready() == 200 or served.process.poll() is not None, 30, "not ready in time")
        count_until_killed(served, receiver, stations)
    served.start()

    def at_rest() -> bool:
        metrics = served.metrics()
        return metrics["queue_depth"] == metrics["requests_in_flight"] == 0

    eventually(at_rest, 60, "what was left came to no end")
    check(served.client)

    def counted() -> bool:
        """The counts themselves, without what an answer adds to them."""
        with contextlib.closing(sqlite3.connect(served.data / "chargegate.db")) as database:
            rows = database.execute(
                "SELECT timestamp / 60000 * 60000, status, count(*), sum(processing_time_ms)"
                " FROM authorization_audit GROUP BY 1, 2"
            ).fetchall()
            kept = database.execute("SELECT start, status, decisions, time_ms FROM decision_counts WHERE unit = 60000")
            return sorted(rows) == sorted(kept)

    eventually(counted, 60, "the decisions were not all counted, or some more than once")
    check(served.client)
