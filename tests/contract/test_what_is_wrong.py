"""What is wrong is said everywhere alike: by the overview, `/health`, the circuits, the metrics, and in a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from certificates import Authority, Files

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

CIRCUIT = 'circuit_breaker_state{name="authorization"}'
STATES = {0: "closed", 1: "half_open", 2: "open"}
LIMIT_S = 60


@pytest.fixture
def top(command: str) -> Callable[..., dict[str, Any]]:
    """What `chargegate top` prints once."""

    def run(url: str, *options: str, **environ: str) -> dict[str, Any]:
        done = subprocess.run(
            [command, "top", "--url", url, "--once", "--json", "--every", "0.3", *options],
            env=os.environ | environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert done.stderr == ""
        return dict(json.loads(done.stdout))

    return run


def overview(gate: Service) -> dict[str, Any]:
    return dict(gate.client.get("/api/v1/overview").json())


def texts(gate: Service) -> list[str]:
    return [problem["text"] for problem in overview(gate)["problems"]]


def said_by(gate: Service) -> set[str]:
    """The state of the authorizer's circuit, from everybody who tells it."""
    seen = overview(gate)
    health = gate.client.get("/health").json()["components"]["authorization"]
    [listed] = [circuit["state"] for circuit in seen["circuits"] if circuit["name"] == "authorization"]
    told = {seen["components"]["authorization"]["details"].get("circuit", "closed"), listed}
    return told | {health["details"].get("circuit", "closed"), STATES[int(gate.metrics()[CIRCUIT])]}


@pytest.mark.parametrize("fault", [{"status": 500}, {"how": "held"}, {"status": 200, "body": b"no verdict"}])
def test_an_open_circuit_is_told_alike_until_a_request_has_shown_that_it_works(
    service: Callable[..., Service],
    authorizer: Site,
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
    top: Callable[..., dict[str, Any]],
    fault: dict[str, Any],
) -> None:
    gate = service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        authorization__max_retries=0,
        authorization__timeout_ms=1500,
        authorization__cache_ttl_ms=0,
        authorization__circuit_breaker__failure_threshold=3,
        authorization__circuit_breaker__recovery_timeout_ms=6000,
    )
    for _ in range(3):
        driver = f"failing-{uuid.uuid4().hex}"
        authorizer.plan(driver, reply(**fault))
        gate.finished(gate.ask(receiver.url(), driver_token=driver))
    seen = eventually(lambda: said_by(gate) == {"open"} and overview(gate), 5, lambda: json.dumps(overview(gate)))
    assert seen["problems"][0]["severity"] == "critical"
    assert "authorizer is degraded: its circuit is open" in " ".join(texts(gate))
    # Nobody asks any more. It is neither open for ever nor well.
    eventually(lambda: said_by(gate) == {"half_open"}, LIMIT_S, lambda: json.dumps(overview(gate)))
    health = gate.client.get("/health").json()
    assert (health["status"], health["components"]["authorization"]["status"]) == ("DEGRADED", "DEGRADED")
    assert gate.metrics()['circuit_breaker_transitions_total{name="authorization",to="half_open"}'] == 1

    def only_the_trial() -> bool:
        return len(texts(gate)) == 1

    eventually(only_the_trial, LIMIT_S, lambda: json.dumps(overview(gate)["problems"]))
    [problem] = overview(gate)["problems"]
    assert "has not been proven well since 20" in problem["text"]
    assert "the next request is a trial" in problem["text"]
    shown = top(gate.url)
    assert [one["text"] for one in shown["problems"]] == [problem["text"]]
    assert (shown["circuits"]["authorization"], shown["status"]) == ("half_open", "DEGRADED")
    gate.finished(gate.ask(receiver.url()))  # the trial
    eventually(lambda: said_by(gate) == {"closed"}, LIMIT_S, lambda: json.dumps(overview(gate)))
    eventually(lambda: texts(gate) == [], LIMIT_S, lambda: json.dumps(overview(gate)))
    assert gate.client.get("/health").json()["status"] == "UP"


def test_an_authorizer_that_owes_an_answer_is_not_said_to_be_well(
    service: Callable[..., Service],
    authorizer: Site,
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
    top: Callable[..., dict[str, Any]],
) -> None:
    gate = service(authorization__backend="http", authorization__url=authorizer.url("/decide"))
    body = gate.body(receiver.url())
    authorizer.plan(body["driver_token"], reply(how="held"))
    assert gate.post(body).status_code == 202

    def agree() -> bool:
        seen = overview(gate)
        here = gate.client.get("/health").json()["components"]["authorization"]["status"]
        said = " ".join(problem["text"] for problem in seen["problems"])
        return "authorizer has not answered" in said and {here, seen["components"]["authorization"]["status"]} == {
            "DEGRADED"
        }

    eventually(agree, 20, lambda: json.dumps(overview(gate)))
    assert "The authorizer has not answered a request for" in top(gate.url)["sentence"]
    authorizer.release(body["driver_token"])
    eventually(lambda: gate.client.get("/health").json()["status"] == "UP", LIMIT_S)


