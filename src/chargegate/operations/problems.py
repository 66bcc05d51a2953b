"""What is wrong, in sentences for people, each with the page that shows more."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from chargegate.operations.health import Component
from chargegate.operations.looks import Recent
from chargegate.operations.processes import Process

SLOW_MS: Final = 3000
"""A request that waits longer for a worker, or for the authorizer, is worth a sentence."""

_UNKNOWN_SHARE: Final = 0.1
_FULL_SHARE: Final = 0.8
_NAMES: Final = {
    "queue": "The queue",
    "authorization": "The authorizer",
    "callbacks": "Callbacks",
    "audit": "The audit",
    "database": "The database",
    "clock": "The clock",
    "cache": "The shared cache",
}


class Problem(msgspec.Struct, frozen=True):
    """``subject`` is a component's name, or what else it is about. ``page``: the path of the page that shows more."""

    severity: Literal["critical", "warning"]
    subject: str
    text: str
    page: str


class Seen(NamedTuple):
    """What the sentences are made from. ``workers``: other processes that work, None where they are not known.
    ``recent`` and ``given_up``: decisions and dead letters of the last half minute."""

    components: Mapping[str, Component]
    workers: Sequence[Process] | None
    waiting: int | None
    oldest_age_ms: int | None
    max_size: int
    oldest_question_ms: int
    recent: Recent
    given_up: int
    why_given_up: str | None
    anomalies: int | None


def problems(seen: Seen) -> list[Problem]:
    """The worst first."""
    found = [
        *_of_components(seen.components),
        *_of_workers(seen),
        *_of_queue(seen),
        *_of_authorizer(seen),
        *_of_callbacks(seen),
        *_of_analysis(seen),
    ]
    return sorted(found, key=lambda problem: problem.severity != "critical")


def _of_components(components: Mapping[str, Component]) -> Iterator[Problem]:
    for name, component in components.items():
        if component.status == "UP":
            continue
        said = _NAMES.get(name, name.capitalize())
        why = _why_audit(component) if name == "audit" else _why(component)
        severity: Literal["critical", "warning"] = "critical" if component.status == "DOWN" else "warning"
        state = "down" if component.status == "DOWN" else "degraded"
        verb = "are" if name == "callbacks" else "is"
        yield Problem(
            severity, name, f"{said} {verb} {state}{': ' + why if why else ''}.", _PAGES.get(name, _COMPONENTS)
        )


_COMPONENTS: Final = "/dashboard#components"
_PROCESSES: Final = "/dashboard#processes"
_PAGES: Final = {"callbacks": "/dashboard/dead-letters", "authorization": "/dashboard/requests?status=unknown"}


def _why(component: Component) -> str:
    details = component.details
    if "error" in details:
        return str(details["error"]).rstrip(".")
    if details.get("circuit") == "open":
        return "its circuit is open, and every decision is unknown until it answers again"
    if count := details.get("open_circuits"):
        return f"{_counted(count, 'destination')} cannot be reached"
    if count := details.get("waiting_for_connection"):
        return f"{_counted(count, 'callback')} waited long for a connection"
    if count := details.get("stuck"):
        return f"{_counted(count, 'request')} could not be opened or handled"
    if (ahead := details.get("ahead_ms")) is not None:
        return f"it is {ahead} ms ahead of the server's"
    if details.get("waiting") is not None and details.get("waiting") == details.get("max_size"):
        return "it is full"
    return ""


def _why_audit(component: Component) -> str:
    """Which sinks do not follow, and why."""
    return ", ".join(f"{sink}: {said}" for sink, said in component.details.items() if said not in ("on", "off"))


def _of_workers(seen: Seen) -> Iterator[Problem]:
    """``callbacks`` is a component of those who work: where this process has it, it works itself or hears of one."""
    if seen.workers is None:
        return
    silent = [each for each in seen.workers if each.silent]
    if "callbacks" not in seen.components:
        last = min((each.silent_ms for each in silent), default=None)
        since = "" if last is None else f": the last one was heard from {_seconds(last)} ago"
        yield Problem("critical", "workers", f"No worker runs{since}. Requests wait until one is started.", _COMPONENTS)
    elif silent:
        who = "A worker has" if len(silent) == 1 else f"{len(silent)} workers have"
        names = ", ".join(each.name for each in silent)
        since = _seconds(max(each.silent_ms for each in silent))
        yield Problem("warning", "workers", f"{who} not been heard from for {since}: {names}.", _PROCESSES)


def _of_queue(seen: Seen) -> Iterator[Problem]:
    if seen.oldest_age_ms is not None and seen.oldest_age_ms >= SLOW_MS and seen.waiting:
        waits = f"{_counted(seen.waiting, 'request')} wait for a worker" if seen.waiting > 1 else "A request waits"
        text = f"{waits}, the oldest for {_seconds(seen.oldest_age_ms)}."
        yield Problem("critical", "queue", text, _COMPONENTS)
    if seen.waiting is not None and _FULL_SHARE * seen.max_size <= seen.waiting < seen.max_size:
        text = f"The queue is filling: {seen.waiting} of {seen.max_size} places."
        yield Problem("warning", "queue", text, _COMPONENTS)


def _of_authorizer(seen: Seen) -> Iterator[Problem]:
    if seen.oldest_question_ms >= SLOW_MS:
        text = f"The authorizer has not answered a request for {_seconds(seen.oldest_question_ms)}."
        yield Problem("critical", "authorization", text, _COMPONENTS)
    recent = seen.recent
    if recent.total and recent.unknown / recent.total >= _UNKNOWN_SHARE:
        reasons = {
            "no answer from the authorizer in time": recent.timeouts,
            "errors of the authorizer": recent.errors,
            "an open circuit": recent.circuit_open,
            "too long in the queue": recent.expired_in_queue,
        }
        worst = max(reasons, key=reasons.__getitem__)
        text = f"{recent.unknown} of the last {recent.total} decisions {_was(recent.unknown)} unknown"
        why = f", mostly by {worst}" if reasons[worst] else ""
        yield Problem("warning", "authorization", f"{text}{why}.", "/dashboard/requests?status=unknown")


def _of_callbacks(seen: Seen) -> Iterator[Problem]:
    if seen.given_up:
        why = f", mostly with {seen.why_given_up}" if seen.why_given_up else ""
        text = f"{_counted(seen.given_up, 'callback')} {_was(seen.given_up)} given up in the last half minute{why}."
        yield Problem("warning", "dead_letters", text, "/dashboard/dead-letters")


def _of_analysis(seen: Seen) -> Iterator[Problem]:
    if seen.anomalies:
        text = f"{seen.anomalies} {'anomaly goes' if seen.anomalies == 1 else 'anomalies go'} on."
        yield Problem("warning", "anomalies", text, "/dashboard/anomalies?open=true")


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _counted(count: object, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _seconds(ms: int) -> str:
    seconds = ms // 1000
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
