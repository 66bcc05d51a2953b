"""What clients learn about names and addresses that their callbacks may not reach: nothing but that."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from nameserver import NameServer, name_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Service, Site

INSIDE = {
    "private": ["10.0.0.1"],
    "loopback": ["127.0.0.1"],
    "metadata": ["169.254.169.254"],
    "mixed": ["8.8.8.8", "192.168.1.1"],
    "unique-local": ["fd00::1"],
    "mapped": ["::ffff:10.0.0.1"],
    "isatap": ["2001:470:1:2:0:5efe:10.0.0.1"],
    "nat64": ["64:ff9b::10.0.0.1"],
    "both": ["10.0.0.1", "fd00::1"],
}
STATE = 'circuit_breaker_state{name="callbacks"}'


@pytest.fixture(scope="module")
def names() -> Iterator[NameServer]:
    with name_server() as server:
        server.names |= {f"{name}.inside.example": addresses for name, addresses in INSIDE.items()}
        server.names["empty.inside.example"] = []
        yield server


def end_of(caller: Service, host: str, port: int) -> dict[str, Any]:
    """How a callback to this host ends, as its client can read it, without what is of this request alone."""
    asked = caller.ask(f"http://{host}:{port}/hook")
    ended = caller.finished(asked)
    letters = caller.client.get("/api/v1/dead-letters").json()["items"]
    [letter] = [letter for letter in letters if letter["request_id"] == asked.request_id]
    for key in ("request_id", "station_id", "driver_token_hash", "created_at", "failed_at"):
        del letter[key]
    callback = ended["callback"]
    for attempt in callback.get("history", ()):
        del attempt["at"]
    return {"status": ended["status"], "callback": callback, "letter": letter}


def test_a_name_inside_looks_like_one_that_does_not_exist(
    service: Callable[..., Service], names: NameServer, receiver: Site
) -> None:
    caller = service(callback__allowed_networks=[], callback__name_servers=[names.address], callback__retry_delay_ms=1)
    nowhere = end_of(caller, "nowhere.inside.example", receiver.port)
    assert nowhere["callback"]["last_error"] == nowhere["letter"]["last_error"] == "no_usable_address"
    assert nowhere["callback"]["attempts"] == 3
    hosts = [f"{name}.inside.example" for name in (*INSIDE, "empty")]
    for host in (*hosts, "localhost", "nowhere.invalid", "MIXED.inside.example."):
        assert end_of(caller, host, receiver.port) == nowhere, host
    assert not receiver.calls
    told = {line["why"] for line in map(json.loads, caller.log.splitlines()) if "why" in line}
    assert told == {"address_blocked", "name_not_resolved"}  # in the log, for administrators


def test_many_callbacks_to_a_name_inside_end_like_those_to_one_that_does_not_exist(
    service: Callable[..., Service], names: NameServer, receiver: Site
) -> None:
    caller = service(callback__allowed_networks=[], callback__name_servers=[names.address], callback__retry_delay_ms=1)
    for host in ("private.inside.example", "nowhere.inside.example"):
        asked = [caller.ask(f"http://{host}:{receiver.port}/hook") for _ in range(12)]
        ends = [caller.finished(each) for each in asked]
        assert {each["status"] for each in ends} == {"FAILED"}
        assert {(each["callback"]["attempts"], each["callback"]["last_error"]) for each in ends} == {
            (3, "no_usable_address")
        }
        assert caller.metrics()[STATE] == 0


# Networks that the operator blocks

BLOCKED = ["127.9.0.0/16", "8.8.8.0/24", "2606:4700::/32", "2001:470:64::/96"]


@pytest.fixture(scope="module")
def closed(shared_service: Callable[..., Service], names: NameServer) -> Service:
    names.names |= {"blocked.example": ["127.9.0.1"], "open.example": ["127.0.0.1"]}
    return shared_service(
        callback__allowed_networks=["127.0.0.0/8"],
        callback__blocked_networks=BLOCKED,
        callback__name_servers=[names.address],
        callback__retry_delay_ms=1,
    )


@pytest.mark.parametrize(
    "host",
    [
        *("127.9.0.1", "127.9.255.255", "127.9.1", "0x7f.9.1", "2131296257", "0177.011.0.1", "127.9.0.1."),
        *("[::ffff:127.9.0.1]", "[::ffff:7f09:1]", "[::127.9.0.1]", "[64:ff9b::127.9.0.1]", "[2002:7f09:1::]"),
        *("8.8.8.8", "134744072", "010.8.8.8", "[::ffff:8.8.8.8]", "[64:ff9b::808:808]", "[2002:808:808::1]"),
        *("[2a00:1450::5efe:8.8.8.8]", "[2a00:1450::200:5efe:808:808]", "[2a00:1450::0:5efe:10.0.0.1]"),
        *("[2606:4700::1111]", "[2606:4700:0:0:0:0:0:1]", "[2001:470:64::1.1.1.1]"),
    ],
)
def test_an_address_in_a_network_that_was_blocked_is_refused(closed: Service, receiver: Site, host: str) -> None:
    answer = closed.post(closed.body(f"http://{host}:{receiver.port}/closed"))
    assert (answer.status_code, answer.json()["status"]) == (400, "validation_error")
    assert answer.json()["details"].keys() == {"callback_url"}


def test_a_name_in_a_network_that_was_blocked_is_not_called(closed: Service, receiver: Site) -> None:
    ended = end_of(closed, "blocked.example", receiver.port)
    assert (ended["status"], ended["callback"]["last_error"]) == ("FAILED", "no_usable_address")
    for url in (receiver.url("/open"), receiver.url("/open", "open.example")):
        assert closed.finished(closed.ask(url))["status"] == "COMPLETED"


@pytest.mark.parametrize("host", ["1.1.1.1", "127.8.255.255", "[2a00:1450::5efe:1.1.1.1]", "[2606:4701::1]"])
def test_an_address_beside_them_is_accepted(closed: Service, host: str) -> None:
    assert closed.post(closed.body(f"http://{host}:9/beside")).status_code == 202


def test_an_address_that_was_blocked_while_its_request_waited_is_not_called(
    service: Callable[..., Service], site: Callable[..., Site], eventually: Callable[..., Any]
) -> None:
    away = site()
    away.down()
    caller = service()
    asked = caller.ask(away.url("/waited"))
    eventually(lambda: (caller.session(asked.request_id)["callback"] or {}).get("attempts"))
    caller.kill()
    caller.configure(**{"callback.blocked_networks": ["127.0.0.1"], "callback.retry_delay_ms": 1})
    away.up()
    caller.start()
    ended = caller.finished(asked)
    assert (ended["status"], ended["callback"]["last_error"]) == ("FAILED", "no_usable_address")
    assert not away.calls


@pytest.mark.parametrize("network", ["10.0.0.1/8", "inside", "", "10.0.0.0/33", "::1/129"])
def test_what_is_no_network_stops_the_start(service: Callable[..., Service], network: str) -> None:
    caller = service(started=False, callback__blocked_networks=[network])
    caller.spawn()
    assert caller.ended() == 1
    assert "callback.blocked_networks" in caller.log
    assert len(caller.log.splitlines()) == 1
