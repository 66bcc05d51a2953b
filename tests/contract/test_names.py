"""Names in callback URLs and of the authorizer, asked of a real name server that is silent, wrong or right."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from nameserver import NameServer, name_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Reply, Service, Site

SILENT = 60


@pytest.fixture
def names() -> Iterator[NameServer]:
    with name_server() as server:
        server.names["receiver.example"] = server.names["authorizer.example"] = ["127.0.0.1"]
        server.silent |= {f"silent-{number}.example" for number in range(SILENT)}
        yield server


def ask_silent(caller: Service, names: NameServer, eventually: Callable[..., Any]) -> None:
    """Make callbacks to names that no name server answers for, and see that they are being asked for."""
    for number in range(SILENT):
        caller.ask(f"http://silent-{number}.example/hook")
    eventually(lambda: len(names.silent & set(names.asked)) >= SILENT // 2, why="the names were not asked for")


def test_silent_names_hold_up_no_other(
    service: Callable[..., Service], names: NameServer, receiver: Site, eventually: Callable[..., Any]
) -> None:
    caller = service(callback__name_servers=[names.address])
    names.ttl = 0
    ask_silent(caller, names, eventually)
    assert caller.client.get("/health").json()["components"]["callbacks"]["status"] == "UP"
    for number in range(3):
        names.names[f"other-{number}.example"] = ["127.0.0.1"]
        for host in ("receiver.example", f"other-{number}.example", "localhost"):
            ended = caller.finished(caller.ask(receiver.url(host=host)), 10)
            assert (ended["status"], ended["callback"]["attempts"]) == ("COMPLETED", 1)


def test_silent_names_hold_no_connections(
    service: Callable[..., Service],
    names: NameServer,
    receiver: Site,
    site: Callable[..., Site],
    eventually: Callable[..., Any],
) -> None:
    caller = service(callback__name_servers=[names.address], callback__max_connections=4)
    ask_silent(caller, names, eventually)
    for _ in range(2):
        for url in (receiver.url(), site().url(), receiver.url(host="receiver.example")):
            ended = caller.finished(caller.ask(url), 10)
            assert (ended["status"], ended["callback"]["attempts"]) == ("COMPLETED", 1)
    assert caller.client.get("/health").json()["components"]["callbacks"]["status"] == "UP"


def test_a_name_that_stays_silent_costs_no_attempt(
    service: Callable[..., Service], names: NameServer, eventually: Callable[..., Any]
) -> None:
    caller = service(callback__name_servers=[names.address], callback__deadline_ms=4000)
    ended = caller.finished(caller.ask("http://silent-1.example/hook"))
    assert (ended["status"], ended["callback"]["attempts"]) == ("FAILED", 0)
    assert ended["callback"]["last_error"] == "no_usable_address"
    eventually(lambda: 'circuit_breaker_state{name="callbacks"} 0.0' in caller.client.get("/metrics").text)


def test_silent_names_do_not_slow_an_authorizer_that_has_a_name(
    service: Callable[..., Service],
    site: Callable[..., Site],
    receiver: Site,
    names: NameServer,
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    body = json.dumps({"status": "allowed"}).encode()
    authorizer = site(lambda _call: reply(200, body, {"connection": "close"}))  # so that each decision dials anew
    names.ttl = 0
    caller = service(
        callback__name_servers=[names.address],
        authorization__backend="http",
        authorization__url=authorizer.url("/decide", host="authorizer.example"),
        authorization__cache_ttl_ms=0,
    )
    ask_silent(caller, names, eventually)
    for _ in range(10):
        ended = caller.finished(caller.ask(receiver.url()), 10)
        assert (ended["status"], ended["decision"]["status"]) == ("COMPLETED", "allowed")


def test_one_question_for_all_that_wait_for_a_name(
    service: Callable[..., Service], names: NameServer, receiver: Site
) -> None:
    caller = service(callback__name_servers=[names.address])
    asked = [caller.ask(receiver.url(host="receiver.example")) for _ in range(40)]
    for each in asked:
        assert caller.finished(each)["status"] == "COMPLETED"
    assert names.asked.count("receiver.example") == 2  # one for each family; the answer is kept for a minute


def test_a_name_that_does_not_exist_and_one_that_appears(
    service: Callable[..., Service], names: NameServer, receiver: Site, eventually: Callable[..., Any]
) -> None:
    caller = service(callback__name_servers=[names.address], callback__retry_delay_ms=1500)
    nowhere = caller.ask(receiver.url(host="nowhere.example"))
    late = caller.ask(receiver.url(host="late.example"))
    eventually(lambda: "late.example" in names.asked)
    names.names["late.example"] = ["127.0.0.1"]
    ended = caller.finished(late)
    assert (ended["status"], ended["callback"]["attempts"]) == ("COMPLETED", 2)
    ended = caller.finished(nowhere)
    assert (ended["status"], ended["callback"]["attempts"]) == ("FAILED", 3)
    assert not receiver.calls_to(nowhere.callback_url)


@pytest.mark.parametrize("kind", ["silent", "failing"])
def test_a_name_server_that_recovers_loses_no_callback(
    service: Callable[..., Service], names: NameServer, receiver: Site, kind: str, eventually: Callable[..., Any]
) -> None:
    caller = service(callback__name_servers=[names.address])
    names.names["odd.example"] = ["127.0.0.1"]
    getattr(names, kind).add("odd.example")
    asked = [caller.ask(receiver.url(host="odd.example")) for _ in range(5)]
    eventually(lambda: "odd.example" in names.asked)
    getattr(names, kind).discard("odd.example")
    for each in asked:
        ended = caller.finished(each, 50)
        assert (ended["status"], ended["callback"]["attempts"]) == ("COMPLETED", 1)
        assert len(receiver.calls_to(each.callback_url)) == 1


@contextlib.contextmanager
def dead_port(address: str, port: int) -> Iterator[None]:
    """A port that neither accepts nor refuses a connection: its line is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        while True:
            one = stack.enter_context(socket.socket())
            one.settimeout(0.3)
            try:
                one.connect((address, port))
            except TimeoutError:
                break
        yield


