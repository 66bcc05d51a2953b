"""``chargegate trace``: one request's story, told beside the running service."""

from __future__ import annotations

import json
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from outside import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site


@pytest.fixture(scope="module")
def told(shared_service: Callable[..., Service], authorizer: Site) -> Service:
    return shared_service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        callback__retry_delay_ms=20,
        queue__consumer_concurrency=1,
    )


@pytest.fixture
def trace(told: Service, command: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, "trace", *arguments], cwd=told.folder, capture_output=True, text=True, check=False, timeout=60
        )

    return run


def story(trace: Callable[..., subprocess.CompletedProcess[str]], *arguments: str) -> dict[str, Any]:
    done = trace(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_three_attempts_and_the_end(
    told: Service,
    site: Callable[..., Site],
    reply: type[Reply],
    trace: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    given = f"00-{uuid.uuid4().hex}-{'1' * 16}-01"
    asked = told.ask(site().planned(reply(500), reply(503), reply(200)), headers={"traceparent": given})
    told.finished(asked)
    found = story(trace, asked.request_id.upper())
    assert (found["request_id"], found["station_id"], found["status"]) == (
        asked.request_id,
        asked.station_id,
        "COMPLETED",
    )
    steps = found["steps"]
    whats = [step["what"] for step in steps if step["what"] != "audited"]
    assert whats == ["accepted", "taken", "decided", "attempt", "attempt", "attempt", "delivered"]
    assert {"source": "audit", "what": "audited"}.items() <= next(s for s in steps if s["what"] == "audited").items()
    attempts = [step for step in steps if step["what"] == "attempt"]
    assert [step["details"].get("status_code") for step in attempts] == [500, 503, 200]
    assert [step["details"].get("error") for step in attempts] == ["http_500", "http_503", None]
    assert all(step["took_ms"] >= 0 for step in attempts)
    assert [step["after_ms"] for step in steps] == sorted(step["after_ms"] for step in steps)
    assert all(step["at"].endswith("Z") for step in steps)
    decided = next(step for step in steps if step["what"] == "decided")
    assert decided["details"] == {"status": "allowed"}
    with_log = story(trace, asked.request_id, "--log", "service.log")
    assert with_log["trace_id"] == given.split("-")[1]
    said = {step["what"] for step in with_log["steps"] if step["source"] == "log"}
    assert said >= {"request accepted", "decided", "callback delivered"}
    plain = trace(asked.request_id)
    assert plain.returncode == 0
    assert plain.stdout.splitlines()[0] == "at\tafter_ms\twhat\ttook_ms\tsource\tdetails"
    assert asked.driver_token not in plain.stdout + json.dumps(with_log)
    assert asked.callback_url not in plain.stdout + json.dumps(with_log)


def test_a_replayed_dead_letter(
    told: Service,
    site: Callable[..., Site],
    reply: type[Reply],
    trace: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    receiver = site()
    asked = told.ask(receiver.planned(reply(410), reply(200)))
    assert told.finished(asked)["status"] == "FAILED"
    assert story(trace, asked.request_id)["steps"][-1]["what"] == "given up"
    answer = told.client.post(f"/api/v1/dead-letters/{asked.request_id}/replay", json={})
    assert answer.status_code in (200, 202), answer.text
    eventually(lambda: told.session(asked.request_id)["status"] == "COMPLETED", 30)
    whats = [step["what"] for step in story(trace, asked.request_id)["steps"]]
    assert whats.index("replayed") < len(whats) - 1
    assert whats[-1] == "delivered"
    assert whats.count("attempt") == 2


def test_a_dead_letter_that_was_replayed_again_and_again(
    told: Service,
    site: Callable[..., Site],
    reply: type[Reply],
    trace: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    asked = told.ask(site().planned(*[reply(500)] * 9, reply(200)))
    told.finished(asked)
    for _ in range(3):
        ended = told.session(asked.request_id)["processed_at"]
        assert told.client.post(f"/api/v1/dead-letters/{asked.request_id}/replay", json={}).status_code == 202

        def again(ended: str = ended) -> bool:
            return told.session(asked.request_id)["processed_at"] not in (None, ended)

        eventually(again, 40)
    steps = story(trace, asked.request_id)["steps"]
    whats = [step["what"] for step in steps if step["what"] != "audited"]
    round_of_three = ["attempt", "attempt", "attempt", "given up", "replayed"]
    assert whats == ["accepted", "taken", "decided", *round_of_three * 3, "attempt", "delivered"]
    replays = [step["at"] for step in steps if step["what"] == "replayed"]
    assert replays == told.session(asked.request_id)["callback"]["replays"]
    assert [step["after_ms"] for step in steps] == sorted(step["after_ms"] for step in steps)


def test_a_pipe_is_told_what_a_terminal_is(
    told: Service,
    authorizer: Site,
    answer: Callable[..., Reply],
    receiver: Site,
    trace: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    token = f"held-{uuid.uuid4().hex}"
    authorizer.plan(token, answer("allowed", how="held"))
    given = f"00-{uuid.uuid4().hex}-{'1' * 16}-01"
    holding = told.ask(receiver.url(), driver_token=token, headers={"traceparent": given})
    eventually(lambda: authorizer.calls_to(token), 30)
    waiting = told.ask(receiver.url())

    def facts(request_id: str, *arguments: str) -> dict[str, str]:
        lines = trace(request_id, *arguments).stdout.splitlines()
        return dict(line.split("\t") for line in lines[lines.index("") + 1 :])

    in_queue = "it is in the queue, and has no decision yet"  # only the serving process knows whether a worker has it
    assert facts(holding.request_id)["stands"] in (in_queue, "a worker has it, and asks the authorizer")
    told_of = facts(waiting.request_id)
    assert (told_of["request_id"], told_of["station_id"]) == (waiting.request_id, waiting.station_id)
    assert (told_of["status"], told_of["stands"]) == ("QUEUED", in_queue)
    authorizer.release(token)
    for asked in (holding, waiting):
        told.finished(asked)
    ended = facts(holding.request_id, "--log", "service.log")
    assert (ended["status"], ended["stands"]) == ("COMPLETED", "its callback was delivered")
    assert (ended["client"], ended["trace_id"]) == ("anonymous", given.split("-")[1])


def test_a_request_that_waits(
    told: Service,
    authorizer: Site,
    answer: Callable[..., Reply],
    receiver: Site,
    trace: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    token = f"held-{uuid.uuid4().hex}"
    authorizer.plan(token, answer("allowed", how="held"))
    holding = told.ask(receiver.url(), driver_token=token)
    waiting = told.ask(receiver.url())
    for asked, statuses in ((holding, {"QUEUED", "PROCESSING"}), (waiting, {"QUEUED", "PROCESSING"})):
        found = story(trace, asked.request_id)
        assert found["status"] in statuses
        assert [step["what"] for step in found["steps"]] == ["accepted"]
    authorizer.release(token)
    for asked in (holding, waiting):
        told.finished(asked)


def test_an_unknown_request_and_a_wrong_id(trace: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    unknown = trace(str(uuid.uuid4()))
    assert unknown.returncode == 1
    assert unknown.stdout == ""
    assert len(unknown.stderr.splitlines()) == 1
    for wrong in ("not-an-id", "x" * 36):
        assert trace(wrong).returncode == 2
    assert trace(str(uuid.uuid4()), "--log", "no-such-file").returncode == 2
