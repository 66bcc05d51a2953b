"""What is wrong, in sentences for people, each with the page that shows more."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from chargegate.model import from_iso
from chargegate.operations.health import SLOW_MS, Component
from chargegate.operations.looks import SLOW_ANSWER_MS, Recent
from chargegate.operations.processes import Process
from chargegate.operations.troubles import COMPONENTS, Problem

# The shares are those of the alerts in deploy/prometheus/rules.yaml.
_UNKNOWN_SHARE: Final = 0.05
_REFUSED_SHARE: Final = 0.05
_FULL_SHARE: Final = 0.5
_SLOW_SHARE: Final = 0.0144
_SLOW_COUNT: Final = 10
_NAMES: Final = {
    "queue": "The queue",
    "authorization": "The authorizer",
    "callbacks": "Callbacks",
    "audit": "The audit",
    "database": "The database",
    "clock": "The clock",
    "cache": "The shared cache",
}


class Seen(NamedTuple):
    """What the sentences are made from. ``workers``: other processes that work, None where they are not known.
    ``recent``, ``given_up`` and ``refused``: decisions, dead letters, and requests that were answered 503, of the last
    half minute; ``offered``: those and the accepted ones. ``unanswered``: requests that were accepted while no callback
    was delivered for a minute. ``slow`` of the ``delivered`` callbacks took longer than the objective. ``troubles``:
    what processes find in their own metrics."""

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
    critical_anomalies: int = 0
    refused: int = 0
    offered: int = 0
    unanswered: int = 0
    slow: int = 0
    delivered: int = 0
    troubles: Sequence[Problem] = ()


def problems(seen: Seen) -> list[Problem]:
    """The worst first."""
    found = [
        *_of_components(seen),
        *_of_workers(seen),
        *_of_queue(seen),
        *_of_authorizer(seen),
        *_of_callbacks(seen),
        *_of_analysis(seen),
        *seen.troubles,
    ]
    return sorted(found, key=lambda problem: problem.severity != "critical")


def _of_components(seen: Seen) -> Iterator[Problem]:
    for name, component in seen.components.items():
        if component.status == "UP" or _only_hangs(name, component):
            continue
        severity = _severity(name, component, seen)
        if name == "audit" and component.details.get("chain") == "broken":
            yield Problem("critical", name, _CHAIN, COMPONENTS)
            if not _why_audit(component):
                continue
        yield Problem(severity, name, _text(name, component), _PAGES.get(name, COMPONENTS))


_PROCESSES: Final = "/dashboard#processes"
_PAGES: Final = {"callbacks": "/dashboard/dead-letters", "authorization": "/dashboard/requests?status=unknown"}
_CHAIN: Final = (
    "The chain of the audit is broken: a verification found something changed, removed or put in."
    " `chargegate audit verify` names it."
)


def _only_hangs(name: str, component: Component) -> bool:
    """Whether the sentence about the oldest question says it all."""
    return name == "authorization" and component.status == "DEGRADED" and "unanswered_ms" in component.details


def _severity(name: str, component: Component, seen: Seen) -> Literal["critical", "warning"]:
    """A circuit that refuses requests now leaves drivers without answers."""
    circuit = component.details.get("circuit") if name == "authorization" else None
    refuses = circuit == "open" or (circuit == "half_open" and seen.recent.unknown > 0)
    return "critical" if component.status == "DOWN" or refuses else "warning"


def _text(name: str, component: Component) -> str:
    details = component.details
    if name == "queue" and component.status == "DOWN" and details.get("waiting") is not None:
        return f"The queue is full ({details['waiting']} of {details.get('max_size')}): requests are refused."
    said = _NAMES.get(name, name.capitalize())
    why = _why_audit(component) if name == "audit" else _why(component)
    state = "down" if component.status == "DOWN" else "degraded"
    verb = "are" if name == "callbacks" else "is"
    return f"{said} {verb} {state}{': ' + why if why else ''}."


def _why(component: Component) -> str:
    details = component.details
    if "error" in details:
        return str(details["error"]).rstrip(".")
    for known in (_why_circuit, _why_callbacks):
        if why := known(details):
            return why
    if count := details.get("stuck"):
        return f"{_counted(count, 'request')} could not be opened or handled"
    if (ahead := details.get("ahead_ms")) is not None:
        return f"it is {ahead} ms ahead of the server's"
    return ""


def _why_circuit(details: Mapping[str, object]) -> str:
    circuit, since = details.get("circuit"), _moment(details.get("since"))
    if circuit == "open":
        since = f" since {since}" if since else ""
        return f"its circuit is open{since}, and every decision that is not cached is unknown until it answers again"
    if circuit == "half_open":
        return f"it has not been proven well since {since}; the next request is a trial"
    if count := details.get("failures_in_a_row"):
        return f"the last {_counted(count, 'request')} to it failed"
    return ""


def _why_callbacks(details: Mapping[str, object]) -> str:
    if count := details.get("open_circuits"):
        return f"{_counted(count, 'destination')} cannot be reached"
    if count := details.get("waiting_for_connection"):
        return f"{_counted(count, 'callback')} waited long for a connection"
    return ""


def _why_audit(component: Component) -> str:
    """Which sinks do not follow, and why."""
    told = component.details.items()
    return ", ".join(f"{sink}: {said}" for sink, said in told if sink != "chain" and said not in ("on", "off"))


def _of_workers(seen: Seen) -> Iterator[Problem]:
    """``callbacks`` is a component of those who work: where this process has it, it works itself or hears of one."""
    if seen.workers is None:
        return
    silent = [each for each in seen.workers if each.silent]
    if "callbacks" not in seen.components:
        last = min((each.silent_ms for each in silent), default=None)
        since = "" if last is None else f": the last one was heard from {_seconds(last)} ago"
        yield Problem("critical", "workers", f"No worker runs{since}. Requests wait until one is started.", COMPONENTS)
    elif silent:
        who = "A worker has" if len(silent) == 1 else f"{len(silent)} workers have"
        names = ", ".join(each.name for each in silent)
        since = _seconds(max(each.silent_ms for each in silent))
        yield Problem("warning", "workers", f"{who} not been heard from for {since}: {names}.", _PROCESSES)


def _of_queue(seen: Seen) -> Iterator[Problem]:
    if seen.oldest_age_ms is not None and seen.oldest_age_ms >= SLOW_MS and seen.waiting:
        waits = f"{_counted(seen.waiting, 'request')} wait for a worker" if seen.waiting > 1 else "A request waits"
        text = f"{waits}, the oldest for {_seconds(seen.oldest_age_ms)}."
        yield Problem("critical", "queue", text, COMPONENTS)
    if seen.waiting is not None and seen.max_size and _FULL_SHARE * seen.max_size < seen.waiting < seen.max_size:
        text = f"The queue is filling: {seen.waiting} of {seen.max_size} places."
        yield Problem("warning", "queue", text, COMPONENTS)
    if seen.refused > _REFUSED_SHARE * seen.offered:
        text = f"{seen.refused} of the last {_counted(seen.offered, 'request')} {_was(seen.refused)} refused with 503."
        yield Problem("critical", "queue", text, COMPONENTS)


def _of_authorizer(seen: Seen) -> Iterator[Problem]:
    if seen.oldest_question_ms >= SLOW_MS:
        text = f"The authorizer has not answered a request for {_seconds(seen.oldest_question_ms)}."
        yield Problem("critical", "authorization", text, COMPONENTS)
    recent = seen.recent
    if recent.unknown > _UNKNOWN_SHARE * recent.total:
        reasons = {
            "no answer from the authorizer in time": recent.timeouts,
            "errors of the authorizer": recent.errors,
            "an open circuit": recent.circuit_open,
            "too long in the queue": recent.expired_in_queue,
        }
        worst = max(reasons, key=reasons.__getitem__)
        text = f"{recent.unknown} of the last {_counted(recent.total, 'decision')} {_was(recent.unknown)} unknown"
        why = f", mostly by {worst}" if reasons[worst] else ""
        yield Problem("critical", "authorization", f"{text}{why}.", "/dashboard/requests?status=unknown")


def _of_callbacks(seen: Seen) -> Iterator[Problem]:
    if seen.unanswered:
        which = f"{_counted(seen.unanswered, 'request')} {_was(seen.unanswered)} accepted"
        text = f"No callback was delivered in the last minute, although {which}."
        yield Problem("critical", "callbacks", text, "/dashboard/requests")
    if seen.given_up:
        why = f", mostly with {seen.why_given_up}" if seen.why_given_up else ""
        text = f"{_counted(seen.given_up, 'callback')} {_was(seen.given_up)} given up in the last half minute{why}."
        yield Problem("warning", "dead_letters", text, "/dashboard/dead-letters")
    if seen.slow >= _SLOW_COUNT and seen.slow > _SLOW_SHARE * seen.delivered:
        text = f"{seen.slow} of the last {seen.delivered} answers took longer than {SLOW_ANSWER_MS // 1000} s."
        yield Problem("warning", "callbacks", text, "/dashboard/requests")


def _of_analysis(seen: Seen) -> Iterator[Problem]:
    if seen.anomalies:
        critical = seen.critical_anomalies
        which = f", {critical} of them critical" if critical else ""
        text = f"{seen.anomalies} {'anomaly goes' if seen.anomalies == 1 else 'anomalies go'} on{which}."
        severity: Literal["critical", "warning"] = "critical" if critical else "warning"
        yield Problem(severity, "anomalies", text, "/dashboard/anomalies?open=true")


def _moment(iso: object) -> str:
    """For people; empty for what is no time."""
    try:
        from_iso(str(iso))
    except ValueError:
        return ""
    return f"{str(iso)[:19].replace('T', ' ')} UTC"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _counted(count: object, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _seconds(ms: int) -> str:
    seconds = ms // 1000
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
