"""What a process's metrics say is wrong, and that each alert is a sentence of the overview too."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, Final

import pytest

from chargegate.observe import Metrics
from chargegate.operations.health import Component
from chargegate.operations.looks import Recent
from chargegate.operations.problems import Seen, problems
from chargegate.operations.troubles import Problem, Troubles
from deploy.promql import ALERTS

HOUR_S: Final = 3600


class Time:
    """A clock that a test sets."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def troubles(metrics: Metrics) -> list[Problem]:
    return Troubles(from_start=True, now=Time()).found(metrics.sampled)


def metrics_with(change: Callable[[Metrics], object]) -> list[Problem]:
    metrics = Metrics()
    change(metrics)
    return troubles(metrics)


def disk_with(free: float) -> list[Problem]:
    values = {"disk_free_bytes": {"data": free}, "disk_size_bytes": {"data": 100.0}}
    return Troubles(from_start=True).found(lambda name, _: values.get(name, {}))


def certificate(metrics: Metrics, days: float) -> None:
    metrics.certificate_in_use(dt.datetime.fromtimestamp(Time.now, dt.UTC) + dt.timedelta(days=days))


def test_nothing_is_said_of_a_process_that_just_started() -> None:
    assert metrics_with(lambda _: None) == []


def test_a_disk_that_fills_up() -> None:
    assert disk_with(11) == []
    assert [one.text for one in disk_with(4)] == ["The disk of the folder data fills up: 4 % are free."]


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (14.1, ""),
        (13.9, "expires in 13 days"),
        (1.5, "expires in 36 hours"),
        (0.05, "less than two hours"),
        (-1, "has expired"),
    ],
)
def test_a_certificate_near_its_end(days: float, said: str) -> None:
    found = metrics_with(lambda metrics: certificate(metrics, days))
    assert [said in problem.text for problem in found] == ([True] if said else [])


@pytest.mark.parametrize("from_start", [True, False])
def test_what_was_lost_is_told_for_an_hour(from_start: bool) -> None:
    metrics, time = Metrics(), Time()
    lost = metrics.dead_letters_dropped.labels("number")
    lost.inc(3)
    watch = Troubles(from_start=from_start, clock=time)
    counts = []
    for wait_s, more in ((0, 0), (HOUR_S / 2, 2), (HOUR_S / 2 + 1, 0), (HOUR_S / 2, 0), (HOUR_S * 9, 1)):
        time.now += wait_s
        lost.inc(more)
        counts.append([problem.text.split(" ")[0] for problem in watch.found(metrics.sampled)])
    assert counts == [["3"] if from_start else [], ["5"] if from_start else ["2"], ["2"], [], ["A"]]


# Which sentence tells what an alert is about. The overview tells what goes on, an alert what has gone on for minutes.
TOLD: Final[dict[str, dict[str, Any]]] = {
    "NoAnswers": {"unanswered": 5},
    "Refusing": {"refused": 6, "offered": 100},
    "SlowAnswers": {"slow": 10, "delivered": 100},
    "SlowAnswersForHours": {"slow": 10, "delivered": 100},
    "QueueFilling": {"waiting": 51},
    "QueueStuck": {"waiting": 1, "oldest_age_ms": 61_000},
    "AuthorizerFailing": {"recent": Recent(100, 6, 6, 0, 0, 0)},
    "CircuitOpen": {"authorization": Component("DEGRADED", {"circuit": "open", "since": "2026-01-31T12:00:00.128Z"})},
    "ReceiversAway": {"callbacks": Component("DEGRADED", {"open_circuits": 1})},
    "DeadLettersGrowing": {"given_up": 1},
    "SinkBehind": {"audit": Component("DEGRADED", {"csv": "on", "influx": "behind by 301 s"})},
    "AuditChainBroken": {"audit": Component("DEGRADED", {"csv": "on", "chain": "broken"})},
    "SinkRefusing": {"troubles": metrics_with(lambda metrics: metrics.audit_refused.labels("influx").inc())},
    "AuditLifeFailing": {"audit": Component("DEGRADED", {"csv": "on", "life": "archive: away"})},
    "Anomaly": {"anomalies": 1, "critical_anomalies": 1},
    "DeadLettersDropped": {"troubles": metrics_with(lambda metrics: metrics.dead_letters_dropped.labels("age").inc())},
    "DiskFilling": {"troubles": disk_with(9)},
    "ClockOff": {"clock": Component("DEGRADED", {"ahead_ms": 2_500})},
    "CertificateExpiring": {"troubles": metrics_with(lambda metrics: certificate(metrics, 13))},
}
NOT_TOLD: Final = {"Down": "a service that does not answer shows no overview; its page says that it is not up to date"}
OTHER_SEVERITY: Final = {"SlowAnswers": "one slow minute wakes nobody; it is critical when it goes on for an hour"}


def test_each_alert_is_told_or_has_its_reason() -> None:
    names = {name.removeprefix("Chargegate") for name in ALERTS}
    assert names == TOLD.keys() | NOT_TOLD.keys()
    assert not TOLD.keys() & NOT_TOLD.keys()
    assert OTHER_SEVERITY.keys() <= TOLD.keys()


@pytest.mark.parametrize("name", TOLD)
def test_what_raises_an_alert_is_a_sentence_as_severe_as_it(name: str) -> None:
    values: dict[str, Any] = {
        "workers": None, "waiting": 0, "oldest_age_ms": 0, "max_size": 100, "oldest_question_ms": 0,
        "recent": Recent(100, 0, 0, 0, 0, 0), "given_up": 0, "why_given_up": None, "anomalies": 0,
    }  # fmt: skip
    parts = {"callbacks": Component("UP")}
    for key, value in TOLD[name].items():
        (parts if isinstance(value, Component) else values)[key] = value
    [problem] = problems(Seen(components=parts, **values))
    severity = ALERTS[f"Chargegate{name}"]["labels"]["severity"]
    assert (problem.severity == severity) == (name not in OTHER_SEVERITY)
