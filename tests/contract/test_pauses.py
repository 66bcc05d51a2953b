"""Receivers that ask to wait, and circuits that nobody asks for any more."""

from __future__ import annotations

import threading
import time
from collections import deque
from email.utils import formatdate
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

    from outside import Call

STATE = 'circuit_breaker_state{name="callbacks"}'
PAUSED = 'callback_deliveries_total{outcome="paused"}'
LETTERS = "/api/v1/dead-letters"


class Limited:
    """A receiver of so many calls a second, which refuses the others."""

    def __init__(self, reply: type[Reply], a_second: int) -> None:
        self.reply, self.a_second = reply, a_second
        self.refused = 0
        self._taken: deque[float] = deque()
        self._lock = threading.Lock()

    def __call__(self, _call: Call) -> Reply:
        with self._lock:
            now = time.monotonic()
            while self._taken and self._taken[0] <= now - 1:
                self._taken.popleft()
            if len(self._taken) < self.a_second:
                self._taken.append(now)
                return self.reply(200)
            self.refused += 1
            return self.reply(429, headers={"retry-after": "1"})


@pytest.mark.parametrize("replayed", [False, True])
def test_a_rate_limited_receiver_gets_everything(
    service: Callable[..., Service],
    site: Callable[..., Site],
    reply: type[Reply],
    eventually: Callable[..., Any],
    replayed: bool,
) -> None:
    caller = service(server__rate_limit_per_second=0, callback__deadline_ms=60_000)
    limited = Limited(reply, 20)
    refusing = [replayed]
    receiver = site(lambda call: reply(410) if refusing[0] else limited(call))
    asked = [caller.ask(receiver.url()) for _ in range(120 if replayed else 300)]
    if replayed:
        for each in asked:
            assert caller.finished(each)["status"] == "FAILED"
        refusing[0] = False
        assert caller.client.post(f"{LETTERS}/replay").json()["replayed"] == len(asked)
    eventually(
        lambda: caller.metrics()['callback_deliveries_total{outcome="delivered"}'] == len(asked),
        60,
        lambda: str(caller.metrics()),
    )
    assert limited.refused > 0, "it was never called faster than it wants"
    assert caller.client.get(LETTERS).json()["items"] == []
    for each in asked[:: len(asked) // 20]:
        ended = caller.finished(each)
        assert (ended["status"], ended["callback"]["attempts"]) == ("COMPLETED", 1)
    assert caller.metrics()[PAUSED] == limited.refused
    assert caller.log.count("asks to wait") <= limited.refused


@pytest.mark.parametrize(
    ("status", "after"), [(429, None), (429, "1"), (429, "soon"), (429, "date"), (503, "1"), (503, "date")]
)
def test_a_pause_costs_no_attempt_and_ends(
    service: Callable[..., Service], site: Callable[..., Site], reply: type[Reply], status: int, after: str | None
) -> None:
    caller = service(callback__max_attempts=1)
    receiver = site()
    until = int(time.time()) + 2
    headers = {} if after is None else {"retry-after": formatdate(until, usegmt=True) if after == "date" else after}
    refusal = reply(status, headers=headers)
    first = caller.ask(receiver.planned(refusal, refusal, reply(200)))
    ended = caller.finished(first)
    assert (ended["status"], ended["callback"]["attempts"]) == ("COMPLETED", 1)
    calls = receiver.calls_to(first.callback_url)
    assert len(calls) == 3
    if after == "date":
        assert calls[1].at >= until
    else:
        assert [later.at - earlier.at >= 1 for earlier, later in pairwise(calls)] == [True, True]
    assert len({call.headers["webhook-id"] for call in calls}) == 1


def test_a_pause_holds_back_all_callbacks_to_its_destination_and_no_others(
    service: Callable[..., Service], site: Callable[..., Site], reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    caller = service()
    receiver, other = site(), site()
    refused = caller.ask(receiver.planned(reply(429, headers={"retry-after": "3"}), reply(200)))
    (refusal,) = eventually(lambda: receiver.calls_to(refused.callback_url))
    behind = caller.ask(receiver.url())
    assert caller.finished(caller.ask(other.url()))["status"] == "COMPLETED"
    for each in (refused, behind):
        assert caller.finished(each)["callback"]["attempts"] == 1
        assert receiver.calls_to(each.callback_url)[-1].at - refusal.at >= 3
    assert caller.metrics()[STATE] == 0


def test_a_pause_is_no_longer_than_allowed(service: Callable[..., Service], receiver: Site, reply: type[Reply]) -> None:
    caller = service(callback__max_retry_after_ms=1200)
    asked = caller.ask(receiver.planned(reply(429, headers={"retry-after": "86400"}), reply(200)))
    assert caller.finished(asked)["status"] == "COMPLETED"
    first, second = receiver.calls_to(asked.callback_url)
    assert second.at - first.at >= 1.2


@pytest.mark.parametrize(("status", "after"), [(429, None), (429, "600"), (429, "0"), (503, "1")])
def test_the_deadline_ends_a_pause(
    service: Callable[..., Service], site: Callable[..., Site], reply: type[Reply], status: int, after: str | None
) -> None:
    caller = service(callback__deadline_ms=2500)
    headers = {} if after is None else {"retry-after": after}
    receiver = site(lambda _call: reply(status, headers=headers))
    for asked in [caller.ask(receiver.url()) for _ in range(3)]:
        ended = caller.finished(asked)
        assert ended["status"] == "FAILED"
        assert ended["callback"]["last_error"] == f"http_{status}"
        assert ended["callback"]["attempts"] == 0
    assert len(receiver.calls) < 200, "it was called in a tight loop"
    assert len(caller.client.get(LETTERS).json()["items"]) == 3


@pytest.mark.parametrize("after", [None, "", "soon"])
def test_503_that_does_not_say_when_is_a_failed_attempt(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], after: str | None
) -> None:
    caller = service(callback__retry_delay_ms=20)
    asked = caller.ask(receiver.planned(reply(503, headers={} if after is None else {"retry-after": after})))
    ended = caller.finished(asked)
    assert (ended["status"], ended["callback"]["attempts"]) == ("FAILED", 3)
    assert ended["callback"]["last_error"] == "http_503"


def test_a_circuit_that_nobody_asks_for_is_forgotten(
    service: Callable[..., Service], site: Callable[..., Site], eventually: Callable[..., Any]
) -> None:
    caller = service(callback__deadline_ms=1500, callback__retry_delay_ms=50, callback__circuit__forget_after_ms=1500)
    dead = site()
    dead.down()
    for asked in [caller.ask(dead.url()) for _ in range(6)]:
        assert caller.finished(asked)["status"] == "FAILED"
    assert caller.metrics()[STATE] > 0
    assert caller.client.get("/health").json()["components"]["callbacks"]["status"] == "DEGRADED"
    eventually(lambda: caller.metrics()[STATE] == 0)
    assert caller.client.get("/health").json()["components"]["callbacks"]["status"] == "UP"
    dead.up()
    assert caller.finished(caller.ask(dead.url()))["callback"]["attempts"] == 1
