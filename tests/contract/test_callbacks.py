"""Callbacks that do not work at once: tried again, given up, replayed."""

from __future__ import annotations

import time
import uuid
from email.utils import formatdate
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

LETTERS = "/api/v1/dead-letters"


@pytest.fixture(scope="module")
def caller(shared_service: Callable[..., Service], authorizer: Site) -> Service:
    return shared_service(
        callback__retry_delay_ms=30,
        callback__timeout_ms=1000,
        callback__max_retry_after_ms=2500,
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
    )


FAILURES: list[dict[str, Any]] = [
    *({"status": status} for status in (400, 401, 404, 408, 422, 500, 502, 503, 599)),
    {"how": "held"},
    {"how": "dripped"},
    {"status": 500, "how": "dripped"},
    {"how": "cut"},
]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_tried_again(
    caller: Service, site: Callable[..., Site], reply: type[Reply], failure: dict[str, Any]
) -> None:
    receiver = site()
    asked = caller.ask(receiver.planned(reply(**failure), reply(**failure), reply(200)))
    ended = caller.finished(asked)
    assert ended["status"] == "COMPLETED"
    assert ended["callback"]["attempts"] == 3
    assert ended["callback"]["last_status_code"] == 200
    assert ended["callback"]["delivered_at"] == ended["processed_at"]
    calls = receiver.calls_to(asked.callback_url)
    assert len({(call.headers["webhook-id"], call.body) for call in calls}) == 1
    assert len(calls) == 3


@pytest.mark.parametrize("failure", [{"status": 500}, {"status": 404}, {"how": "held"}, {"how": "cut"}])
def test_three_attempts_in_all(
    caller: Service, site: Callable[..., Site], reply: type[Reply], failure: dict[str, Any]
) -> None:
    receiver = site()
    asked = caller.ask(receiver.planned(reply(**failure)))
    ended = caller.finished(asked)
    assert ended["status"] == "FAILED"
    assert ended["decision"]["status"] == "allowed"
    assert ended["callback"]["attempts"] == 3
    assert ended["callback"]["last_status_code"] == failure.get("status")
    assert ended["callback"]["last_error"]
    assert ended["callback"]["delivered_at"] is None
    assert len(receiver.calls_to(asked.callback_url)) == 3


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
def test_success_is_2xx(caller: Service, receiver: Site, reply: type[Reply], status: int) -> None:
    asked = caller.ask(receiver.planned(reply(status), reply(500)))
    assert caller.finished(asked)["callback"]["attempts"] == 1
    assert len(receiver.calls_to(asked.callback_url)) == 1


@pytest.mark.parametrize("status", [200, 500])
def test_a_big_answer_is_only_that(caller: Service, receiver: Site, reply: type[Reply], status: int) -> None:
    asked = caller.ask(receiver.planned(reply(status, b"x" * 5_000_000), reply(200, b"x" * 65_537)))
    ended = caller.finished(asked)
    assert (ended["status"], ended["callback"]["attempts"]) == ("COMPLETED", 1 if status == 200 else 2)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure(caller: Service, receiver: Site, reply: type[Reply], status: int) -> None:
    elsewhere = receiver.url()
    asked = caller.ask(receiver.planned(reply(status, headers={"location": elsewhere})))
    ended = caller.finished(asked)
    assert (ended["status"], ended["callback"]["last_status_code"]) == ("FAILED", status)
    assert not receiver.calls_to(elsewhere)


def test_410_ends_it_at_once(caller: Service, receiver: Site, reply: type[Reply]) -> None:
    asked = caller.ask(receiver.planned(reply(410), reply(200)))
    ended = caller.finished(asked)
    assert (ended["status"], ended["callback"]["attempts"], ended["callback"]["last_status_code"]) == ("FAILED", 1, 410)
    assert len(receiver.calls_to(asked.callback_url)) == 1


def test_the_waits_grow(service: Callable[..., Service], receiver: Site, reply: type[Reply]) -> None:
    patient = service(callback__retry_delay_ms=200, callback__max_attempts=4)
    asked = patient.ask(receiver.planned(reply(500)))
    assert patient.finished(asked)["status"] == "FAILED"
    waits = [later.at - earlier.at for earlier, later in pairwise(receiver.calls_to(asked.callback_url))]
    assert [wait >= least for wait, least in zip(waits, (0.2, 0.4, 0.8), strict=True)] == [True] * 3


def test_retry_after(caller: Service, receiver: Site, reply: type[Reply]) -> None:
    by_seconds = caller.ask(receiver.planned(reply(503, headers={"retry-after": "1"}), reply(200)))
    date = int(time.time()) + 2
    by_date = caller.ask(
        receiver.planned(reply(429, headers={"retry-after": formatdate(date, usegmt=True)}), reply(200))
    )
    too_long = [
        caller.ask(receiver.planned(reply(503, headers={"retry-after": value}), reply(200)))
        for value in ("86400", "99999999999999999999", formatdate(date + 86400, usegmt=True))
    ]
    nonsense = [
        caller.ask(receiver.planned(reply(503, headers={"retry-after": value}), reply(200)))
        for value in ("soon", "-1", "1e9", "\u00b2", "Thu, 99 Foo 2999 00:00:00 GMT", "")
    ]
    for asked in (by_seconds, by_date, *too_long, *nonsense):
        assert caller.finished(asked)["status"] == "COMPLETED"
    first, second = receiver.calls_to(by_seconds.callback_url)
    assert second.at - first.at >= 1
    assert receiver.calls_to(by_date.callback_url)[1].at >= date
    for asked in too_long:
        first, second = receiver.calls_to(asked.callback_url)
        assert second.at - first.at >= 2.5


