"""What is computed from two readings of a service."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargegate.observe import Metrics
from chargegate.operations.troubles import Problem
from chargegate.top.figures import figures_of
from chargegate.top.reading import Reading, parsed

UP: dict[str, Any] = {"status": "UP", "components": {}}


def reading(metrics: Metrics, clock: float) -> Reading:
    return Reading(1_769_860_800_000, clock, UP, parsed(metrics.text().decode()))


@given(st.lists(st.floats(0.001, 500), min_size=1, max_size=200))
def test_percentiles_lie_in_the_right_buckets(seconds: list[float]) -> None:
    metrics = Metrics()
    for value in seconds:
        metrics.end_to_end.observe(value)
    found = figures_of("http://a", None, reading(metrics, 10)).end_to_end_ms
    assert found is not None
    assert (found.count, found.since_start) == (len(seconds), True)
    bounds = (0, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
    for got_ms, share in ((found.p50, 0.5), (found.p95, 0.95), (found.p99, 0.99)):
        exact = sorted(seconds)[max(0, -int(-share * len(seconds) // 1) - 1)]
        upper = next(bound for bound in bounds if exact <= bound)
        lower = bounds[bounds.index(upper) - 1]
        assert lower * 1000 - 1 <= got_ms <= upper * 1000 + 1


def test_rates_and_percentiles_are_those_between_two_readings() -> None:
    metrics = Metrics()
    metrics.requests.labels("accepted").inc(5)
    metrics.end_to_end.observe(400)
    before = reading(metrics, 100)
    metrics.requests.labels("accepted").inc(20)
    metrics.end_to_end.observe(0.02)
    found = figures_of("http://a", before, reading(metrics, 110))
    assert found.answered_per_second is not None
    assert found.answered_per_second["accepted"] == 2
    assert found.end_to_end_ms is not None
    assert (found.end_to_end_ms.count, found.end_to_end_ms.since_start) == (1, False)
    assert found.end_to_end_ms.p99 <= 25


def test_past_the_last_bucket_it_is_that_buckets_bound() -> None:
    metrics = Metrics()
    metrics.end_to_end.observe(5000)
    found = figures_of("http://a", None, reading(metrics, 1)).end_to_end_ms
    assert found is not None
    assert found.p50 == 600_000


def test_a_reading_before_a_restart_says_nothing_of_rates() -> None:
    then, now = reading(Metrics(), 1), reading(Metrics(), 2)
    start = next(iter(now.samples["process_start_time_seconds"]))
    now.samples["process_start_time_seconds"][start] += 100
    assert figures_of("http://a", then, now).answered_per_second is None


def said(status: str, metrics: Metrics | None = None, **components: Any) -> Reading:
    """A reading of a process whose overview is not to be read."""
    health = {"status": status, "components": components}
    return Reading(1, 1.0, health, parsed((metrics or Metrics()).text().decode()), unread="it wants an access key")


@pytest.mark.parametrize(
    ("name", "status", "details", "says"),
    [
        ("queue", "DOWN", {"waiting": 10, "max_size": 10}, "The queue is full (10 of 10): requests are refused."),
        ("queue", "DOWN", {"error": "no disk"}, "The queue is down: no disk."),
        (
            "queue",
            "DEGRADED",
            {"waiting": 1, "max_size": 10, "stuck": 2},
            "The queue is degraded: 2 requests could",
        ),
        (
            "authorization",
            "DEGRADED",
            {"backend": "http", "circuit": "open"},
            "The authorizer is degraded: its",
        ),
        ("authorization", "DEGRADED", {"unanswered_ms": 4200}, "The authorizer has not answered a request for 4 s."),
        ("callbacks", "DEGRADED", {"open_circuits": 1, "parked": 7}, "Callbacks are degraded: 1 destination cannot"),
        ("callbacks", "DEGRADED", {"open_circuits": 0, "waiting_for_connection": 3}, "Callbacks are degraded: 3 callb"),
        ("callbacks", "DEGRADED", {"error": "too many open files"}, "Callbacks are degraded: too many open files."),
        ("clock", "DEGRADED", {"ahead_ms": 9000}, "The clock is degraded: it is 9000 ms ahead of the server's."),
        ("audit", "DEGRADED", {"csv": "on", "chain": "broken"}, "The chain of the audit is broken"),
        ("anything", "DOWN", {}, "Anything is down."),
        ("anything", "DOWN", "no object", "Anything is down."),
    ],
)
def test_without_an_overview_the_sentence_is_of_what_one_process_says(
    name: str, status: str, details: Any, says: str
) -> None:
    found = figures_of(
        "http://a", None, said(status, fine={"status": "UP"}, **{name: {"status": status, "details": details}})
    )
    assert found.sentence.startswith(says)
    assert "Whether others run and work is not known" in found.not_known


def test_without_an_overview_the_metrics_tell_what_is_wrong_too() -> None:
    metrics = Metrics()
    metrics.requests.labels("accepted").inc(50)
    metrics.decisions.labels("allowed").inc(50)
    metrics.dead_letters.set(2)
    metrics.audit_refused.labels("influx").inc(4)
    before = said("UP", metrics, queue={"status": "UP"})
    metrics.requests.labels("accepted").inc(10)
    metrics.requests.labels("unavailable").inc(10)
    metrics.decisions.labels("unknown").inc(10)
    metrics.dead_letters.set(5)
    metrics.audit_refused.labels("influx").inc()
    metrics.anomalies.labels("STATION_HIGH_ERROR_RATE", "CRITICAL").set(1)
    metrics.queue_depth.set(6)
    metrics.queue_max_size.set(10)
    metrics.queue_oldest_age.set(61)
    found = figures_of("http://a", before, said("UP", metrics, queue={"status": "UP"}))
    assert [(one.severity, one.text) for one in found.problems] == [
        ("critical", "6 requests wait for a worker, the oldest for 61 s."),
        ("critical", "10 of the last 20 requests were refused with 503."),
        ("critical", "10 of the last 10 decisions were unknown."),
        ("critical", "1 anomaly goes on, 1 of them critical."),
        ("warning", "The queue is filling: 6 of 10 places."),
        ("warning", "3 callbacks were given up in the last half minute."),
        ("warning", "The audit sink influx lacks a decision of the last hour: its server refuses them for good."),
    ]
    assert found.sentence.startswith("6 requests wait for a worker, the oldest for 61 s (6 more); 5 dead letters wait")


def test_the_overviews_problems_are_told_as_they_are() -> None:
    told = [Problem("critical", "workers", "No worker runs.", "/"), Problem("warning", "disk", "It fills up.", "/")]
    found = figures_of("http://a", None, said("UP", queue={"status": "UP"})._replace(problems=told, unread=""))
    assert (found.problems, found.not_known) == (tuple(told), "")
    assert found.sentence == "No worker runs (1 more)."
    well = figures_of("http://a", None, said("UP", queue={"status": "UP"})._replace(problems=[], unread=""))
    assert (well.sentence, well.not_known) == ("Nothing is wrong.", "")
