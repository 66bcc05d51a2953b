"""The overview of one API tells of all processes of the service."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from outside import Site, eventually
from scaling.engines import ENGINES
from trying import some_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaling.cluster import Cluster, Process
    from scaling.engines import Engine


def overview(api: Process) -> dict[str, Any]:
    answer = api.get("/api/v1/overview")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def sentences(api: Process) -> str:
    return " ".join(problem["text"] for problem in overview(api)["problems"])


def ask(api: Process, receiver: Site) -> None:
    body = {
        "station_id": str(uuid.uuid4()),
        "driver_token": f"token-{uuid.uuid4().hex}",
        "callback_url": receiver.url(),
    }
    assert api.post(body).status_code == 202


@some_of("engine", ENGINES, ["postgres", "redis"], indirect=True)  # what they say goes through the database
def test_each_api_knows_what_the_others_do(cluster: Cluster, receiver: Site) -> None:
    here, there = cluster.apis[:2]
    expected = ["api"] * (len(cluster.apis) - 1) + ["worker"] * len(cluster.workers)

    def complete() -> dict[str, Any] | None:
        seen = overview(there)
        roles = sorted(each["role"] for each in seen["processes"] if each["silent_ms"] < 2500)
        known = {"authorization", "callbacks", "audit", "queue", "database"} <= seen["components"].keys()
        return seen if roles == expected and known else None

    before = eventually(complete, 60, cluster.tails)
    assert {circuit["name"] for circuit in before["circuits"]} >= {"callbacks"}
    assert {lag["sink"] for lag in before["sinks"]} == {"csv"}
    for _ in range(5):
        ask(here, receiver)
    eventually(lambda: overview(there)["now"]["accepted"] >= before["now"]["accepted"] + 5, 60, cluster.tails)
    eventually(lambda: overview(here)["now"]["p95_ms"] is not None, 60, cluster.tails)


def test_workers_that_are_gone(
    new_engine: Callable[[str], Engine], clusters: Callable[..., Cluster], receiver: Site
) -> None:
    queue = new_engine("postgres").new_queue()
    with clusters(queue, queue, queue__lease_ms=2000) as cluster:
        api = cluster.add("api")
        cluster.start()
        eventually(lambda: "No worker runs. Requests wait" in sentences(api), 60, cluster.tails)
        first, second = cluster.add("worker"), cluster.add("worker")
        cluster.start()
        eventually(lambda: sentences(api) == "", 60, cluster.tails)
        first.kill()
        eventually(lambda: "A worker has not been heard from for" in sentences(api), 60, cluster.tails)
        ask(api, receiver)  # it is decided by the other one
        first.start()
        eventually(lambda: sentences(api) == "", 60, cluster.tails)
        cluster.leave(second)  # it says goodbye, so that nothing is wrong
        eventually(lambda: [each["role"] for each in overview(api)["processes"]] == ["worker"], 60, cluster.tails)
        assert sentences(api) == ""
        first.kill()
        eventually(lambda: "No worker runs: the last one was heard from" in sentences(api), 60, cluster.tails)
