"""How it is run: a drain, access keys, limits."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from outside import PLAIN

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_drain(
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
        authorization__timeout_ms=600_000,
        server__shutdown_grace_ms=600_000,
    )
    token = f"driver-{uuid.uuid4().hex}"
    authorizer.plan(token, answer("not_allowed", how="held"), answer("allowed"))
    asked = running.ask(receiver.url(), driver_token=token)
    eventually(lambda: authorizer.calls_to(token))
    assert running.process is not None
    running.process.send_signal(number)
    eventually(lambda: running.ready() == 503)
    running.process.send_signal(number)
    assert running.ended() == 0, running.log
    assert "Traceback" not in running.log
    assert not receiver.calls_to(asked.callback_url)
    running.start()
    assert running.finished(asked)["decision"]["status"] == "allowed"
    assert running.stop() == 0
    assert len(running.audit_rows()) == 1


HEALTH = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


def statuses(running: Service, stack: contextlib.ExitStack, count: int) -> list[int]:
    """What so many clients that keep their connections are answered; 0 where a connection ended without an answer."""
    found = []
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=30))
        received = b""
        with contextlib.suppress(ConnectionError):
            client.sendall(HEALTH)
            received = client.recv(65536)
        found.append(int(received.split()[1]) if received else 0)
        if found[-1] == 503:
            head, _, body = received.partition(b"\r\n\r\n")
            assert b"\r\nretry-after: " in head
            assert b"\r\nconnection: close" in head
            assert set(json.loads(body)) == {"status", "message", "timestamp"}
            assert json.loads(body)["status"] == "service_unavailable"
    return found


def test_many_clients_take_no_files_from_callbacks(
    service: Callable[..., Service], receiver: Site, command: str, eventually: Callable[..., Any]
) -> None:
    running = service(started=False)
    running.start("sh", "-c", 'ulimit -n 128; exec "$0" "$@"', command)
    assert running.client.get("/health").status_code == 200
    with contextlib.ExitStack() as stack:
        found = statuses(running, stack, 200)
        assert found[:15] == [200] * 15
        assert found[15:].count(503) > 100
        assert not set(found[15:]) - {503, 0}
        asked = [running.ask(receiver.url()) for _ in range(10)]
        assert [running.finished(each)["status"] for each in asked] == ["COMPLETED"] * 10
        assert 1 <= running.log.count("too many are open") < 100
    # There is room again.
    live = f"{running.url}/health/live"
    eventually(lambda: running.ready() == 200 and httpx.get(live, verify=PLAIN, trust_env=False).status_code == 200, 60)
    assert running.stop() == 0


def test_the_soft_limit_of_open_files_is_raised(service: Callable[..., Service], command: str) -> None:
    running = service(started=False)
    running.start("sh", "-c", 'ulimit -Hn 1000; ulimit -Sn 100; exec "$0" "$@"', command)
    with contextlib.ExitStack() as stack:
        assert statuses(running, stack, 200) == [200] * 200


def test_what_was_lost_with_the_queue_has_an_end(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    running = service(queue__url="memory://", callback__retry_delay_ms=600_000, callback__deadline_ms=700_000)
    lost = running.ask(receiver.planned(reply(500)))
    eventually(lambda: running.session(lost.request_id)["callback"])
    running.kill()
    running.start()
    found = running.session(lost.request_id)
    assert (found["status"], found["callback"]["last_error"]) == ("FAILED", "lost_with_the_queue")
    assert found["decision"]["status"] == "not_allowed"
    assert running.client.get("/api/v1/dead-letters").json()["items"] == []
    assert running.client.post(f"/api/v1/dead-letters/{lost.request_id}/replay").status_code == 404
    assert running.metrics()["dead_letters"] == 0
    assert len(receiver.calls_to(lost.callback_url)) == 1
    running.restart()
    assert running.session(lost.request_id) == found


def test_a_replay_that_was_lost_with_the_queue_is_a_dead_letter_again(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    running = service(queue__url="memory://", callback__max_attempts=1)
    asked = running.ask(receiver.planned(reply(500), reply(200, how="held"), reply(200)))
    assert running.finished(asked)["status"] == "FAILED"
    replay = f"/api/v1/dead-letters/{asked.request_id}/replay"
    assert running.client.post(replay).status_code == 202
    eventually(lambda: len(receiver.calls_to(asked.callback_url)) == 2)
    running.kill()
    running.start()
    (letter,) = running.client.get("/api/v1/dead-letters").json()["items"]
    assert (letter["request_id"], letter["last_error"]) == (asked.request_id, "lost_with_the_queue")
    assert running.client.post(replay).status_code == 202
    eventually(lambda: running.session(asked.request_id)["status"] == "COMPLETED")


def test_what_waits_in_the_embedded_queue_is_told_and_not_given_up(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    settings = {"callback.retry_delay_ms": 600_000, "callback.deadline_ms": 700_000}
    running = service(**settings)
    waiting = running.ask(receiver.planned(reply(500), reply(200)))
    eventually(lambda: running.session(waiting.request_id)["callback"])
    assert running.stop() == 0
    running.configure(**settings, **{"queue.url": "memory://"})
    running.start()
    told = [json.loads(line) for line in running.log.splitlines() if "embedded queue" in line]
    assert [(line["level"], line["requests"]) for line in told] == [("warning", 1)]
    assert running.session(waiting.request_id)["status"] == "PROCESSING"
    assert running.stop() == 0
    running.configure(**settings)
    running.start()
    assert running.finished(waiting)["status"] == "COMPLETED"


def test_a_client_that_keeps_its_connection_holds_no_shutdown_up(
    service: Callable[..., Service], receiver: Site
) -> None:
    running = service()
    with httpx.Client(base_url=running.url, verify=PLAIN, trust_env=False) as idle:
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
