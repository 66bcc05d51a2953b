"""Two APIs and two workers act as one service."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from outside import PLAIN, Reply, eventually, leaks
from scaling.cluster import PATH
from scaling.engines import ENGINES
from scaling.load import SECRET, Load
from trying import some_of

if TYPE_CHECKING:
    import pytest

    from outside import Site
    from scaling.cluster import Cluster
    from scaling.engines import Engine

# With Redis as the cache, and without. `test_processes.py` has the same check for each engine.
pytestmark = some_of("engine", ENGINES, ["rabbitmq", "redis"], indirect=True)

ORDER = ["QUEUED", "PROCESSING", "COMPLETED"]
UNKNOWN_S = 5.0  # how long an accepted request may be unknown to another API


def test_each_request_is_decided_once(
    cluster: Cluster, engine: Engine, receiver: Site, request: pytest.FixtureRequest
) -> None:
    began = time.time()
    with Load(cluster, receiver, per_second=200) as load:
        load.more(200)
    statuses = load.check()
    assert statuses.keys() == {"allowed", "not_allowed", "invalid"}
    assert not load.refused
    assert not load.broken
    assert load.repeats()[0] == 0

    for process in cluster.processes:
        assert process.health()["status"] == "UP"
    told = [deliveries(worker.get("/metrics").text) for worker in cluster.workers]
    assert all(told), "a worker had no part in it"

    seen = contents(Path(cluster.folder))
    for process in cluster.processes:
        seen[f"{process.name}'s metrics"] = process.get("/metrics").content
    assert len(seen) > 12
    one = next(iter(load.accepted)).encode()
    for name in {engine.name, "postgres", "redis"}:
        files = contents(request.getfixturevalue(f"{name}_server").data, began)
        assert name != engine.name or any(one in content for content in files.values()), "nothing is to be seen here"
        seen |= files
    assert not [name for name, content in seen.items() if leaks(content, SECRET)], "a token or a callback's address"


def contents(folder: Path, since: float = 0) -> dict[str, bytes]:
    """The files of a folder that were written since then, but for those that are gone again meanwhile."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mtime >= since:
                found[str(path)] = path.read_bytes()
    return found


def deliveries(metrics: str) -> float:
    rows = [line for line in metrics.splitlines() if line.startswith("callback_deliveries_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in rows)


def test_a_request_is_followed_from_any_api(cluster: Cluster, receiver: Site) -> None:
    load = Load(cluster, receiver, flaky=0)
    body = load.new_body()
    receiver.plan(body["callback_url"], Reply(how="held"))
    answer = cluster.apis[0].post(body)
    assert answer.status_code == 202
    asked_at = time.monotonic()
    request_id = answer.json()["request_id"]
    states: list[str] = []

    def follow(until: str) -> None:
        def reached() -> bool:
            for api in cluster.apis:
                found = api.get(f"{PATH}/{request_id}")
                assert found.status_code in (200, 404)
                if found.status_code == 404:
                    assert not states, "known, and then not"
                    assert time.monotonic() < asked_at + UNKNOWN_S, "not known for too long"
                else:
                    states.append(found.json()["status"])
            return states[-2:] == [until] * 2

        eventually(reached, 20, lambda: f"{states}\n{cluster.tails()}")

    follow("PROCESSING")
    receiver.release(body["callback_url"])
    follow("COMPLETED")
    assert states == sorted(states, key=ORDER.index)


def test_an_idempotency_key_holds_for_all_apis(cluster: Cluster, receiver: Site) -> None:
    load = Load(cluster, receiver, flaky=0)
    body, key = load.new_body(), uuid.uuid4().hex

    def ask(number: int) -> httpx.Response:
        api = cluster.apis[number % 2]
        return httpx.post(
            api.url + PATH, json=body, headers={"idempotency-key": key}, verify=PLAIN, trust_env=False, timeout=20
        )

    with ThreadPoolExecutor(20) as at_once:
        answers = list(at_once.map(ask, range(20)))
    assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers]
    (request_id,) = {answer.json()["request_id"] for answer in answers}
    eventually(lambda: load.told().get(request_id), 20, cluster.tails)
    other = cluster.apis[1].post(load.new_body(), idempotency_key=key)
    assert other.status_code == 422
    assert json.loads(other.text)["status"] == "idempotency_conflict"
    eventually(lambda: cluster.status(request_id) == "COMPLETED", 20, cluster.tails)
    assert len(load.told()[request_id]) == 1
    assert [row["request_id"] for row in cluster.decisions()].count(request_id) == 1
