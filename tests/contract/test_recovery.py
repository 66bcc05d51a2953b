"""How long it takes until everything goes on again after a fault ended.

``make soak ARGS="-s tests/contract/test_recovery.py"`` prints the figures that docs/guarantees.md quotes. What is
asserted is that nothing was lost.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from contract.faults import locked, no_more_files
from nameserver import NameServer, name_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from contract.conftest import Asked, Service
    from outside import Reply, Site

pytestmark = pytest.mark.soak

MANY = 200


@pytest.fixture
def names() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[float], None]:
    def tell(began: float) -> None:
        print(f"\n{request.node.name}: {time.monotonic() - began:.1f} s")

    return tell


def all_delivered(caller: Service, asked: list[Asked], receiver: Site) -> None:
    for each in asked:
        assert caller.finished(each, 60)["status"] == "COMPLETED"
        assert {call.headers["webhook-id"] for call in receiver.calls_to(each.callback_url)} == {each.request_id}


def test_a_killed_process(service: Callable[..., Service], receiver: Site, measured: Callable[[float], None]) -> None:
    caller = service(authorization__backend="simulated", authorization__simulated_latency_ms=[400, 600])
    asked = [caller.ask(receiver.url()) for _ in range(MANY)]
    caller.kill()
    began = time.monotonic()
    caller.start()
    all_delivered(caller, asked, receiver)
    measured(began)


def test_a_dead_destination(
    service: Callable[..., Service],
    receiver: Site,
    measured: Callable[[float], None],
    eventually: Callable[..., Any],
) -> None:
    caller = service()
    receiver.down()
    asked = [caller.ask(receiver.url()) for _ in range(20)]
    eventually(lambda: caller.metrics()['circuit_breaker_state{name="callbacks"}'])
    receiver.up()
    began = time.monotonic()
    all_delivered(caller, asked, receiver)
    measured(began)
    assert not caller.metrics()['circuit_breaker_state{name="callbacks"}']


def test_a_silent_name_server(
    service: Callable[..., Service],
    receiver: Site,
    names: NameServer,
    measured: Callable[[float], None],
    eventually: Callable[..., Any],
) -> None:
    caller = service(callback__name_servers=[names.address])
    names.names["odd.example"] = ["127.0.0.1"]
    names.silent.add("odd.example")
    asked = [caller.ask(receiver.url(host="odd.example")) for _ in range(20)]
    eventually(lambda: names.asked.count("odd.example") > 4, 30)
    names.silent.clear()
    began = time.monotonic()
    for each in asked:
        assert caller.finished(each, 60)["status"] == "COMPLETED"
    measured(began)


def test_a_receiver_that_asked_to_wait(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], measured: Callable[[float], None]
) -> None:
    caller = service()
    url = receiver.planned(*[reply(429, headers={"retry-after": "1"})] * 20, reply(200))
    asked = [caller.ask(url) for _ in range(MANY)]
    began = time.monotonic()
    for each in asked:
        ended = caller.finished(each, 60)
        assert (ended["status"], ended["callback"]["attempts"]) == ("COMPLETED", 1)
    measured(began)


def test_a_full_queue(service: Callable[..., Service], receiver: Site, measured: Callable[[float], None]) -> None:
    caller = service(
        queue__max_size=50,
        queue__consumer_concurrency=50,
        authorization__backend="simulated",
        authorization__simulated_latency_ms=[3_000, 3_000],
    )
    asked = []
    while (answered := caller.post(caller.body(receiver.url()))).status_code == 202:
        asked.append(answered.json()["request_id"])
    assert answered.status_code == 503
    began = time.monotonic()
    while caller.post(caller.body(receiver.url())).status_code != 202:
        assert time.monotonic() < began + 30
    measured(began)
    assert len(asked) >= 50


def test_a_database_that_was_locked(
    service: Callable[..., Service], receiver: Site, measured: Callable[[float], None]
) -> None:
    caller = service(authorization__backend="simulated", authorization__simulated_latency_ms=[1_000, 1_000])
    asked = [caller.ask(receiver.url()) for _ in range(MANY)]
    with locked(caller, "BEGIN IMMEDIATE"):
        for _ in range(3):
            assert caller.post(caller.body(receiver.url())).status_code == 503
    began = time.monotonic()
    while caller.post(caller.body(receiver.url())).status_code != 202:
        assert time.monotonic() < began + 30
    measured(began)
    all_delivered(caller, asked, receiver)
    measured(began)


def test_open_files_that_were_used_up(
    service: Callable[..., Service],
    site: Callable[..., Site],
    measured: Callable[[float], None],
    eventually: Callable[..., Any],
) -> None:
    caller = service()
    caller.metrics()
    receivers = [site() for _ in range(8)]
    with no_more_files(caller):
        asked = [(caller.ask(each.url()), each) for each in receivers for _ in range(3)]
        eventually(
            lambda: caller.metrics().get('callback_deliveries_total{outcome="not_sent"}', 0) > 2 * len(asked), 30
        )
    began = time.monotonic()
    for each, receiver in asked:
        all_delivered(caller, [each], receiver)
    measured(began)
