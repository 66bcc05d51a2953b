from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from chargegate.observe.counting import Counts, Distribution

BOUNDS = (0.001, 0.0025, 0.5, 1, 10, 600)
NAMES = st.sampled_from(["accepted", "retry", 'with "quotes"', "with \\ and \n"])


@given(st.lists(st.tuples(NAMES, st.integers(0, 10**6))))
def test_counts_are_scraped_as_those_of_prometheus(steps: list[tuple[str, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = Counts("things_total", "Some things.", "outcome", ours)
    counter = Counter("things_total", "Some things.", ["outcome"], registry=theirs)
    for outcome, amount in steps:
        counts.labels(outcome).inc(amount)
        counter.labels(outcome).inc(amount)
    assert generate_latest(ours) == generate_latest(theirs)


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 1000))))
def test_a_distribution_is_scraped_as_a_histogram_of_prometheus(amounts: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    distribution = Distribution("wait_seconds", "Some waiting.", BOUNDS, ours)
    histogram = Histogram("wait_seconds", "Some waiting.", buckets=BOUNDS, registry=theirs)
    for amount in amounts:
        distribution.observe(amount)
        histogram.observe(amount)
    assert generate_latest(ours) == generate_latest(theirs)


def test_a_part_of_the_metrics_can_be_asked_for() -> None:
    registry = CollectorRegistry()
    Counts("things_total", "Some things.", "outcome", registry).labels("accepted").inc()
    Distribution("wait_seconds", "Some waiting.", BOUNDS, registry).observe(0.3)
    assert b"wait_seconds" not in generate_latest(registry.restricted_registry(["things_total"]))
    assert b"things_total" not in generate_latest(registry.restricted_registry(["wait_seconds_count"]))
