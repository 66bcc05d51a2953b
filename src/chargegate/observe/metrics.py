"""Every metric, named once. No label has unbounded values."""

import datetime as dt
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from chargegate.observe.counting import Counts, Distribution
from chargegate.observe.disks import Disks

disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5, 10, 30)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_CIRCUIT = {"closed": 0, "half_open": 1, "open": 2}


class Metrics:
    """The metrics of one process, in their own registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counts(
            "charging_requests_total", "Requests to charge, by how they were answered.", "outcome", registry
        )
        self.decisions = Counts("authorization_status_total", "Decisions recorded, by status.", "status", registry)
        self.processing_time = Distribution(
            "authorization_processing_time_seconds",
            "From asking the authorizer to its verdict.",
            _SHORT,
            registry,
        )
        self.audit_entries = Counter(
            "audit_log_entries_total", "Decisions written, by audit sink.", ["sink"], registry=registry
        )
        self.audit_life = Counter(
            "audit_life_total",
            "Audit files that were rotated, compressed, exported, archived or pruned, by how it ended: done or failed.",
            ["step", "outcome"],
            registry=registry,
        )
        self.audit_refused = Counter(
            "audit_sink_refused_total",
            "Decisions that an audit sink's server will never take, such as those older than it keeps any.",
            ["sink"],
            registry=registry,
        )
        self.audit_lag = Gauge(
            "audit_sink_lag_seconds",
            "Age of the oldest decision that an audit sink has yet to write; 0 where it has all.",
            ["sink"],
            registry=registry,
        )
        self.deliveries = Counts(
            "callback_deliveries_total",
            "Callback attempts by how they ended: delivered, retry (will be tried again), dead_letter (given up), "
            "paused (the receiver asked to wait), not_sent (for a reason that is not the receiver's).",
            "outcome",
            registry,
        )
        self.callback_duration = Distribution("callback_duration_seconds", "One callback attempt.", _SHORT, registry)
        self.end_to_end = Distribution("end_to_end_seconds", "From accepted to callback delivered.", _LONG, registry)
        decision_cache = Counts(
            "decision_cache_total",
            "Looks for a cached decision, in this process or in the cache that processes share: hit or miss.",
            "outcome",
            registry,
        )
        self._cache_hit, self._cache_miss = decision_cache.labels("hit"), decision_cache.labels("miss")
        self.in_flight = Gauge(
            "requests_in_flight", "Requests taken from the queue and not finished, parked ones too.", registry=registry
        )
        self.queue_depth = Gauge("queue_depth", "Requests that no worker has taken yet.", registry=registry)
        self.queue_max_size = Gauge(
            "queue_max_size", "Requests that may wait; further ones are refused.", registry=registry
        )
        self.queue_oldest_age = Gauge(
            "queue_oldest_age_seconds", "Age of the oldest request that no worker has taken.", registry=registry
        )
        self.breaker_state = Gauge(
            "circuit_breaker_state", "0 closed, 1 half open, 2 open.", ["name"], registry=registry
        )
        self.breaker_transitions = Counter(
            "circuit_breaker_transitions_total", "Changes of state.", ["name", "to"], registry=registry
        )
        self.chain_intact = Gauge(
            "audit_chain_intact",
            "1 where `chargegate audit verify` last found all as it was written, else 0; NaN where it never ran, or "
            "audit.chain is off.",
            registry=registry,
        )
        self.chain_intact.set(float("nan"))
        self.anomalies = Gauge(
            "audit_anomalies",
            "Anomalies of the audit that have not ended.",
            ["type", "severity"],
            registry=registry,
        )
        self.dead_letters = Gauge("dead_letters", "Callbacks given up and not replayed.", registry=registry)
        self.dead_letters_dropped = Counter(
            "dead_letters_dropped_total",
            "Dead letters that can be sent no more: by age, or by number because there were too many.",
            ["reason"],
            registry=registry,
        )
        self.requests_dropped = Counter(
            "requests_dropped_total", "Finished requests that were dropped because they were old.", registry=registry
        )
        self.trace_spans = Counter(
            "trace_spans_total",
            "Spans of traces: sent to the collector, or lost because it did not take them.",
            ["outcome"],
            registry=registry,
        )
        self.clock_skew = Gauge(
            "clock_skew_seconds",
            "How much this machine's clock is ahead of the server's that all processes ask; 0 without one.",
            registry=registry,
        )
        self.disks = Disks(registry)
        self._certificate_end: Gauge | None = None

    def cache_looked(self, hit: bool) -> None:
        """A cached decision was looked for, and found or not."""
        (self._cache_hit if hit else self._cache_miss).inc()

    def certificate_in_use(self, end: dt.datetime | None) -> None:
        """The server shows a TLS certificate that is valid until ``end``; None: it shows none, or the end is not known.
        The metric is there once an end was known."""
        if end is None:
            return
        if self._certificate_end is None:
            self._certificate_end = Gauge(
                "tls_certificate_expiration_timestamp_seconds",
                "Unix time at which the certificate that the server shows expires.",
                registry=self.registry,
            )
        self._certificate_end.set(end.timestamp())

    def circuit(self, name: str) -> Callable[[str], None]:
        """What a circuit breaker calls with each new state: ``closed``, ``half_open`` or ``open``."""
        self.breaker_state.labels(name).set(0)

        def changed(to: str) -> None:
            self.breaker_state.labels(name).set(_CIRCUIT[to])
            self.breaker_transitions.labels(name, to).inc()

        return changed

    def circuit_is(self, name: str, state: Callable[[], str]) -> None:
        """Ask for the state of a circuit whenever the metrics are read, because it changes with the time."""
        self.breaker_state.labels(name).set_function(lambda: _CIRCUIT[state()])

    def sampled(self, name: str, label: str = "") -> dict[str, float]:
        """The values of one metric by one of its labels; empty where there is no such metric."""
        families = self.registry.restricted_registry([name]).collect()
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return {sample.labels.get(label, ""): sample.value for sample in samples}

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
