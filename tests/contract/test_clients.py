"""Clients: a request belongs to whoever sent it, and nobody else reads it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from trying import first_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

PATH = "/api/v1/charging-session"


class Key(NamedTuple):
    secret: str
    line: str

    @property
    def headers(self) -> dict[str, str]:
        return {"x-api-key": self.secret}


@pytest.fixture(scope="module")
def make(command: str) -> Callable[..., Key]:
    def make(role: str, *options: str) -> Key:
        line = [command, "keys", "create", "--role", role, "--json", *options]
        printed = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
        return Key(printed["key"], printed["hash"])

    return make


@pytest.fixture(scope="module")
def keys(make: Callable[..., Key]) -> dict[str, Key]:
    """Two of north, one of south, one without a name as older releases made it, and an administrator's."""
    return {
        "north": make("client", "--name", "north"),
        "north again": make("client", "--name", "north"),
        "south": make("client", "--name", "south_2.de-x"),
        "old": make("client"),
        "ops": make("admin", "--name", "ops"),
    }


def settings(keys: dict[str, Key]) -> dict[str, Any]:
    return {"security__api_keys": [key.line for key in keys.values()], "callback__retry_delay_ms": 10}


@pytest.fixture(scope="module")
def shared(shared_service: Callable[..., Service], keys: dict[str, Key]) -> Service:
    return shared_service(**settings(keys))


def name_of(keys: dict[str, Key], who: str) -> str:
    first = keys[who].line.split(":")
    return first[0] if len(first) == 4 else first[2][:32]


