"""What is computed from two readings of a service."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargegate.observe import Metrics
from chargegate.top.figures import figures_of
from chargegate.top.reading import Reading, parsed
from chargegate.top.sentence import sentence_of

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


@pytest.mark.parametrize(
    ("name", "status", "details", "says"),
    [
        ("queue", "DOWN", {"waiting": 10, "max_size": 10}, "The queue is full (10 of 10): requests are refused."),
        ("queue", "DOWN", {"error": "no disk"}, "The queue is down: no disk."),
        ("queue", "DEGRADED", {"waiting": 1, "max_size": 10, "stuck": 2}, "2 requests could not be handled"),
        ("authorization", "DEGRADED", {"backend": "http", "circuit": "open"}, "The authorizer failed too often"),
        ("callbacks", "DEGRADED", {"open_circuits": 1, "parked": 7}, "One receiver of callbacks cannot be reached, 7"),
        ("callbacks", "DEGRADED", {"open_circuits": 0, "waiting_for_connection": 3}, "3 callbacks have waited long"),
        ("callbacks", "DEGRADED", {"error": "too many open files"}, "callbacks is DEGRADED: too many open files."),
        ("clock", "DEGRADED", {"ahead_ms": 9000}, "clock is DEGRADED: ahead_ms 9000."),
        ("anything", "DOWN", {}, "anything is DOWN."),
        ("anything", "DOWN", "no object", "anything is DOWN."),
    ],
)
def test_the_sentence_names_what_is_wrong(name: str, status: str, details: Any, says: str) -> None:
    health = {"status": status, "components": {"fine": {"status": "UP"}, name: {"status": status, "details": details}}}
    assert sentence_of(health, "", 0).startswith(says)


def test_the_worst_comes_first_and_the_others_are_counted() -> None:
    health = {
        "status": "DOWN",
        "components": {"audit": {"status": "DEGRADED", "details": {}}, "database": {"status": "DOWN", "details": {}}},
    }
    assert sentence_of(health, "", 0) == "database is DOWN (1 more: see /health)."
