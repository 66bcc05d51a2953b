"""Any API lists the requests that are under way, whatever carries the queue."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from outside import Site, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaling.cluster import Cluster, Process
    from scaling.engines import Engine


def listed(api: Process) -> dict[str, tuple[str, str]]:
    answer = api.get("/api/v1/requests")
    assert answer.status_code == 200, answer.text
    return {item["request_id"]: (item["station_id"], item["status"]) for item in answer.json()["items"]}


def test_requests_without_a_worker_are_listed_until_one_comes(
    engine: Engine, clusters: Callable[..., Cluster], receiver: Site
) -> None:
    with clusters(engine.new_queue()) as cluster:
        here, there = cluster.add("api"), cluster.add("api")
        cluster.start()
        asked = {}
        for _ in range(3):
            station = str(uuid.uuid4())
            body = {"station_id": station, "driver_token": f"token-{uuid.uuid4().hex}", "callback_url": receiver.url()}
            asked[here.post(body).json()["request_id"]] = (station, "QUEUED")
        for api in (here, there):
            eventually(lambda api=api: listed(api) == asked, 60, cluster.tails)
        cluster.add("worker")
        cluster.start()
        eventually(lambda: listed(there) == {}, 60, cluster.tails)
