"""Dead letters and finished requests do not pile up: what is too old or too much goes, on both databases, beside the
traffic, and whatever is counted stays exact, also when the process is killed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest

from outside import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

MANY = 20_000
LIMIT_S = 90
SECRETS = {name: f"the-key-of-{name}" for name in ("north", "south", "ops")}
LINES = [
    f"{name}:{'admin' if name == 'ops' else 'client'}:sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
    for name, secret in SECRETS.items()
]
DAY = 86_400_000
IS_LETTER = "status = 'FAILED' AND sealed IS NOT NULL"


class Tables:
    """The tables of the service, whichever database it uses."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.settings = {"database__url": url}

    def rows(self, service: Service, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Parameters are written as ``$1``."""
        if self.url == "sqlite":
            with contextlib.closing(sqlite3.connect(service.data / "chargegate.db", timeout=60)) as database, database:
                named = {str(place): value for place, value in enumerate(values, 1)}
                return database.execute(statement, named).fetchall()

        async def run() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.url)
            try:
                return [tuple(row) for row in await connection.fetch(statement, *values)]
            finally:
                await connection.close()

        return asyncio.run(run())

    def count(self, service: Service, what: str) -> int:
        return int(self.rows(service, f"SELECT count(*) FROM charging_requests WHERE {what}")[0][0])

    def add(self, service: Service, status: str, like: str, ended_at: int) -> None:
        """Many requests that ended as this one did, one each millisecond from then on."""
        if self.url == "sqlite":
            numbers = f"WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {MANY - 1})"
            new_id, source = "printf('00000000-0000-4000-8000-%012d', i)", "n, charging_requests"
            columns = "driver_token_hash"
        else:
            numbers, new_id = "", "'00000000-0000-4000-8000-' || lpad(i::text, 12, '0')"
            source = f"generate_series(0, {MANY - 1}) AS n (i), charging_requests"
            columns = "driver_token_hash, decision, reason, processing_time_ms, decided_at"
        self.rows(
            service,
            f"{numbers} INSERT INTO charging_requests (request_id, station_id, status, created_at, started_at,"
            f" processed_at, attempts, last_error, sealed, client, {columns}) SELECT {new_id}, station_id, '{status}',"
            f" {ended_at}, {ended_at}, {ended_at} + i, attempts, last_error, sealed, 'many', {columns}"
            f" FROM {source} WHERE request_id = '{like}'",
        )


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def tables(request: pytest.FixtureRequest) -> Tables:
    return Tables("sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres_url"))


@pytest.fixture
def gone(receiver: Site, reply: type[Reply]) -> Callable[[], str]:
    """Makes addresses that are gone: a callback to one is given up at once."""
    return lambda: receiver.planned(reply(410))


def given_up(service: Service, name: str, url: str) -> str:
    """A dead letter of a client."""
    path, headers = f"{service.url}/api/v1/charging-session", {"x-api-key": SECRETS[name]}
    answer = httpx.post(path, json=service.body(url), headers=headers, verify=PLAIN, trust_env=False, timeout=30)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["request_id"])


def listed(service: Service, client: str = "") -> list[str]:
    found: list[str] = []
    cursor = ""
    while True:
        asked = {"limit": 100} | ({"client": client} if client else {}) | ({"cursor": cursor} if cursor else {})
        page = service.client.get("/api/v1/dead-letters", params=asked).json()
        found += [letter["request_id"] for letter in page["items"]]
        cursor = page["next_cursor"]
        if not cursor:
            return found


def dropped(service: Service, reason: str) -> float:
    return service.metrics().get(f'dead_letters_dropped_total{{reason="{reason}"}}', 0.0)


def logged(service: Service, reason: str) -> int:
    events = [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]
    return sum(
        event["dead_letters"]
        for event in events
        if event["event"] == "dead letters dropped" and event["reason"] == reason
    )


def test_a_client_that_makes_many_dead_letters_pushes_out_its_own(
    service: Callable[..., Service], tables: Tables, gone: Callable[[], str], eventually: Callable[..., Any]
) -> None:
    running = service(security__api_keys=LINES, callback__max_dead_letters=5, logging__format="json", **tables.settings)
    running.sign_in(SECRETS["ops"])
    quiet = [given_up(running, "south", gone()) for _ in range(2)]
    for request_id in quiet:
        eventually(lambda: running.session(request_id)["status"] == "FAILED")  # noqa: B023 - used at once
    flood = []
    for _ in range(12):
        flood.append(given_up(running, "north", gone()))
        eventually(lambda: running.session(flood[-1])["status"] == "FAILED")
    eventually(lambda: dropped(running, "number") == 9, LIMIT_S)
    assert running.metrics()["dead_letters"] == 5
    assert listed(running, "south") == quiet[::-1]
    assert listed(running) == flood[:8:-1] + quiet[::-1]
    eventually(lambda: logged(running, "number") == 9)
    first = running.session(flood[0])
    assert (first["status"], first["callback"]["last_status_code"]) == ("FAILED", 410)
    answer = running.client.post(f"/api/v1/dead-letters/{flood[0]}/replay", json={})
    assert (answer.status_code, answer.json()["status"]) == (404, "not_found")
    assert running.client.post(f"/api/v1/dead-letters/{quiet[0]}/replay", json={}).status_code == 202
    sealed = tables.rows(running, "SELECT count(*) FROM charging_requests WHERE sealed IS NOT NULL")
    assert sealed == [(5,)]


def test_a_dead_letter_goes_when_it_is_old(
    service: Callable[..., Service], tables: Tables, gone: Callable[[], str], eventually: Callable[..., Any]
) -> None:
    running = service(callback__dead_letter_retention_ms=1, logging__format="json", **tables.settings)
    asked = running.ask(gone())
    eventually(lambda: dropped(running, "age") == 1, LIMIT_S)
    assert running.session(asked.request_id)["status"] == "FAILED"
    assert (listed(running), running.metrics()["dead_letters"]) == ([], 0)
    eventually(lambda: logged(running, "age") == 1)
    answer = running.client.post("/api/v1/dead-letters/replay", json={})
    assert (answer.status_code, answer.json()["replayed"]) == (202, 0)


def test_dead_letters_are_counted_exactly_when_the_process_is_killed_while_it_drops_them(
    service: Callable[..., Service], tables: Tables, gone: Callable[[], str], eventually: Callable[..., Any]
) -> None:
    running = service(**tables.settings)
    model = running.ask(gone()).request_id
    eventually(lambda: running.session(model)["status"] == "FAILED")
    assert running.stop() == 0
    tables.add(running, "FAILED", model, int(time.time() * 1000) - DAY)
    assert tables.count(running, IS_LETTER) == MANY + 1
    running.start()
    assert running.metrics()["dead_letters"] == MANY + 1
    running.stop()
    running.configure(**{"callback.max_dead_letters": 1_000, "database.url": tables.url})
    left = MANY + 1
    for _ in range(3):
        running.start()
        eventually(lambda: dropped(running, "number"), LIMIT_S)
        running.kill()
        now_left = tables.count(running, IS_LETTER)
        assert 1_000 <= now_left < left
        left = now_left
    running.start()
    eventually(lambda: running.metrics()["dead_letters"] == 1_000, LIMIT_S)
    assert tables.count(running, IS_LETTER) == 1_000
    assert tables.count(running, "status = 'FAILED'") == MANY + 1
    assert tables.count(running, f"{IS_LETTER} AND request_id = '{model}'") == 1
    oldest = tables.rows(
        running, f"SELECT min(request_id) FROM charging_requests WHERE {IS_LETTER} AND client = 'many'"
    )
    assert oldest == [(f"00000000-0000-4000-8000-{MANY - 999:012d}",)]


def test_old_finished_requests_go_beside_the_traffic_and_a_kill_leaves_nothing_half_done(
    service: Callable[..., Service],
    tables: Tables,
    receiver: Site,
    gone: Callable[[], str],
    eventually: Callable[..., Any],
) -> None:
    running = service(**tables.settings)
    young = running.ask(receiver.url())
    running.finished(young)
    letter = running.ask(gone()).request_id
    eventually(lambda: running.session(letter)["status"] == "FAILED")
    running.kill()
    tables.add(running, "COMPLETED", young.request_id, int(time.time() * 1000) - 800 * DAY)
    running.start()
    eventually(lambda: running.metrics()["requests_dropped_total"], LIMIT_S)
    running.kill()
    running.start()
    asked = []
    many = "client = 'many'"
    end = time.monotonic() + LIMIT_S
    while tables.count(running, many):
        asked.append(running.ask(receiver.url()))
        assert time.monotonic() < end
    for each in asked:
        assert running.finished(each)["status"] == "COMPLETED"
        assert len(receiver.calls_to(each.callback_url)) == 1
    assert running.session(young.request_id)["status"] == "COMPLETED"
    assert listed(running) == [letter]
    assert running.metrics()["dead_letters"] == 1
    assert running.client.get("/api/v1/charging-session/00000000-0000-4000-8000-000000000001").status_code == 404


def test_requests_are_kept_for_ever_where_the_retention_is_0(
    service: Callable[..., Service], tables: Tables, receiver: Site, eventually: Callable[..., Any]
) -> None:
    running = service(database__retention_ms=0, callback__dead_letter_retention_ms=1, **tables.settings)
    model = running.ask(receiver.url())
    running.finished(model)
    running.stop()
    tables.add(running, "COMPLETED", model.request_id, 1)
    running.start()
    refused = running.ask("http://127.0.0.1:1/")
    running.finished(refused, LIMIT_S)
    eventually(lambda: dropped(running, "age") == 1, LIMIT_S)  # it has looked
    assert tables.count(running, "client = 'many'") == MANY


def test_a_retention_shorter_than_a_request_may_take_stops_the_start(service: Callable[..., Service]) -> None:
    running = service(started=False, database__retention_ms=1_000)
    running.spawn()
    assert running.ended() == 1
    assert "database.retention_ms" in running.log
    assert "queue.max_age_ms" in running.log
