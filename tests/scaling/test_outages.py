"""The queue's server or the network to it fails while requests come in. The service recovers by itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from outside import eventually
from scaling.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from outside import Site
    from scaling.cluster import Cluster
    from scaling.engines import Engine
    from servers.proxy import Proxy

ANSWER_S = 2.0
NOISE_S = 5.0  # how much a busy machine may add
NOTICED_S = 5.0
HEALED_S = 60.0
DELAY_MS = 40  # in each direction, as between continents


def outage(cluster: Cluster, load: Load, cause: Callable[[], None], end: Callable[[], None]) -> float:
    """Verify the service during an outage and after it. Returns the time from which it worked again."""
    load.more(20)
    cause()
    gone_at = time.monotonic()
    eventually(
        lambda: set(cluster.ready().values()) == {503},
        NOTICED_S,
        lambda: f"ready without a queue: {cluster.ready()}\n{cluster.tails()}",
    )
    eventually(lambda: len(load.refused_since(gone_at)) >= 8, 30, cluster.tails)
    for _ in range(3):
        assert set(cluster.ready().values()) == {503}, f"ready without a queue\n{cluster.tails()}"
    assert not load.accepted_since(gone_at), "a false 202"
    refusals = {(refused.status, refused.code) for refused in load.refused_since(gone_at)}
    assert refusals == {(503, "service_unavailable")}

    end()
    back_at = time.monotonic()
    apis = {api.url for api in cluster.apis}

    def healed() -> bool:
        served = {api for request_id, api in load.accepted_since(back_at).items() if load.delivered(request_id)}
        return served == apis and cluster.all_ready()

    eventually(healed, HEALED_S, lambda: f"not healed: {cluster.ready()}\n{cluster.tails()}")
    print(f"healed after {time.monotonic() - back_at:.1f} s")
    return back_at


def prompt(load: Load) -> None:
    assert load.slowest_s <= ANSWER_S + NOISE_S, f"an answer took {load.slowest_s:.1f} s"
    assert not load.broken, "a request got no answer"


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_queues_server_comes_back(cluster: Cluster, engine: Engine, receiver: Site, how: str) -> None:
    with Load(cluster, receiver) as load:
        outage(cluster, load, getattr(engine.server, how), engine.server.start)
    load.check()
    prompt(load)


def test_the_queues_server_comes_back_empty(cluster: Cluster, engine: Engine, receiver: Site) -> None:
    def start() -> None:
        engine.server.start()
        engine.restore(cluster.queue_url)

    with Load(cluster, receiver) as load:
        back_at = outage(cluster, load, engine.server.wipe, start)
        load.more(50)
    load.check(load.accepted_since(back_at))
    prompt(load)


@pytest.mark.parametrize("how", ["drop", pytest.param("reset", marks=pytest.mark.soak)])
def test_the_way_to_the_queue_is_cut(distant_cluster: Cluster, proxy: Proxy, receiver: Site, how: str) -> None:
    with Load(distant_cluster, receiver) as load:
        outage(distant_cluster, load, getattr(proxy, how), proxy.heal)
    load.check()
    prompt(load)


@pytest.mark.soak
def test_the_way_to_the_queue_is_long(distant_cluster: Cluster, proxy: Proxy, receiver: Site) -> None:
    with Load(distant_cluster, receiver) as load:
        load.more(20)
        proxy.delay(DELAY_MS)
        load.more(40)
        proxy.heal()
        load.more(20)
    load.check()
    assert not load.broken
