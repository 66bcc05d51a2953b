"""Which sentences are said, and when."""

from typing import Any

import pytest

from chargegate.operations.health import Component
from chargegate.operations.looks import Recent
from chargegate.operations.problems import Seen, problems
from chargegate.operations.processes import Process

UP = Component("UP")


def recent(total: int, unknown: int, timeouts: int = 0, errors: int = 0) -> Recent:
    return Recent(total, unknown, timeouts, errors, 0, 0)


def seen(**changes: Any) -> Seen:
    well: dict[str, Any] = {
        "components": {"queue": Component("UP"), "callbacks": Component("UP")},
        "waiting": 3,
        "oldest_age_ms": 200,
        "max_size": 100,
        "oldest_question_ms": 900,
        "recent": recent(100, 5),
        "workers": [],
        "given_up": 0,
        "why_given_up": None,
        "anomalies": 0,
    }
    return Seen(**{**well, **changes})


def test_nothing_is_said_where_all_is_well() -> None:
    assert problems(seen()) == []


def test_nothing_is_said_of_what_is_not_known() -> None:
    unknown = seen(waiting=None, oldest_age_ms=None, recent=recent(0, 0), workers=None, anomalies=None)
    assert problems(unknown) == []


CASES: list[tuple[dict[str, Any], str]] = [
    ({"components": {"database": Component("DOWN", {"error": "no space left."})}}, "The database is down: no space left."),  # noqa: E501 - a case is a line
    ({"components": {"callbacks": Component("DEGRADED", {"open_circuits": 1})}}, "Callbacks are degraded: 1 destination cannot be reached."),  # noqa: E501 - a case is a line
    ({"components": {"authorization": Component("DEGRADED", {"circuit": "open", "since": "2026-01-31T12:00:00.128Z"})}}, "The authorizer is degraded: its circuit is open since 2026-01-31 12:00:00 UTC, and every decision that is not cached is unknown until it answers again."),  # noqa: E501 - a case is a line
    ({"components": {"authorization": Component("DEGRADED", {"circuit": "half_open", "since": "2026-01-31T12:00:00.128Z"})}}, "The authorizer is degraded: it has not been proven well since 2026-01-31 12:00:00 UTC; the next request is a trial."),  # noqa: E501 - a case is a line
    ({"components": {"authorization": Component("DEGRADED", {"failures_in_a_row": 7})}}, "The authorizer is degraded: the last 7 requests to it failed."),  # noqa: E501 - a case is a line
    ({"components": {"authorization": Component("DEGRADED", {"unanswered_ms": 4_000})}, "oldest_question_ms": 4_000}, "The authorizer has not answered a request for 4 s."),  # noqa: E501 - a case is a line
    ({"components": {"queue": Component("DOWN", {"waiting": 9, "max_size": 9})}}, "The queue is full (9 of 9): requests are refused."),  # noqa: E501 - a case is a line
    ({"components": {"queue": Component("DOWN", {"error": "no answer within 2 s"})}}, "The queue is down: no answer within 2 s."),  # noqa: E501 - a case is a line
    ({"components": {"clock": Component("DEGRADED", {"ahead_ms": 9_000})}}, "The clock is degraded: it is 9000 ms ahead of the server's."),  # noqa: E501 - a case is a line
    ({"components": {"audit": Component("DEGRADED", {"csv": "on", "influx": "refused"})}}, "The audit is degraded: influx: refused."),  # noqa: E501 - a case is a line
    ({"components": {"audit": Component("DEGRADED", {"csv": "on", "influx": "behind by 20 s"})}}, "The audit is degraded: influx: behind by 20 s."),  # noqa: E501 - a case is a line
    ({"components": {"audit": Component("DEGRADED", {"csv": "on", "life": "archive: away"})}}, "The audit is degraded: life: archive: away."),  # noqa: E501 - a case is a line
    ({"components": {"new_part": Component("DEGRADED")}}, "New_part is degraded."),
    ({"oldest_age_ms": 3_000}, "3 requests wait for a worker, the oldest for 3 s."),
    ({"waiting": 1, "oldest_age_ms": 400_000}, "A request waits, the oldest for 6 min."),
    ({"waiting": 51}, "The queue is filling: 51 of 100 places."),
    ({"refused": 6, "offered": 100}, "6 of the last 100 requests were refused with 503."),
    ({"unanswered": 4}, "No callback was delivered in the last minute, although 4 requests were accepted."),
    ({"slow": 10, "delivered": 500}, "10 of the last 500 answers took longer than 5 s."),
    ({"oldest_question_ms": 3_000}, "The authorizer has not answered a request for 3 s."),
    ({"recent": recent(10, 5, errors=2, timeouts=3)}, "5 of the last 10 decisions were unknown, mostly by no answer from the authorizer in time."),  # noqa: E501 - a case is a line
    ({"recent": recent(2, 1)}, "1 of the last 2 decisions was unknown."),
    ({"given_up": 1}, "1 callback was given up in the last half minute."),
    ({"given_up": 2, "why_given_up": "http_500"}, "2 callbacks were given up in the last half minute, mostly with http_500."),  # noqa: E501 - a case is a line
    ({"components": {}, "workers": []}, "No worker runs. Requests wait until one is started."),
    ({"components": {}, "workers": [Process("a", "worker", 9_000), Process("b", "worker", 3_000)]}, "No worker runs: the last one was heard from 3 s ago. Requests wait until one is started."),  # noqa: E501 - a case is a line
    ({"workers": [Process("a", "worker", 9_000), Process("b", "worker", 100)]}, "A worker has not been heard from for 9 s: a."),  # noqa: E501 - a case is a line
    ({"anomalies": 2}, "2 anomalies go on."),
    ({"anomalies": 3, "critical_anomalies": 1}, "3 anomalies go on, 1 of them critical."),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "text"), CASES)
