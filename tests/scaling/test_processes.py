"""Processes that die, join and leave."""

from __future__ import annotations

import random
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from outside import eventually
from scaling.engines import ENGINES, Engine
from scaling.load import Load
from trying import some_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from outside import Site
    from scaling.cluster import Cluster

LEASE_S = 10
WORK_S = 15  # for decisions and callbacks, on a small machine
UNDER_WAY = 200
UNDER_WAY_FOR_LONG = 500


def kill_some(cluster: Cluster, load: Load, rounds: int) -> None:
    """Kill a worker and an API together at random moments, and start them again at once."""
    for _ in range(rounds):
        load.more(random.randint(5, 60))
        victims = random.choice(cluster.workers), random.choice(cluster.apis)
        for victim in victims:
            victim.kill()
        cluster.start()


def test_nothing_is_lost_when_processes_are_killed(cluster: Cluster, receiver: Site) -> None:
    with Load(cluster, receiver) as load:
        kill_some(cluster, load, 3)
        load.more(20)
    load.check()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_nothing_is_lost_when_processes_are_killed_for_long(cluster: Cluster, receiver: Site) -> None:
    with Load(cluster, receiver) as load:
        kill_some(cluster, load, 50)
        load.more(20)
    load.check(limit_s=120)


def takeover(engine: Engine, clusters: Callable[..., Cluster], receiver: Site, authorizer: Site, under_way: int) -> str:
    """Kill a worker that holds so many requests. What happened is told in a line."""
    victims, others = (f"/held/{uuid.uuid4().hex}" for _ in range(2))
    with clusters(engine.new_queue(), queue__lease_ms=LEASE_S * 1000) as cluster:
        cluster.add("api")
        # The authorizers of both workers do not answer, and the other worker takes few requests at once.
        patient = {"authorization__timeout_ms": 120_000}
        cluster.add("worker", queue__consumer_concurrency=100, authorization__url=authorizer.url(others), **patient)
        victim = cluster.add(
            "worker",
            queue__consumer_concurrency=under_way + 100,
            authorization__url=authorizer.url(victims),
            **patient,
        )
        cluster.start()
        with Load(cluster, receiver, per_second=400, flaky=0) as load:
            eventually(
                lambda: len(authorizer.calls_to(victims)) >= under_way,
                60,
                lambda: f"{len(authorizer.calls_to(victims))} of {len(load.accepted)} held\n{cluster.tails()}",
            )
        cluster.workers.remove(victim)
        left = [request_id for request_id in load.accepted if not load.delivered(request_id)]
        killed_at = time.monotonic()
        victim.kill()
        authorizer.release(others)
        load.await_delivered(left, LEASE_S + WORK_S)
        taken = time.monotonic() - killed_at
        authorizer.release(victims)
        load.check()
    return f"{engine.name}: {len(left)} requests, all finished {taken:.1f} s after the kill"


@some_of(
    "engine", ENGINES, ["kafka", "redis"], indirect=True
)  # one whose partitions move, one whose messages have leases
def test_others_finish_what_a_killed_worker_held(
    engine: Engine, clusters: Callable[..., Cluster], receiver: Site, authorizer: Site
) -> None:
    print(takeover(engine, clusters, receiver, authorizer, UNDER_WAY))


@pytest.mark.soak
def test_others_finish_the_many_that_a_killed_worker_held(
    engine: Engine, clusters: Callable[..., Cluster], receiver: Site, authorizer: Site
) -> None:
    print(takeover(engine, clusters, receiver, authorizer, UNDER_WAY_FOR_LONG))


def come_and_go(cluster: Cluster, load: Load, for_s: float, callbacks: int) -> int:
    """Let a worker join and another leave, repeatedly. Returns how often."""
    end = time.monotonic() + for_s
    changes = 0
    while time.monotonic() < end:
        enough = len(load.told()) + callbacks
        cluster.add("worker").start()
        eventually(lambda enough=enough: len(load.told()) >= enough, 30, cluster.tails)
        cluster.leave(cluster.workers[0])
        changes += 2
    return changes


def rebalance(engine: Engine, cluster: Cluster, receiver: Site, for_s: float) -> None:
    with Load(cluster, receiver, per_second=100) as load:
        load.more(100)
        changes = come_and_go(cluster, load, for_s, 100)
    load.check()
    repeats, first = load.repeats()
    print(f"{engine.name}: {changes} changes of {first} callbacks' worth, {repeats} repeats ({repeats / first:.2%})")
    assert repeats < first * 0.05
    assert not load.refused


@pytest.fixture
def changing_cluster(engine: Engine, clusters: Callable[..., Cluster]) -> Cluster:
    with clusters(engine.new_queue()) as cluster:
        for role in ("api", "worker", "worker"):
            cluster.add(role)
        cluster.start()
        yield cluster


@pytest.mark.parametrize("engine", ["kafka"], indirect=True)
def test_workers_come_and_go(engine: Engine, changing_cluster: Cluster, receiver: Site) -> None:
    rebalance(engine, changing_cluster, receiver, 6)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_workers_come_and_go_for_a_minute(engine: Engine, changing_cluster: Cluster, receiver: Site) -> None:
    rebalance(engine, changing_cluster, receiver, 60)