def test_a_dead_address_costs_no_attempt_where_another_works(
    service: Callable[..., Service], names: NameServer, site: Callable[..., Site], reply: type[Reply]
) -> None:
    """An attempt has two seconds. In all of them, the first address neither accepts nor refuses."""
    closing = site(lambda _call: reply(headers={"connection": "close"}))
    names.names["half.example"] = ["127.0.0.3", "127.0.0.1"]
    caller = service(callback__name_servers=[names.address], callback__timeout_ms=2000)
    with dead_port("127.0.0.3", closing.port):
        for _ in range(3):
            ended = caller.finished(caller.ask(closing.url(host="half.example")))
            assert (ended["status"], ended["callback"]["attempts"]) == ("COMPLETED", 1)


@pytest.mark.parametrize("blocked", ["10.0.0.1", "::ffff:10.0.0.1", "fe80::1", "169.254.169.254"])
def test_one_blocked_address_blocks_a_name(
    service: Callable[..., Service], names: NameServer, receiver: Site, blocked: str
) -> None:
    names.names["mixed.example"] = ["127.0.0.1", blocked]
    caller = service(callback__name_servers=[names.address], callback__max_attempts=1)
    asked = caller.ask(receiver.url(host="mixed.example"))
    assert caller.finished(asked)["status"] == "FAILED"
    assert not receiver.calls_to(asked.callback_url)


def test_what_is_no_name_server_stops_the_start(service: Callable[..., Service]) -> None:
    wrong = service(started=False, callback__name_servers=["127.0.0.1", "ns.example"])
    wrong.spawn()
    assert wrong.ended() == 1
    assert "callback.name_servers" in wrong.log
