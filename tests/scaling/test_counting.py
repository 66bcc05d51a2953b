"""Counts of decisions, when several workers make decisions, count them, and are killed."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

import asyncpg
import pytest

from outside import eventually
from scaling.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from outside import Site
    from scaling.cluster import Cluster
    from scaling.engines import Engine

ROWS = (
    "SELECT timestamp / 60000 * 60000, status, count(*), sum(processing_time_ms)::bigint"
    " FROM authorization_audit GROUP BY 1, 2"
)
KEPT = "SELECT start, status, decisions, time_ms FROM decision_counts WHERE unit = 60000"


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_each_decision_is_counted_once_whoever_is_killed(
    new_engine: Callable[[str], Engine], clusters: Callable[..., Cluster], receiver: Site, kills: int
) -> None:
    queue = new_engine("postgres").new_queue()

    async def fetch(statement: str) -> list[tuple[object, ...]]:
        connection = await asyncpg.connect(queue)
        try:
            return sorted(tuple(row) for row in await connection.fetch(statement))
        finally:
            await connection.close()

    def same() -> bool:
        return asyncio.run(fetch(ROWS)) == asyncio.run(fetch(KEPT))

    with clusters(queue, queue) as cluster:
        for role in ("api", "worker", "worker", "worker"):
            cluster.add(role)
        cluster.start()
        with Load(cluster, receiver) as load:
            for _ in range(kills):
                load.more(random.randint(20, 60))
                time.sleep(random.uniform(0.2, 1.2))  # a random moment of the second in which counting begins
                random.choice(cluster.workers).kill()
                cluster.start()
            load.more(20)
        load.check()
        eventually(same, 30, "not all decisions were counted, or some more than once")
        decisions = sum(1 for _ in cluster.decisions())
        assert cluster.apis[0].get("/api/v1/statistics").json()["total"] == decisions
