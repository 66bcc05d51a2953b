"""Shares of the queue: one client that floods does not stop the others. And what a refused request leaves behind."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from outside import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

PATH = "/api/v1/charging-session"
SECRETS = {name: f"the-key-of-{name}" for name in ("north", "south", "ops")}
LINES = {
    name: f"{name}:{'admin' if name == 'ops' else 'client'}:sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
    for name, secret in SECRETS.items()
}
DECIDE = "/decide"
SIZE = 20
QUEUES = pytest.mark.parametrize("queue", ["sqlite", "memory://"])


@pytest.fixture
def silent(site: Callable[..., Site], reply: type[Reply]) -> Site:
    """An authorizer that does not answer before it is released."""
    return site(lambda _call: reply(how="held"))


@pytest.fixture
def held(service: Callable[..., Service], silent: Site, eventually: Callable[..., Any]) -> Callable[..., Service]:
    """Makes a service whose one worker is held by its authorizer."""

    def make(*clients: str, **settings: Any) -> Service:
        made = service(
            security__api_keys=[LINES[name] for name in clients],
            authorization__backend="http",
            authorization__url=silent.url(DECIDE),
            authorization__timeout_ms=600_000,
            queue__consumer_concurrency=1,
            **{"queue__max_size": SIZE, **settings},
        )
        first = send(made, clients[0] if clients else "")
        assert first.status_code == 202, first.text
        eventually(lambda: silent.calls)
        return made

    return make


def send(service: Service, name: str = "", *, key: str = "", body: Any = None) -> httpx.Response:
    headers = {"x-api-key": SECRETS[name]} if name else {}
    if key:
        headers["idempotency-key"] = key
    body = body or service.body(f"http://127.0.0.1:{service.port}/health")
    return httpx.post(service.url + PATH, json=body, headers=headers, timeout=30, verify=PLAIN, trust_env=False)


def flood(service: Service, name: str = "", count: int = SIZE + 10, **more: Any) -> list[httpx.Response]:
    """So many at once; those that were accepted first."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: send(service, name, **more), range(count)))
    for answer in answers:
        assert answer.status_code in (202, 503), answer.text
        if answer.status_code == 503:
            assert answer.json()["status"] == "service_unavailable"
            assert int(answer.headers["retry-after"]) > 0
    return sorted(answers, key=lambda answer: answer.status_code)


def accepted(answers: list[httpx.Response]) -> int:
    return sum(answer.status_code == 202 for answer in answers)


@QUEUES
def test_a_client_that_floods_has_its_share_and_others_go_on(held: Callable[..., Service], queue: str) -> None:
    gate = held("north", "south", "ops", queue__url=queue)
    assert accepted(flood(gate, "north")) == SIZE // 2
    assert accepted(flood(gate, "north")) == 0
    assert [send(gate, "south").status_code for _ in range(SIZE // 2)] == [202] * (SIZE // 2)
    assert accepted(flood(gate, "south")) == 0
    assert gate.metrics()["queue_depth"] == SIZE
    assert gate.metrics()['charging_requests_total{outcome="unavailable"}'] == 20 + 30 + 30


@pytest.mark.parametrize(("share", "fits"), [(0.25, 5), (0.75, 15), (1.0, 20), (0.01, 1)])
def test_the_share_is_a_setting(held: Callable[..., Service], share: float, fits: int) -> None:
    gate = held("north", "south", queue__max_share_per_client=share)
    assert accepted(flood(gate, "north")) == fits


@pytest.mark.parametrize("clients", [(), ("north",), ("north", "ops")])
def test_one_client_has_all_of_the_queue(held: Callable[..., Service], clients: tuple[str, ...]) -> None:
    gate = held(*clients)
    assert accepted(flood(gate, clients[0] if clients else "")) == SIZE


@pytest.mark.parametrize("share", [0, -0.5, 1.5, "half"])
def test_a_wrong_share_stops_the_start(service: Callable[..., Service], share: Any) -> None:
    wrong = service(started=False, queue__max_share_per_client=share)
    assert wrong.spawn().wait(30) == 1
    assert "queue.max_share_per_client" in wrong.log


def test_what_left_the_queue_counts_no_more(
    service: Callable[..., Service], receiver: Site, eventually: Callable[..., Any]
) -> None:
    """A client whose requests are taken as they come is never over its share, however many it sends."""
    gate = service(security__api_keys=[LINES[name] for name in ("north", "south")], queue__max_size=4)
    for _ in range(40):
        eventually(lambda: send(gate, "north", body=gate.body(receiver.url())).status_code == 202)
        eventually(lambda: gate.metrics()["queue_depth"] == 0)
    assert 'outcome="unavailable"' not in str(
        [name for name, value in gate.metrics().items() if value and name.startswith("charging_requests_total")]
    )


def test_what_waited_before_the_start_is_nobodys(held: Callable[..., Service]) -> None:
    gate = held("north", "south")
    assert accepted(flood(gate, "north")) == SIZE // 2
    gate.kill()
    gate.start()
    assert send(gate, "north").status_code == 202
    assert send(gate, "south").status_code == 202


def claims(service: Service) -> int:
    with contextlib.closing(sqlite3.connect(service.data / "chargegate.db")) as database:
        (count,) = database.execute("SELECT count(*) FROM idempotency_keys").fetchone()
        return int(count)


@QUEUES
@pytest.mark.parametrize("clients", [(), ("north", "south")])
def test_a_refused_request_leaves_no_claim(
    held: Callable[..., Service],
    silent: Site,
    eventually: Callable[..., Any],
    queue: str,
    clients: tuple[str, ...],
) -> None:
    gate = held(*clients, queue__url=queue, queue__max_size=4)
    name = clients[0] if clients else ""
    flood(gate, name)
    keys = [f"order-{number}" for number in range(30)]
    for key in keys:
        assert send(gate, name, key=key).status_code == 503
    assert claims(gate) == 0
    # Another body under the same key, once there is room again.
    silent.release(DECIDE)
    body = gate.body(f"http://127.0.0.1:{gate.port}/health")

    def sent() -> httpx.Response | None:
        answer = send(gate, name, key=keys[0], body=body)
        return None if answer.status_code == 503 else answer

    answer = eventually(sent)
    assert answer.status_code == 202
    again = send(gate, name, key=keys[0], body=body)
    assert (again.status_code, again.json()["request_id"]) == (202, answer.json()["request_id"])
    assert send(gate, name, key=keys[0]).status_code == 422
    assert claims(gate) == 1


def test_different_bodies_under_one_key_at_once_while_the_queue_is_full(held: Callable[..., Service]) -> None:
    gate = held(queue__max_size=4)
    flood(gate)
    assert {answer.status_code for answer in flood(gate, key="order-1")} == {503}
    assert claims(gate) == 0
