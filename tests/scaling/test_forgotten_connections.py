"""Connections that a firewall forgot: what they swallow costs no request after a silence, and stops no worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from outside import PLAIN, eventually
from scaling.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from outside import Site
    from scaling.cluster import Cluster
    from scaling.engines import Engine

pytestmark = pytest.mark.servers

ROUNDS = 2


def test_the_first_request_after_a_silence_is_accepted(
    clusters: Callable[..., Cluster], new_engine: Callable[[str], Engine], receiver: Site
) -> None:
    """PostgreSQL has the same test with its own. Kafka's and RabbitMQ's connections are never silent for long, and the
    dashboard asks the queue every other second."""
    engine, quiet = new_engine("redis"), {"dashboard.enabled": False}
    with engine.server.proxied() as proxy, clusters(engine.new_queue(proxy.url), **quiet) as cluster:
        api = cluster.add("api")
        cluster.start()
        load = Load(cluster, receiver, per_second=50, flaky=0)
        with load:
            load.more(20)
        with httpx.Client(verify=PLAIN, trust_env=False, timeout=15) as client:
            for _ in range(ROUNDS):
                eventually(lambda: proxy.silent_s() > 2, 30, "the connections are never silent")
                proxy.forget()
                assert load.ask(client, api.url), f"{load.refused}\n{cluster.tails()}"
        cluster.add("worker")
        cluster.start()
        load.check()


@pytest.mark.parametrize("queue", ["redis", "rabbitmq", "postgres"])
def test_a_worker_goes_on(
    clusters: Callable[..., Cluster], new_engine: Callable[[str], Engine], receiver: Site, queue: str
) -> None:
    """What was under way may be refused; the connections are made again."""
    engine = new_engine(queue)
    with engine.server.proxied() as proxy, clusters(engine.new_queue(proxy.url)) as cluster:
        cluster.add("api")
        worker = cluster.add("worker")
        cluster.start()
        with Load(cluster, receiver, per_second=50, flaky=0) as load:
            load.more(20)
            for _ in range(ROUNDS):
                proxy.forget()
                load.more(20)
        load.check()
        eventually(lambda: worker.health()["status"] == "UP", 60, worker.tail)