def test_each_fault_has_its_sentence(changes: dict[str, Any], text: str) -> None:
    [problem] = problems(seen(**{"workers": None if "components" in changes else [], **changes}))
    assert problem.text == text
    assert problem.page.startswith(("/dashboard/", "/dashboard#"))


@pytest.mark.parametrize(
    "changes",
    [
        {"refused": 5, "offered": 100}, {"refused": 0, "offered": 0}, {"waiting": 50},
        {"slow": 9, "delivered": 9}, {"slow": 10, "delivered": 1000},
    ],
)  # fmt: skip
def test_little_is_no_problem(changes: dict[str, Any]) -> None:
    assert problems(seen(**changes)) == []


def test_a_circuit_is_critical_while_it_refuses_requests() -> None:
    def severity(circuit: str, unknown: int) -> str:
        component = Component("DEGRADED", {"circuit": circuit, "since": "2026-01-31T12:00:00.128Z"})
        found = problems(seen(components={"authorization": component, "callbacks": UP}, recent=recent(100, unknown)))
        return next(one.severity for one in found if one.text.startswith("The authorizer is degraded"))

    assert [severity("open", 0), severity("open", 9)] == ["critical", "critical"]
    assert [severity("half_open", 0), severity("half_open", 9)] == ["warning", "critical"]


def test_a_broken_chain_hides_no_sink_that_does_not_follow() -> None:
    broken = {"csv": "on", "chain": "broken"}
    for details, severities in ((broken, ["critical"]), (broken | {"influx": "refused"}, ["critical", "warning"])):
        found = problems(seen(components={"audit": Component("DEGRADED", details), "callbacks": UP}))
        assert [problem.severity for problem in found] == severities
        assert found[0].text.startswith("The chain of the audit is broken")


def test_the_worst_is_said_first() -> None:
    found = problems(seen(anomalies=1, given_up=5, oldest_age_ms=9_000))
    assert [problem.severity for problem in found] == ["critical", "warning", "warning"]
