"""Which requests are under way, and at which station: asked for just when the authorizer hangs."""

from __future__ import annotations

import json
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Asked, Reply, Service, Site

PATH = "/api/v1/requests"


def listed(gate: Service, **filters: Any) -> list[dict[str, Any]]:
    answer = gate.client.get(PATH, params=filters)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def ids(gate: Service, **filters: Any) -> list[str]:
    return [item["request_id"] for item in listed(gate, **filters)]


@pytest.fixture(params=["sqlite", "memory://"])
def gate(request: pytest.FixtureRequest, service: Callable[..., Service], authorizer: Site) -> Service:
    return service(
        queue__url=request.param,
        queue__consumer_concurrency=2,
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        authorization__cache_ttl_ms=0,
        callback__retry_delay_ms=60_000,
        callback__deadline_ms=300_000,
        callback__max_retry_after_ms=300_000,
    )


def ask_held(gate: Service, authorizer: Site, receiver: Site, reply: type[Reply], **fields: Any) -> Asked:
    token = f"held-{uuid.uuid4().hex}"
    authorizer.plan(token, reply(200, how="held"))
    return gate.ask(receiver.url(), driver_token=token, **fields)


def test_what_hangs_is_found_without_its_id(
    gate: Service, authorizer: Site, receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    assert listed(gate) == []
    here, there = str(uuid.uuid4()), str(uuid.uuid4())
    hanging = [ask_held(gate, authorizer, receiver, reply, station_id=here) for _ in range(2)]
    eventually(lambda: len(ids(gate, status="PROCESSING")) == 2)
    later_than_those = gate.client.get("/health").json()["timestamp"] + 1
    eventually(lambda: gate.client.get("/health").json()["timestamp"] > later_than_those)
    waiting = [ask_held(gate, authorizer, receiver, reply, station_id=there.upper()) for _ in range(3)]
    items = listed(gate)
    times = [item["created_at"] for item in items]
    assert times == sorted(times, reverse=True)
    assert {item["request_id"] for item in items} == {asked.request_id for asked in hanging + waiting}
    newest_first = [item["request_id"] for item in items]
    assert [item["status"] for item in items] == ["QUEUED"] * 3 + ["PROCESSING"] * 2
    assert items[-1]["station_id"] == here
    assert items[-1]["decision"] is None
    assert ids(gate, station_id=there) == newest_first[:3]
    assert ids(gate, station_id=here.upper(), status="PROCESSING") == newest_first[3:]
    assert ids(gate, station_id=here, status="QUEUED") == []
    paged: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = gate.client.get(PATH, params={"limit": 2, **cursor}).json()
        paged += [item["request_id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert paged == newest_first
    text = json.dumps(items)
    for asked in hanging + waiting:
        assert asked.driver_token not in text
        assert asked.callback_url not in text
    for asked in hanging + waiting:
        authorizer.release(asked.driver_token)
    for asked in hanging + waiting:
        gate.finished(asked, 60)
    eventually(lambda: listed(gate) == [])


def test_a_callback_that_waits_for_its_next_attempt_is_under_way(
    gate: Service, receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    asked = gate.ask(receiver.planned(reply(500), reply(500)))
    [item] = eventually(lambda: [one for one in listed(gate) if one["callback"] and one["callback"]["attempts"] == 1])
    assert (item["request_id"], item["status"]) == (asked.request_id, "PROCESSING")
    assert item["decision"] is not None
    assert item["callback"]["last_status_code"] == 500


@pytest.mark.parametrize(
    "wrong",
    [{"status": "FAILED"}, {"status": "queued"}, {"station_id": "x"}, {"limit": "0"}, {"cursor": "x"}, {"client": ""}],
)  # fmt: skip
def test_filters_that_are_none_are_named(gate: Service, wrong: dict[str, str]) -> None:
    answer = gate.client.get(PATH, params=wrong)
    assert answer.status_code == 400
    assert answer.json()["details"].keys() == wrong.keys()


def test_it_is_for_administrators_who_see_whose_they_are(
    service: Callable[..., Service],
    command: str,
    authorizer: Site,
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    made = {}
    for role, name in (("admin", "ops"), ("client", "north")):
        line = [command, "keys", "create", "--role", role, "--name", name, "--json"]
        printed = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
        made[name] = (printed["key"], printed["hash"])
    gate = service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        security__api_keys=[line for _, line in made.values()],
    )
    asked = {}
    for name, (key, _) in made.items():
        gate.sign_in(key)
        asked[name] = ask_held(gate, authorizer, receiver, reply).request_id
    assert gate.client.get(PATH).status_code == 403
    gate.sign_in(made["ops"][0])
    eventually(lambda: {item["client"] for item in listed(gate)} == {"ops", "north"})
    assert ids(gate, client="north") == [asked["north"]]
    assert ids(gate, client="nobody") == []