def test_a_deadline_ends_it(service: Callable[..., Service], receiver: Site, reply: type[Reply]) -> None:
    hasty = service(callback__retry_delay_ms=600_000, callback__deadline_ms=500)
    asked = hasty.ask(receiver.planned(reply(500)))
    ended = hasty.finished(asked)
    assert (ended["status"], ended["callback"]["attempts"]) == ("FAILED", 1)
    assert [item["request_id"] for item in hasty.client.get(LETTERS).json()["items"]] == [asked.request_id]


def test_a_dead_letter_is_listed_and_replayed(
    caller: Service,
    receiver: Site,
    authorizer: Site,
    reply: type[Reply],
    answer: Callable[..., Reply],
    eventually: Callable[..., Any],
) -> None:
    token = f"driver-{uuid.uuid4().hex}"
    authorizer.plan(token, answer("not_allowed", "token_blocked"), answer("allowed"))
    url = receiver.planned(reply(500), reply(500), reply(500), reply(502), reply(200))
    asked = caller.ask(url, driver_token=token)
    ended = caller.finished(asked)
    assert ended["status"] == "FAILED"
    before = caller.metrics()["dead_letters"]
    listing = caller.client.get(LETTERS)
    (letter,) = [item for item in listing.json()["items"] if item["request_id"] == asked.request_id]
    assert (letter["station_id"], letter["attempts"], letter["last_status_code"]) == (asked.station_id, 3, 500)
    assert token not in listing.text
    assert url not in listing.text

    answered = caller.client.post(f"{LETTERS}/{asked.request_id}/replay")
    assert answered.status_code == 202
    eventually(lambda: caller.session(asked.request_id)["status"] == "COMPLETED")
    again = caller.session(asked.request_id)
    assert (again["decision"], again["callback"]["attempts"]) == (ended["decision"], 2)
    calls = receiver.calls_to(url)
    assert len(calls) == 5
    assert {call.headers["webhook-id"] for call in calls} == {asked.request_id}
    assert {call.json["status"] for call in calls} == {"not_allowed"}
    assert len(authorizer.calls_to(token)) == 1
    assert len([row for row in caller.csv_rows() if row[1] == asked.request_id]) == 1
    assert asked.request_id not in caller.client.get(LETTERS).text
    assert caller.metrics()["dead_letters"] == before - 1
    for gone in (asked.request_id, str(uuid.uuid4())):
        answered = caller.client.post(f"{LETTERS}/{gone}/replay")
        assert (answered.status_code, answered.json()["status"]) == (404, "not_found")


def test_a_replay_may_fail_again(
    caller: Service, receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    asked = caller.ask(receiver.planned(reply(410)))
    caller.finished(asked)
    for calls in (2, 3):
        assert caller.client.post(f"{LETTERS}/{asked.request_id}/replay").status_code == 202
        eventually(lambda calls=calls: len(receiver.calls_to(asked.callback_url)) == calls)
        eventually(lambda: caller.session(asked.request_id)["status"] == "FAILED")
        eventually(lambda: asked.request_id in caller.client.get(LETTERS).text)


def test_a_range_is_replayed(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    caller = service(callback__max_attempts=1)
    early, late = [], []
    for letters in (early, late):
        for _ in range(3):
            letters.append(caller.ask(receiver.planned(reply(500), reply(200))))
            assert caller.finished(letters[-1])["status"] == "FAILED"
        now = time.time() + 0.02
        eventually(lambda now=now: time.time() > now)
    middle = caller.session(late[0].request_id)["created_at"]
    answered = caller.client.post(f"{LETTERS}/replay", params={"from": middle})
    assert (answered.status_code, answered.json()["replayed"]) == (202, 3)
    for asked in late:
        eventually(lambda asked=asked: caller.session(asked.request_id)["status"] == "COMPLETED")
    assert {caller.session(asked.request_id)["status"] for asked in early} == {"FAILED"}
    assert caller.client.post(f"{LETTERS}/replay", params={"from": middle}).json()["replayed"] == 0
    answered = caller.client.post(f"{LETTERS}/replay", params={"to": middle})
    assert answered.json()["replayed"] == 3
    for asked in early:
        eventually(lambda asked=asked: caller.session(asked.request_id)["status"] == "COMPLETED")
    assert all(len(receiver.calls_to(asked.callback_url)) == 2 for asked in early + late)


def test_a_dead_letter_survives_restarts(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    caller = service()
    asked = caller.ask(receiver.planned(reply(410), reply(200)))
    assert caller.finished(asked)["status"] == "FAILED"
    caller.restart()
    assert caller.client.post(f"{LETTERS}/{asked.request_id}/replay").status_code == 202
    caller.kill()
    caller.start()
    eventually(lambda: caller.session(asked.request_id)["status"] == "COMPLETED")
    assert caller.stop() == 0
    assert len(caller.audit_rows()) == 1
