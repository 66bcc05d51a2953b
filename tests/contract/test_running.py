"""How it is run: a drain, access keys, limits."""

from __future__ import annotations

import json
import signal
import subprocess
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

PATH = "/api/v1/charging-session"


def test_a_drain(
    service: Callable[..., Service],
    receiver: Site,
    authorizer: Site,
    reply: type[Reply],
    answer: Callable[..., Reply],
    eventually: Callable[..., Any],
) -> None:
    running = service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        queue__consumer_concurrency=1,
        callback__retry_delay_ms=600_000,
        callback__deadline_ms=700_000,
    )
    parked = running.ask(receiver.planned(reply(500), reply(200)))
    eventually(lambda: running.session(parked.request_id)["callback"])
    token = f"driver-{uuid.uuid4().hex}"
    authorizer.plan(token, answer("allowed", how="held"))
    under_way = running.ask(receiver.url(), driver_token=token)
    eventually(lambda: authorizer.calls_to(token))
    queued = [running.ask(receiver.url()) for _ in range(5)]

    running.terminate()
    eventually(lambda: running.ready() == 503)
    refused = running.post(running.body(receiver.url()))
    assert (refused.status_code, refused.json()["status"]) == (503, "service_unavailable")
    assert int(refused.headers["retry-after"]) > 0
    assert running.client.get("/health/live").status_code == 200
    assert running.process is not None
    assert running.process.poll() is None
    authorizer.release(token)
    assert running.ended() == 0, running.log
    assert [call.json["status"] for call in receiver.calls_to(under_way.callback_url)] == ["allowed"]
    assert not [asked for asked in queued if receiver.calls_to(asked.callback_url)]

    running.start()
    for asked in (parked, under_way, *queued):
        assert running.finished(asked)["status"] == "COMPLETED"
        assert len(receiver.calls_to(asked.callback_url)) == (2 if asked is parked else 1)
    assert len(authorizer.calls_to(token)) == 1
    assert running.stop() == 0
    assert len(running.audit_rows()) == len(running.csv_rows()) == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_has_an_end(
    service: Callable[..., Service],
    receiver: Site,
    authorizer: Site,
    answer: Callable[..., Reply],
    eventually: Callable[..., Any],
    number: signal.Signals,
) -> None:
    running = service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        server__shutdown_grace_ms=300,
    )
    token = f"driver-{uuid.uuid4().hex}"
    authorizer.plan(token, answer("not_allowed", how="held"), answer("allowed"))
    asked = running.ask(receiver.url(), driver_token=token)
    eventually(lambda: authorizer.calls_to(token))
    assert running.process is not None
    running.process.send_signal(number)
    assert running.ended() == 0, running.log
    assert not receiver.calls_to(asked.callback_url)
    running.start()
    assert running.finished(asked)["decision"]["status"] == "allowed"
    assert running.stop() == 0
    assert len(running.audit_rows()) == 1


def test_a_client_that_keeps_its_connection_holds_no_shutdown_up(
    service: Callable[..., Service], receiver: Site
) -> None:
    running = service()
    with httpx.Client(base_url=running.url, trust_env=False) as idle:
        assert idle.get("/health").status_code == 200
        running.finished(running.ask(receiver.url()))
        assert running.stop() == 0


class Key(NamedTuple):
    secret: str
    line: str


@pytest.fixture(scope="module")
def keys(command: str) -> dict[str, Key]:
    """What the command prints for each role."""
    made = {}
    for role in ("client", "admin"):
        out = subprocess.run(
            [command, "keys", "create", "--role", role, "--json"], check=True, capture_output=True, text=True
        ).stdout
        printed = json.loads(out)
        made[role] = Key(printed["key"], printed["hash"])
    return made


@pytest.fixture(scope="module")
def locked(shared_service: Callable[..., Service], keys: dict[str, Key]) -> Service:
    return shared_service(security__api_keys=[key.line for key in keys.values()])