def ask(service: Service, key: Key, url: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.client.post(PATH, json=service.body(url), headers={**key.headers, **named})


def read(service: Service, key: Key, request_id: str) -> httpx.Response:
    return service.client.get(f"{PATH}/{request_id}", headers=key.headers)


@pytest.fixture(scope="module")
def asked(shared: Service, keys: dict[str, Key], receiver: Site, reply: type[Reply]) -> dict[str, str]:
    """A dead letter of each key but the administrator's, by the key's name here; each has ended."""
    made = {}
    for who in ("north", "north again", "south", "old"):
        answer = ask(shared, keys[who], receiver.planned(reply(500)))
        assert answer.status_code == 202, answer.text
        made[who] = answer.json()["request_id"]
    for request_id in made.values():
        while read(shared, keys["ops"], request_id).json()["status"] != "FAILED":
            pass
    return made


MAY_READ = {
    "north": {"north", "north again"},
    "north again": {"north", "north again"},
    "south": {"south"},
    "old": {"old"},
    "ops": {"north", "north again", "south", "old"},
}


@pytest.mark.parametrize("who", MAY_READ)
def test_a_client_reads_its_own_requests_only(
    shared: Service, keys: dict[str, Key], asked: dict[str, str], who: str
) -> None:
    for owner, request_id in asked.items():
        for spelling in (request_id, request_id.upper()):
            answer = read(shared, keys[who], spelling)
            if owner in MAY_READ[who]:
                assert answer.status_code == 200
                assert answer.json()["request_id"] == request_id
                assert ("client" in answer.json()) == (who == "ops")
            else:
                none = read(shared, keys[who], str(uuid.uuid4()))
                assert (answer.status_code, answer.json()["status"]) == (404, "not_found")
                assert answer.json().keys() == none.json().keys()
                assert answer.json()["message"] == none.json()["message"]


def test_an_administrator_sees_whose_it_is(shared: Service, keys: dict[str, Key], asked: dict[str, str]) -> None:
    for owner, request_id in asked.items():
        assert read(shared, keys["ops"], request_id).json()["client"] == name_of(keys, owner)


def test_lists_are_filtered_by_client(shared: Service, keys: dict[str, Key], asked: dict[str, str]) -> None:
    def listed(path: str, **query: str) -> list[str]:
        answer = shared.client.get(path, params=query, headers=keys["ops"].headers)
        assert answer.status_code == 200, answer.text
        return [item["request_id"] for item in answer.json()["items"]]

    for path in ("/api/v1/decisions", "/api/v1/dead-letters"):
        assert set(listed(path)) == set(asked.values())
        for who in asked:
            own = {asked[owner] for owner in MAY_READ[who]}
            assert set(listed(path, client=name_of(keys, who))) == own
        assert listed(path, client="nobody") == []
        assert listed(path, client="nort") == []
        assert listed(path, client="north", to="2020-01-01") == []
    assert listed("/api/v1/audit/timeouts", client="north") == []
    stats = shared.client.get("/api/v1/audit/stats", params={"client": "north"}, headers=keys["ops"].headers).json()
    assert sum(item["total"] for item in stats["items"]) == 2
    letters = shared.client.get("/api/v1/dead-letters", headers=keys["ops"].headers).json()["items"]
    assert {letter["request_id"]: letter["client"] for letter in letters} == {
        request_id: name_of(keys, owner) for owner, request_id in asked.items()
    }


@pytest.mark.parametrize("client", ["", "a b", "x" * 65, "\u00e4", "a%00"])
@pytest.mark.parametrize("path", ["/api/v1/decisions", "/api/v1/dead-letters"])
def test_a_wrong_client_is_refused(shared: Service, keys: dict[str, Key], path: str, client: str) -> None:
    answer = shared.client.get(path, params={"client": client}, headers=keys["ops"].headers)
    assert (answer.status_code, answer.json()["details"].keys()) == (400, {"client"})


@pytest.mark.parametrize("path", ["/api/v1/decisions", "/api/v1/dead-letters"])
def test_a_client_does_not_list_even_its_own(shared: Service, keys: dict[str, Key], path: str) -> None:
    answer = shared.client.get(path, params={"client": "north"}, headers=keys["north"].headers)
    assert answer.status_code == 403


def test_the_command_line_filters_too(
    shared: Service, keys: dict[str, Key], asked: dict[str, str], command: str
) -> None:
    def run(*line: str) -> list[dict[str, Any]]:
        file = ("--config", "chargegate.toml", "--json")
        out = subprocess.run([command, *line, *file], cwd=shared.folder, check=True, capture_output=True, text=True)
        return [json.loads(each) for each in out.stdout.splitlines()]

    own = {asked["north"], asked["north again"]}
    for line in (("audit", "list"), ("dead-letters", "list")):
        assert {each["request_id"] for each in run(*line, "--client", "north")} == own
        assert {each["request_id"] for each in run(*line)} == set(asked.values())
    assert {each["client"] for each in run("dead-letters", "list", "--client", "north")} == {"north"}
    assert sum(each["total"] for each in run("audit", "stats", "--client", "north")) == 2
    assert run("audit", "timeouts", "--client", "north") == []


def test_a_replay_belongs_to_the_client_still(
    service: Callable[..., Service], keys: dict[str, Key], receiver: Site, reply: type[Reply]
) -> None:
    kept = service(**settings(keys))
    made = {}
    for who in ("north", "south"):
        answer = ask(kept, keys[who], receiver.planned(reply(500), reply(500), reply(500), reply(200)))
        made[who] = answer.json()["request_id"]
        while read(kept, keys[who], made[who]).json()["status"] != "FAILED":
            pass
    headers = keys["ops"].headers
    answer = kept.client.post("/api/v1/dead-letters/replay", params={"client": "north"}, json={}, headers=headers)
    assert (answer.status_code, answer.json()["replayed"]) == (202, 1)
    while read(kept, keys["north"], made["north"]).json()["status"] != "COMPLETED":
        pass
    assert read(kept, keys["south"], made["north"]).status_code == 404
    assert read(kept, keys["ops"], made["south"]).json()["status"] == "FAILED"


@pytest.mark.parametrize("queue", ["sqlite", "memory://"])
def test_what_waits_belongs_to_its_client_too(
    service: Callable[..., Service], keys: dict[str, Key], receiver: Site, queue: str
) -> None:
    slow = service(
        **settings(keys),
        queue__url=queue,
        queue__consumer_concurrency=1,
        authorization__backend="simulated",
        authorization__simulated_latency_ms=[30_000, 30_000],
    )
    made = [ask(slow, keys["north"], receiver.url()).json()["request_id"] for _ in range(3)]
    for request_id in made:
        assert read(slow, keys["north again"], request_id).json()["status"] in {"QUEUED", "PROCESSING"}
        assert "client" not in read(slow, keys["north"], request_id).json()
        assert read(slow, keys["south"], request_id).status_code == 404
        assert read(slow, keys["old"], request_id).status_code == 404
        assert read(slow, keys["ops"], request_id).json()["client"] == "north"
    if queue == "sqlite":
        slow.kill()
        slow.start()
        assert read(slow, keys["north"], made[-1]).json()["status"] == "QUEUED"
        assert read(slow, keys["south"], made[-1]).status_code == 404


def test_idempotency_keys_are_the_clients(
    service: Callable[..., Service], keys: dict[str, Key], receiver: Site
) -> None:
    kept = service(**settings(keys))
    body = kept.body(receiver.url())

    def send(who: str, body: Any = body) -> httpx.Response:
        headers = {**keys[who].headers, "idempotency-key": "order-4711"}
        return kept.client.post(PATH, json=body, headers=headers)

    north, again, south, old = (send(who).json()["request_id"] for who in ("north", "north again", "south", "old"))
    assert north == again
    assert len({north, south, old}) == 3
    assert send("north again", kept.body(receiver.url())).status_code == 422
    assert read(kept, keys["north again"], north).status_code == 200


def test_a_rate_is_the_clients(service: Callable[..., Service], keys: dict[str, Key], receiver: Site) -> None:
    limited = service(**settings(keys), server__rate_limit_per_second=0.01, server__rate_limit_burst=2)
    order = ["north", "north again", "north", "north again", "south", "old", "south"]
    statuses = [ask(limited, keys[who], receiver.url()).status_code for who in order]
    assert statuses == [202, 202, 429, 429, 202, 202, 202]


def test_without_keys_there_is_one_client(
    service: Callable[..., Service], receiver: Site, keys: dict[str, Key]
) -> None:
    open_to_all = service()
    made = open_to_all.ask(receiver.url())
    assert "client" not in open_to_all.finished(made)
    found = open_to_all.client.get("/api/v1/decisions", params={"client": "anonymous"}).json()["items"]
    assert [item["request_id"] for item in found] == [made.request_id]
    open_to_all.stop()
    open_to_all.configure(**{"security.api_keys": [key.line for key in keys.values()]})
    open_to_all.start()
    assert read(open_to_all, keys["north"], made.request_id).status_code == 404
    assert read(open_to_all, keys["ops"], made.request_id).json()["client"] == "anonymous"


def test_names_of_old_lines(make: Callable[..., Key]) -> None:
    old = make("client")
    role, algorithm, digest = old.line.split(":")
    assert (role, algorithm, digest) == ("client", "sha256", hashlib.sha256(old.secret.encode()).hexdigest())


@pytest.mark.parametrize("name", ["", "a b", "a:b", "x" * 65, "anonymous", "\u00e4"])
def test_a_wrong_name_makes_no_key(command: str, name: str) -> None:
    line = [command, "keys", "create", "--role", "client", "--name", name]
    out = subprocess.run(line, check=False, capture_output=True, text=True)
    assert out.returncode in (1, 2)
    assert "cg_client" not in out.stdout


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "lines",
    first_of(
        6,
        [
            [f"a:client:sha256:{_digest('x')}", f"b:client:sha256:{_digest('x')}"],
            [f"client:sha256:{_digest('x')}", f"client:sha256:{_digest('x')}"],
            [f"client:sha256:{_digest('x')}", f"a:client:sha256:{_digest('x').upper()}"],
            [f"a:client:sha256:{_digest('x')}", f"a:admin:sha256:{_digest('x')}"],
            [f"client:sha256:{_digest('x')}", f"admin:sha256:{_digest('x')}"],
            [f"a:client:sha256:{_digest('x')}", f"b:client:sha256:{_digest('y')}", f"a:admin:sha256:{_digest('z')}"],
            [f"client:sha256:{_digest('')}"],
            [f"a:admin:sha256:{_digest('')}"],
            [f"anonymous:client:sha256:{_digest('x')}"],
            [f":client:sha256:{_digest('x')}"],
            [f"a b:client:sha256:{_digest('x')}"],
            ["a" * 65 + f":client:sha256:{_digest('x')}"],
            [f"a:client:md5:{_digest('x')}"],
            [f"a:client:sha256:{_digest('x')}0"],
            [f"a:b:client:sha256:{_digest('x')}"],
            [f"a:root:sha256:{_digest('x')}"],
        ],
    ),
)
def test_lines_that_stop_the_start(service: Callable[..., Service], lines: list[str]) -> None:
    wrong = service(started=False, security__api_keys=lines)
    process = wrong.spawn()
    assert process.wait(30) == 1
    (line,) = wrong.log.splitlines()
    assert "security.api_keys" in line
    for each in lines:
        assert each.rpartition(":")[2] not in line
