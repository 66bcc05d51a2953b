"""kill -9 under load: at random moments, and at each durable step. Nothing acknowledged is lost, decided twice or told
otherwise, and no driver token stays anywhere."""

from __future__ import annotations

import base64
import json
import random
import sys
import threading
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from outside import PLAIN, leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.contract.conftest import Service

    from outside import Call, Reply, Site

PATH = "/api/v1/charging-session"
LAUNCHER = Path(__file__).with_name("kill_at.py")
POINTS = ["accepted", "decided", "decided_not_logged", "delivered_not_finished", "finished_not_acked"]
SECRET = "SecretPart.1"  # begins every token; twelve characters, so that its base64 has no remainder
CLIENTS = 3


class Load:
    """Clients that make requests for as long as the service answers. What it does not answer is not sent again."""

    def __init__(self, receiver: Site, drivers: Sequence[str] = ()) -> None:
        """``drivers``: the tokens that come again and again; without any each comes once."""
        self._receiver = receiver
        self._drivers = drivers
        self.acknowledged: dict[str, dict[str, str]] = {}
        self.refusals: set[bytes] = set()
        self._threads: list[threading.Thread] = []

    def start(self, service: Service) -> None:
        self._threads = [threading.Thread(target=self._client, args=(service.url,)) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _client(self, url: str) -> None:
        with httpx.Client(base_url=url, verify=PLAIN, trust_env=False, timeout=30) as client:
            try:
                while True:
                    self._post(client, random.choice(["good"] * 6 + ["flaky"] * 3 + ["dead", "gone", "wrong"]))
            except httpx.TransportError:
                return  # it was killed

    def _post(self, client: httpx.Client, kind: str) -> None:
        token = random.choice(self._drivers) if self._drivers else f"{SECRET}-{uuid.uuid4().hex}"
        token += "!" if kind == "wrong" else ""
        url = self._receiver.url(f"/{kind}/{SECRET}/{uuid.uuid4().hex}")
        body = {"station_id": str(uuid.uuid4()), "driver_token": token, "callback_url": url}
        answer = client.post(PATH, json=body)
        if answer.status_code == 202:
            self.acknowledged[answer.json()["request_id"]] = body
        else:
            self.refusals.add(answer.content)


@pytest.fixture
def receiver(site: Callable[..., Site], reply: type[Reply]) -> Site:
    """Some callbacks work, some at the second attempt, some never."""
    seen: set[str] = set()

    def received(call: Call) -> Reply:
        again = call.path in seen
        seen.add(call.path)
        kind = call.path.split("/")[1]
        return reply({"good": 200, "flaky": 200 if again else 500, "dead": 500, "gone": 410}[kind])

    return site(received)


@pytest.fixture
def authorizer(site: Callable[..., Site], reply: type[Reply], answer: Callable[..., Reply]) -> Site:
    """Says something else whenever it is asked, so that a second decision would show."""
    replies = [answer("allowed"), answer("not_allowed", "token_blocked"), answer("invalid"), reply(500)]
    return site(lambda _call: reply(how="held") if random.random() < 0.02 else random.choice(replies))


@pytest.fixture
def killed(service: Callable[..., Service], authorizer: Site) -> Service:
    return service(
        started=False,
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        authorization__timeout_ms=400,
        authorization__max_retries=0,
        authorization__circuit_breaker__enabled=False,
        queue__max_age_ms=3_600_000,
        callback__retry_delay_ms=50,
        callback__deadline_ms=3_600_000,
    )


def kill_somewhen(service: Service, load: Load, eventually: Callable[..., Any]) -> None:
    """Kill it once it has acknowledged some more requests."""
    service.start()
    enough = len(load.acknowledged) + random.randint(1, 120)
    load.start(service)
    eventually(lambda: len(load.acknowledged) >= enough, 60, "too few requests were accepted")
    service.kill()
    load.join()


def kill_at(point: str, service: Service, load: Load, eventually: Callable[..., Any]) -> None:
    """Have it kill itself, on its way up with what an earlier one left or under the load."""
    process = service.spawn(sys.executable, str(LAUNCHER), point, str(random.randint(1, 25)))
    eventually(lambda: service.ready() == 200 or process.poll() is not None, 30, "not ready in time")
    load.start(service)
    assert service.ended(60) == -9, service.log
    load.join()


def check(service: Service, load: Load, receiver: Site, eventually: Callable[..., Any]) -> None:
    service.start()
    left = dict.fromkeys(load.acknowledged)
    ended: dict[str, str] = {}

    def all_ended() -> bool:
        for request_id in list(left):
            status = service.session(request_id)["status"]
            if status not in ("COMPLETED", "FAILED", "TIMEOUT"):
                return False
            ended[request_id] = status
            del left[request_id]
        return True

    eventually(all_ended, 90, "some requests came to no end")
    metrics = service.client.get("/metrics").content
    refused = service.client.get(f"{PATH}/{SECRET}").content
    letters = service.client.get("/api/v1/dead-letters", params={"limit": 1000}).content
    assert service.stop() == 0, service.log

    audit = service.audit_rows()
    decisions = {request_id: (status, reason) for request_id, status, reason in audit}
    assert len(decisions) == len(audit), "a request was decided twice"
    assert load.acknowledged.keys() <= decisions.keys(), "an acknowledged request has no decision"
    lines = Counter((row[1], row[4], row[5]) for row in service.csv_rows())
    assert lines == Counter(audit), "the CSV is not what was decided"

    told: dict[str, set[str]] = {}
    for call in receiver.calls:
        told.setdefault(call.headers["webhook-id"], set()).add(call.json["status"])
    assert {request_id: {decisions[request_id][0]} for request_id in told} == told, "a callback said something else"
    assert load.acknowledged.keys() <= told.keys(), "an acknowledged request has no callback"
    for request_id, body in load.acknowledged.items():
        works = body["callback_url"].split("/")[3] in ("good", "flaky")
        timed_out = decisions[request_id][1] == "authorization_timeout"
        assert ended[request_id] == ("FAILED" if not works else "TIMEOUT" if timed_out else "COMPLETED")

    files = [path.read_bytes() for path in service.folder.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert not [text for text in (*files, *load.refusals, metrics, refused, letters) if leaks(text, SECRET)]


def test_a_leak_would_be_found() -> None:
    token = f"{SECRET}-{uuid.uuid4().hex}"
    body = json.dumps([token]).encode()
    assert leaks(body, SECRET)
    assert leaks(token.encode().hex().encode(), SECRET)
    for before in (b"", b"1", b"22"):
        assert leaks(base64.b64encode(before + body), SECRET)
    assert not leaks(b"nothing here", SECRET)


def short_and_long(rounds: int) -> pytest.MarkDecorator:
    long = pytest.param(8, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])
    return pytest.mark.parametrize("rounds", [pytest.param(rounds, marks=pytest.mark.timeout(600)), long])


def kill_again_and_again(service: Service, load: Load, rounds: int, eventually: Callable[..., Any]) -> None:
    for _ in range(rounds):
        for point in POINTS:
            kill_at(point, service, load, eventually)
        for _ in range(3):
            kill_somewhen(service, load, eventually)


@short_and_long(3)
def test_nothing_acknowledged_is_lost(
    killed: Service, receiver: Site, eventually: Callable[..., Any], rounds: int
) -> None:
    load = Load(receiver)
    kill_again_and_again(killed, load, rounds, eventually)
    check(killed, load, receiver, eventually)


@short_and_long(2)
def test_nothing_that_is_decided_at_once_is_lost(
    service: Callable[..., Service], receiver: Site, eventually: Callable[..., Any], rounds: int
) -> None:
    """Drivers of the access list, whose entries are soon in memory: their requests are decided as they come in."""
    drivers = [f"{SECRET}-{uuid.uuid4().hex}" for _ in range(4)]
    killed = service(started=False, authorization__acl_file="drivers.csv", callback__retry_delay_ms=50)
    lines = [f"{driver},{'true' if number % 2 else ''}" for number, driver in enumerate(drivers)]
    (killed.folder / "drivers.csv").write_text("\n".join(["driver_token,blocked", *lines, ""]))
    load = Load(receiver, drivers)
    kill_again_and_again(killed, load, rounds, eventually)
    (killed.folder / "drivers.csv").unlink()  # it holds tokens, and the database has what it said
    killed.configure(**{"callback.retry_delay_ms": 50})
    check(killed, load, receiver, eventually)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_nothing_acknowledged_is_lost_between_many_starts(
    killed: Service, receiver: Site, eventually: Callable[..., Any]
) -> None:
    load = Load(receiver)
    for _ in range(8):
        kill_again_and_again(killed, load, 3, eventually)
        check(killed, load, receiver, eventually)
