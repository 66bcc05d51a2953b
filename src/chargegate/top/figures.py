"""What two readings of a service say: rates, percentiles, states, and what is wrong in one sentence."""

from collections.abc import Mapping
from typing import Final

import msgspec

from chargegate.model import Moment
from chargegate.operations.troubles import Problem
from chargegate.top.reading import Labels, Reading
from chargegate.top.sentence import not_known, problems_of, sentence_of

_QUANTILES: Final = (0.5, 0.95, 0.99)
_STATES: Final = {0: "closed", 1: "half_open", 2: "open"}


class Percentiles(msgspec.Struct, frozen=True):
    """From accepted to callback delivered, in ms, of ``count`` callbacks: those between the two readings, or where
    there were none (``since_start``) all since the process started. Interpolated within the histogram's buckets."""

    p50: int
    p95: int
    p99: int
    count: int
    since_start: bool


class Figures(msgspec.Struct, frozen=True):
    """How a service is. ``status`` is that of its health, or AWAY. ``problems`` are those of its overview, the worst
    first; where that cannot be read, those of one process, and ``not_known`` says why. Rates are for each second
    between two readings, and None without a second one. What the service does not measure is None or missing."""

    url: str
    at: Moment
    status: str
    sentence: str
    problems: tuple[Problem, ...]
    not_known: str
    window_s: float | None
    answered_per_second: dict[str, float] | None
    decided_per_second: dict[str, float] | None
    callbacks_per_second: dict[str, float] | None
    end_to_end_ms: Percentiles | None
    queue_depth: int | None
    queue_oldest_age_ms: int | None
    in_flight: int | None
    dead_letters: int | None
    circuits: dict[str, str]
    anomalies: dict[str, int]
    sink_lag_ms: dict[str, int]


def figures_of(url: str, before: Reading | None, now: Reading) -> Figures:
    """``before`` is an earlier reading of the same service, or None."""
    if before is not None and _restarted(before, now):
        before = None
    window_s = None if before is None else now.clock - before.clock
    depth, age = _single(now, "queue_depth"), _single(now, "queue_oldest_age_seconds")
    states, found = now.by("circuit_breaker_state", "name"), problems_of(before, now)
    in_flight, dead = _single(now, "requests_in_flight"), _single(now, "dead_letters")
    return Figures(
        url=url,
        at=now.at,
        status=now.health["status"] if now.health is not None else "AWAY",
        sentence=sentence_of(now, found, None if dead is None else int(dead)),
        problems=tuple(found),
        not_known=not_known(now),
        window_s=None if window_s is None else round(window_s, 3),
        answered_per_second=_rates(before, now, "charging_requests_total", "outcome"),
        decided_per_second=_rates(before, now, "authorization_status_total", "status"),
        callbacks_per_second=_rates(before, now, "callback_deliveries_total", "outcome"),
        end_to_end_ms=_percentiles(before, now),
        queue_depth=None if depth is None else int(depth),
        queue_oldest_age_ms=None if age is None else round(age * 1000),
        in_flight=None if in_flight is None else int(in_flight),
        dead_letters=None if dead is None else int(dead),
        circuits={name: _STATES.get(int(value), "?") for name, value in states.items()},
        anomalies={name: int(value) for name, value in now.by("audit_anomalies", "type").items() if value},
        sink_lag_ms={name: round(value * 1000) for name, value in now.by("audit_sink_lag_seconds", "sink").items()},
    )


def _restarted(before: Reading, now: Reading) -> bool:
    """Whether the process is another one, whose counters began anew."""
    return not before.samples or _single(before, "process_start_time_seconds") != _single(
        now, "process_start_time_seconds"
    )


def _single(reading: Reading, name: str) -> float | None:
    return next(iter(reading.samples.get(name, {}).values()), None)


def _rates(before: Reading | None, now: Reading, name: str, label: str) -> dict[str, float] | None:
    if before is None or name not in now.samples or now.clock <= before.clock:
        return None
    then, window_s = before.by(name, label), now.clock - before.clock
    rates = {key: max(0.0, value - then.get(key, 0.0)) / window_s for key, value in now.by(name, label).items()}
    return {key: round(rate, 2) for key, rate in rates.items()}


def _percentiles(before: Reading | None, now: Reading) -> Percentiles | None:
    name = "end_to_end_seconds_bucket"
    all_of_them = _buckets(now.samples.get(name, {}))
    then = {} if before is None else _buckets(before.samples.get(name, {}))
    lately = {bound: max(0.0, count - then.get(bound, 0.0)) for bound, count in all_of_them.items()}
    for buckets, since_start in ((lately, before is None), (all_of_them, True)):
        if buckets and (count := max(buckets.values())):
            p50, p95, p99 = (round(_quantile(buckets, count, share) * 1000) for share in _QUANTILES)
            return Percentiles(p50, p95, p99, int(count), since_start)
    return None


def _buckets(samples: Mapping[Labels, float]) -> dict[float, float]:
    """How many took at most so many seconds, the smallest bound first."""
    return dict(sorted((float(dict(labels)["le"]), value) for labels, value in samples.items()))


def _quantile(buckets: Mapping[float, float], count: float, share: float) -> float:
    """As ``histogram_quantile`` of Prometheus: past the last finite bound it is that bound."""
    wanted, lower, below = share * count, 0.0, 0.0
    for bound, at_most in buckets.items():
        if at_most >= wanted:
            if bound == float("inf"):
                return lower
            within = at_most - below
            return lower + (bound - lower) * ((wanted - below) / within if within else 1.0)
        lower, below = bound, at_most
    return lower