def test_without_a_circuit_failures_in_a_row_are_told_until_a_request_works(
    service: Callable[..., Service],
    authorizer: Site,
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    gate = service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        authorization__max_retries=0,
        authorization__cache_ttl_ms=0,
        authorization__circuit_breaker__enabled=False,
    )
    for _ in range(6):
        driver = f"failing-{uuid.uuid4().hex}"
        authorizer.plan(driver, reply(503))
        gate.finished(gate.ask(receiver.url(), driver_token=driver))
    eventually(lambda: "the last 6 requests to it failed" in " ".join(texts(gate)), LIMIT_S)
    assert gate.client.get("/health").json()["components"]["authorization"]["status"] == "DEGRADED"
    gate.finished(gate.ask(receiver.url()))
    eventually(lambda: gate.client.get("/health").json()["status"] == "UP", LIMIT_S)
    eventually(lambda: texts(gate) == [], LIMIT_S, lambda: json.dumps(overview(gate)["problems"]))


def test_a_broken_chain_is_told_until_a_verification_finds_it_intact(
    service: Callable[..., Service],
    receiver: Site,
    command: str,
    eventually: Callable[..., Any],
    top: Callable[..., dict[str, Any]],
) -> None:
    gate = service(audit__chain=True)

    def verify() -> int:
        return subprocess.run(
            [command, "audit", "verify"], cwd=gate.folder, capture_output=True, check=False
        ).returncode

    for _ in range(2):
        gate.finished(gate.ask(receiver.url()))
    assert (
        subprocess.run([command, "audit", "rotate"], cwd=gate.folder, capture_output=True, check=False).returncode == 0
    )
    [file] = gate.folder.glob("authorization_audit.log.*")
    text = file.read_text()
    file.write_text(text.replace(",not_allowed,", ",allowed,"))
    assert verify() == 1
    eventually(lambda: "chain of the audit is broken" in " ".join(texts(gate)), 20)
    [problem] = overview(gate)["problems"]
    assert problem["severity"] == "critical"
    audit = gate.client.get("/health").json()["components"]["audit"]
    assert (audit["status"], audit["details"]["chain"]) == ("DEGRADED", "broken")
    assert top(gate.url)["sentence"] == problem["text"]
    file.write_text(text)
    assert verify() == 0
    eventually(lambda: texts(gate) == [], 20)
    assert gate.client.get("/health").json()["status"] == "UP"


def test_a_certificate_near_its_end_is_told(
    service: Callable[..., Service], eventually: Callable[..., Any], tmp_path: Path, top: Callable[..., dict[str, Any]]
) -> None:
    authority = Authority(tmp_path, "authority")
    soon, later = authority.sign("soon", days=5), authority.sign("later", days=50)
    gate = service(
        started=False, server__tls_certificate=str(tmp_path / "own.pem"), server__tls_key=str(tmp_path / "own.key")
    )

    def show(files: Files) -> None:
        for path, kind in zip(files, ("pem", "key"), strict=True):
            (tmp_path / f"own.{kind}").write_bytes(Path(path).read_bytes())

    show(soon)
    process = gate.spawn()
    url = f"https://127.0.0.1:{gate.port}"

    def told() -> list[str] | None:
        try:
            answer = httpx.get(f"{url}/api/v1/overview", verify=authority.context(), trust_env=False)
        except httpx.TransportError:  # it is not up yet
            return None
        return [problem["text"] for problem in answer.json()["problems"]]

    eventually(lambda: told() == ["The TLS certificate expires in 4 days."], LIMIT_S)
    assert top(url, "--ca-file", authority.file)["sentence"] == "The TLS certificate expires in 4 days."
    show(later)
    process.send_signal(signal.SIGHUP)
    eventually(lambda: told() == [], LIMIT_S)


def test_requests_that_are_refused_are_told_while_all_components_are_up(
    service: Callable[..., Service],
    command: str,
    authorizer: Site,
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
    top: Callable[..., dict[str, Any]],
) -> None:
    made = [
        subprocess.run(
            [command, "keys", "create", "--name", name, "--role", role, "--json"],
            capture_output=True, text=True, check=True,
        ).stdout
        for name, role in (("greedy", "client"), ("other", "client"), ("operator", "admin"))
    ]  # fmt: skip
    (key, line), (_, other_line), (admin, admin_line) = (
        (json.loads(text)["key"], json.loads(text)["hash"]) for text in made
    )
    gate = service(
        security__api_keys=[line, other_line, admin_line],
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        queue__consumer_concurrency=1,
        queue__max_size=6,
        queue__max_share_per_client=0.3,
    )
    body = gate.body(receiver.url())
    authorizer.plan(body["driver_token"], reply(how="held"))
    keyed = {"authorization": f"Bearer {key}"}
    assert gate.post(body, **keyed).status_code == 202
    eventually(lambda: gate.metrics()["requests_in_flight"] >= 1, 30)

    def refused() -> bool:
        return gate.post(gate.body(receiver.url()), **keyed).status_code == 503

    def is_told() -> bool:
        assert eventually(refused)
        said = gate.client.get("/api/v1/overview", headers={"authorization": f"Bearer {admin}"}).json()
        return "refused with 503" in " ".join(problem["text"] for problem in said["problems"])

    eventually(is_told, 30)
    shown = top(gate.url, CHARGEGATE_KEY=admin)
    assert shown["not_known"] == ""
    assert "refused with 503" in " ".join(problem["text"] for problem in shown["problems"])

    def hangs(told: dict[str, Any]) -> bool:
        return "authorizer has not answered" in " ".join(problem["text"] for problem in told["problems"])

    for environ, why in (({}, "an access key"), ({"CHARGEGATE_KEY": key}, "an administrator's access key")):
        eventually(lambda seen=environ: hangs(top(gate.url, **seen)), 30)
        less = top(gate.url, **environ)
        assert why in less["not_known"]
        assert "Whether others run and work is not known" in less["not_known"]
    authorizer.release(body["driver_token"])
