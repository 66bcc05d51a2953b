"""Where callbacks go: what may be called, how much at once, and what one destination can do to another."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

STATE = 'circuit_breaker_state{name="callbacks"}'


def test_a_slow_and_a_dead_destination_delay_no_other(
    service: Callable[..., Service], site: Callable[..., Site], reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    caller = service()
    slow, dead, good = site(), site(), site()
    dead.down()
    slow.plan("/held", reply(how="held"))
    held = [caller.ask(slow.url("/held")) for _ in range(50)]
    refused = [caller.ask(dead.url()) for _ in range(20)]
    eventually(lambda: len(slow.calls) == 20)
    for _ in range(10):
        caller.finished(caller.ask(good.url()))
    assert len(good.calls) == 10
    assert {caller.session(asked.request_id)["status"] for asked in (*held, *refused)} == {"PROCESSING"}
    slow.release("/held")
    for asked in held:
        assert caller.finished(asked)["status"] == "COMPLETED"
    assert len(slow.calls) == 50
    assert slow.most_connected == 20


def test_waiting_for_a_retry_holds_no_worker(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    narrow = service(queue__consumer_concurrency=1, callback__retry_delay_ms=600_000, callback__deadline_ms=700_000)
    waiting = [narrow.ask(receiver.planned(reply(500))) for _ in range(5)]
    for asked in waiting:
        eventually(lambda asked=asked: receiver.calls_to(asked.callback_url))
    assert narrow.finished(narrow.ask(receiver.url()))["status"] == "COMPLETED"
    sessions = [narrow.session(asked.request_id) for asked in waiting]
    assert {session["status"] for session in sessions} == {"PROCESSING"}
    assert {session["callback"]["attempts"] for session in sessions} == {1}
    assert narrow.stop() == 0


def test_a_destination_that_comes_back_gets_what_was_parked(
    service: Callable[..., Service],
    site: Callable[..., Site],
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    caller = service()
    away = site()
    away.down()
    parked = [caller.ask(away.url()) for _ in range(8)]
    eventually(lambda: caller.metrics()[STATE] > 0, why="the circuit did not open")
    # A whole row of attempts elsewhere, from the first to the last: the one to the destination would be over, too.
    assert caller.finished(caller.ask(receiver.planned(reply(500))))["status"] == "FAILED"
    assert {caller.session(asked.request_id)["status"] for asked in parked} == {"PROCESSING"}
    assert caller.client.get("/health").json()["components"]["callbacks"]["status"] == "DEGRADED"
    away.up()
    for asked in parked:
        ended = caller.finished(asked)
        assert ended["status"] == "COMPLETED"
        assert ended["callback"]["attempts"] <= 2
    assert len(away.calls) == 8
    assert caller.metrics()[STATE] == 0
    assert caller.client.get("/health").json()["status"] == "UP"


def test_what_is_parked_for_too_long_is_a_dead_letter(
    service: Callable[..., Service], site: Callable[..., Site], eventually: Callable[..., Any]
) -> None:
    caller = service(callback__deadline_ms=1500, callback__circuit__probe_interval_ms=200)
    away = site()
    away.down()
    parked = [caller.ask(away.url()) for _ in range(8)]
    for asked in parked:
        assert caller.finished(asked)["status"] == "FAILED"
    letters = caller.client.get("/api/v1/dead-letters").json()["items"]
    assert {item["request_id"] for item in letters} == {asked.request_id for asked in parked}
    away.up()
    answered = caller.client.post("/api/v1/dead-letters/replay")
    assert answered.json()["replayed"] == 8
    for asked in parked:
        eventually(lambda asked=asked: caller.session(asked.request_id)["status"] == "COMPLETED")


def test_statuses_open_no_circuit(service: Callable[..., Service], receiver: Site, reply: type[Reply]) -> None:
    caller = service(callback__retry_delay_ms=10)
    failing = [caller.ask(receiver.planned(reply(500))) for _ in range(20)]
    for asked in failing:
        assert caller.finished(asked)["status"] == "FAILED"
    assert caller.metrics()[STATE] == 0
    assert caller.finished(caller.ask(receiver.url()))["callback"]["attempts"] == 1


@pytest.fixture(scope="module")
def guarded(shared_service: Callable[..., Service]) -> Service:
    """As it comes: only public addresses may be called."""
    return shared_service(callback__allowed_networks=[], callback__retry_delay_ms=10)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0X7F.1", "0177.0.0.1", "017700000001"),
        *("127.0.0.1.", "127.255.255.254", "0", "0.0.0.0", "00.00.00.00"),
        *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "0xa9fea9fe", "100.64.0.1"),
        *("192.0.2.1", "198.18.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
        *("[fe80::1]", "[fd00::1]", "[fc00::1]", "[ff02::1]", "[64:ff9b::7f00:1]", "[64:ff9b::10.0.0.1]"),
        *("[2002:7f00:1::]", "[2002:a00:1::1]", "[2001:db8::1]"),
    ],
)
def test_a_blocked_address_is_refused(guarded: Service, receiver: Site, host: str) -> None:
    for scheme in ("http", "https"):
        answer = guarded.post(guarded.body(f"{scheme}://{host}:{receiver.port}/literal"))
        assert (answer.status_code, answer.json()["status"]) == (400, "validation_error")
        assert answer.json()["details"].keys() == {"callback_url"}
    assert not receiver.calls_to("/literal")


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "localhost.localdomain", "ip6-localhost"])
def test_a_name_of_a_blocked_address_is_not_called(guarded: Service, receiver: Site, host: str) -> None:
    asked = guarded.ask(receiver.url(f"/{host}", host))
    ended = guarded.finished(asked)
    assert (ended["status"], ended["callback"]["last_status_code"]) == ("FAILED", None)
    assert not receiver.calls_to(f"/{host}")


def test_an_allowed_network_may_be_called_by_name(service: Callable[..., Service], receiver: Site) -> None:
    caller = service(callback__allowed_networks=["127.0.0.0/8", "::1/128"])
    assert caller.finished(caller.ask(receiver.url("", "localhost")))["status"] == "COMPLETED"


def test_require_https(service: Callable[..., Service], receiver: Site) -> None:
    strict = service(callback__require_https=True)
    answer = strict.post(strict.body(receiver.url()))
    assert (answer.status_code, answer.json()["details"].keys()) == (400, {"callback_url"})
    assert strict.post(strict.body("https://example.com/")).status_code == 202


def test_https_is_spoken_where_it_is_asked_for(service: Callable[..., Service], receiver: Site) -> None:
    caller = service(callback__retry_delay_ms=10, callback__timeout_ms=500)
    asked = caller.ask(receiver.url("/plain").replace("http:", "https:"))
    assert caller.finished(asked)["status"] == "FAILED"  # the receiver speaks no TLS
    assert not receiver.calls_to("/plain")


def test_a_decision_is_not_told_after_its_deadline(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    """A late `allowed` could start a charge that nobody is waiting for, also when the service was away meanwhile."""
    caller = service(callback__deadline_ms=1500)
    url = receiver.planned(reply(how="held"))
    asked = caller.ask(url)
    eventually(lambda: receiver.calls_to(url))
    caller.kill()
    killed = time.monotonic()
    eventually(lambda: time.monotonic() > killed + 1.6)
    caller.start()
    session = caller.finished(asked)
    assert (session["status"], session["callback"]["last_error"]) == ("FAILED", "deadline_exceeded")
    assert len(receiver.calls_to(url)) == 1
    (letter,) = caller.client.get("/api/v1/dead-letters").json()["items"]
    assert letter["request_id"] == asked.request_id


def test_what_one_destination_leaves_waiting_keeps_no_other_from_being_served(
    service: Callable[..., Service], site: Callable[..., Site], receiver: Site, eventually: Callable[..., Any]
) -> None:
    caller = service(callback__max_parked=20, callback__circuit__probe_interval_ms=600_000)
    dead = site()
    dead.down()
    flood = [caller.ask(dead.url()) for _ in range(100)]
    assert caller.finished(caller.ask(receiver.url()))["status"] == "COMPLETED"
    statuses = {caller.session(asked.request_id)["status"] for asked in flood}
    assert statuses == {"PROCESSING", "FAILED"}
    given_up = caller.client.get("/api/v1/dead-letters").json()["items"]
    assert "too_many_waiting" in {letter["last_error"] for letter in given_up}