CLIENTS = [("POST", PATH), ("GET", f"{PATH}/{uuid.UUID(int=0)}")]
ADMINS = [
    ("GET", "/api/v1/decisions"),
    ("GET", "/api/v1/dead-letters"),
    ("POST", "/api/v1/dead-letters/replay"),
    ("POST", f"/api/v1/dead-letters/{uuid.UUID(int=0)}/replay"),
    ("GET", "/api/v1/acl"),
    ("PUT", "/api/v1/acl"),
    ("DELETE", f"/api/v1/acl/{'0' * 64}"),
    ("POST", "/api/v1/acl/check"),
]


@pytest.mark.parametrize(("method", "path"), CLIENTS + ADMINS)
def test_keys_and_roles(locked: Service, keys: dict[str, Key], method: str, path: str) -> None:
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {keys['admin'].secret}x"},
        {"authorization": f"Basic {keys['admin'].secret}"},
        {"authorization": f"Bearer {keys['admin'].line}"},
        {"x-api-key": "nonsense"},
    ]
    for headers in wrong:
        answer = locked.client.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["status"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for headers in (
        {"authorization": f"Bearer {keys['client'].secret}"},
        {"authorization": f"bearer {keys['client'].secret}"},
        {"x-api-key": keys["client"].secret},
    ):
        answer = locked.client.request(method, path, headers=headers)
        if (method, path) in ADMINS:
            assert (answer.status_code, answer.json()["status"]) == (403, "forbidden")
        else:
            assert answer.status_code not in (401, 403)
    answer = locked.client.request(method, path, headers={"x-api-key": keys["admin"].secret})
    assert answer.status_code not in (401, 403)
    assert answer.status_code < 500


def test_with_a_key_it_works(locked: Service, keys: dict[str, Key], receiver: Site) -> None:
    admin = {"x-api-key": keys["admin"].secret}
    token = f"driver-{uuid.uuid4().hex}"
    assert locked.client.put("/api/v1/acl", json={"driver_token": token}, headers=admin).status_code == 200
    client = {"authorization": f"Bearer {keys['client'].secret}"}
    body = locked.body(receiver.url(), driver_token=token)
    request_id = locked.client.post(PATH, json=body, headers=client).json()["request_id"]
    while (found := locked.client.get(f"{PATH}/{request_id}", headers=client)).json()["status"] != "COMPLETED":
        assert found.status_code == 200
    assert receiver.calls_to(body["callback_url"])[0].json["status"] == "allowed"
    for key in keys.values():
        assert key.secret not in locked.log


def test_what_needs_no_key(locked: Service) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs"):
        assert locked.client.get(path).status_code == 200


def test_a_rate(service: Callable[..., Service], receiver: Site, keys: dict[str, Key]) -> None:
    limited = service(
        server__rate_limit_per_second=0.01,
        server__rate_limit_burst=3,
        security__api_keys=[key.line for key in keys.values()],
    )
    limited.sign_in(keys["client"].secret)
    answers = [limited.post(limited.body(receiver.url())) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429, 429]
    assert answers[3].json()["status"] == "rate_limited"
    assert int(answers[3].headers["retry-after"]) > 0
    assert limited.session(answers[0].json()["request_id"])
    assert limited.metrics()['charging_requests_total{outcome="rate_limited"}'] == 2
    limited.sign_in(keys["admin"].secret)
    assert limited.post(limited.body(receiver.url())).status_code == 202


def test_the_environment_wins_over_the_file(service: Callable[..., Service], receiver: Site) -> None:
    environ = {"CHARGEGATE_SERVER__MAX_BODY_BYTES": "300", "CHARGEGATE_CALLBACK__ALLOWED_NETWORKS": "10.0.0.0/8"}
    running = service(environ=environ, server__max_body_bytes=20_000)
    assert running.post(running.body("http://10.0.0.1/", padding="x" * 300)).status_code == 413
    assert running.post(running.body("http://10.0.0.1/")).status_code == 202
    assert running.post(running.body(receiver.url())).status_code == 400
