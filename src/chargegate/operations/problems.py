"""What is wrong, in sentences for people, each with the page that shows more."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from chargegate.ledger.counts import UnitCounts
from chargegate.operations.health import Component

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
    """What the sentences are made from. ``recent``: decisions of the last two minutes."""

    components: Mapping[str, Component]
    waiting: int | None
    oldest_age_ms: int | None
    max_size: int
    oldest_question_ms: int
    recent: Sequence[UnitCounts]
    dead_letters: int | None
    dead_letters_before: int | None
    anomalies: int | None


def problems(seen: Seen) -> list[Problem]:
    """The worst first."""
    found = [
        *_of_components(seen.components),
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
        yield Problem(severity, name, f"{said} {verb} {state}{': ' + why if why else ''}.", _PAGES.get(name, ""))


_PAGES: Final = {"callbacks": "/dashboard/dead-letters"}


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


def _of_queue(seen: Seen) -> Iterator[Problem]:
    if seen.oldest_age_ms is not None and seen.oldest_age_ms >= SLOW_MS and seen.waiting:
        waits = f"{_counted(seen.waiting, 'request')} wait for a worker" if seen.waiting > 1 else "A request waits"
        text = f"{waits}, the oldest for {_seconds(seen.oldest_age_ms)}."
        yield Problem("critical", "queue", text, "")
    if seen.waiting is not None and _FULL_SHARE * seen.max_size <= seen.waiting < seen.max_size:
        yield Problem("warning", "queue", f"The queue is filling: {seen.waiting} of {seen.max_size} places.", "")


def _of_authorizer(seen: Seen) -> Iterator[Problem]:
    if seen.oldest_question_ms >= SLOW_MS:
        text = f"The authorizer has not answered a request for {_seconds(seen.oldest_question_ms)}."
        yield Problem("critical", "authorization", text, "")
    total = sum(one.total for one in seen.recent)
    unknown = sum(one.unknown for one in seen.recent)
    if total and unknown / total >= _UNKNOWN_SHARE:
        reasons = {
            "no answer from the authorizer in time": sum(one.timeouts for one in seen.recent),
            "errors of the authorizer": sum(one.errors for one in seen.recent),
            "an open circuit": sum(one.circuit_open for one in seen.recent),
            "too long in the queue": sum(one.expired_in_queue for one in seen.recent),
        }
        worst = max(reasons, key=reasons.__getitem__)
        text = f"{unknown} of the last {total} decisions {'was' if unknown == 1 else 'were'} unknown"
        why = f", mostly by {worst}" if reasons[worst] else ""
        yield Problem("warning", "authorization", f"{text}{why}.", "/dashboard/requests?status=unknown")


def _of_callbacks(seen: Seen) -> Iterator[Problem]:
    if seen.dead_letters is not None and seen.dead_letters_before is not None:
        more = seen.dead_letters - seen.dead_letters_before
        if more > 0:
            text = f"{_counted(more, 'callback')} {'was' if more == 1 else 'were'} given up in the last minutes."
            yield Problem("warning", "dead_letters", text, "/dashboard/dead-letters")


def _of_analysis(seen: Seen) -> Iterator[Problem]:
    if seen.anomalies:
        text = f"{seen.anomalies} {'anomaly goes' if seen.anomalies == 1 else 'anomalies go'} on."
        yield Problem("warning", "anomalies", text, "/dashboard/anomalies?open=true")


def _counted(count: object, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _seconds(ms: int) -> str:
    seconds = ms // 1000
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
