"""What is wrong with a service: what its overview says, or where that cannot be read, what one process says itself."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from chargegate.ledger.anomalies import Severity
from chargegate.operations.health import Component
from chargegate.operations.looks import Recent
from chargegate.operations.problems import Seen, problems
from chargegate.operations.troubles import Problem, Troubles
from chargegate.top.reading import Reading

_WRONG: Final = ("DEGRADED", "DOWN")


def problems_of(before: Reading | None, now: Reading) -> list[Problem]:
    """The worst first. ``before`` is an earlier reading of the same process, or None."""
    if now.health is None:
        return []
    if now.problems or (now.problems is not None and now.health["status"] not in _WRONG):
        return now.problems
    return problems(_seen(before, now, now.health["components"]))


def not_known(reading: Reading) -> str:
    """What nobody can tell from here, in a sentence; empty where the overview was read."""
    if reading.health is None or reading.problems is not None:
        return ""
    return (
        f"The overview could not be read: {reading.unread}. This is what one process says of itself. Whether others run"
        " and work is not known."
    )


def sentence_of(reading: Reading, found: Sequence[Problem], dead_letters: int | None) -> str:
    """One sentence of what was ``found``."""
    if reading.health is None:
        return f"The service does not answer: {reading.fault}."
    if found:
        sentence = found[0].text.rstrip(".") + (f" ({len(found) - 1} more)" if len(found) > 1 else "")
    elif reading.health["status"] in _WRONG:
        sentence = f"The service is {reading.health['status']}"
    elif reading.fault:
        return f"Nothing is wrong, but {reading.fault}."
    else:
        sentence = "Nothing is wrong" if reading.problems is not None else "Nothing is wrong with this process"
    if dead_letters:
        letters = "one dead letter waits" if dead_letters == 1 else f"{dead_letters} dead letters wait"
        return f"{sentence}; {letters} for a replay."
    return f"{sentence}."


def _seen(before: Reading | None, now: Reading, said: Mapping[str, Any]) -> Seen:
    """What the overview's sentences are made from, as far as one process has it: ``said`` are its components. What
    happened lately is what did between the readings."""
    components = {name: _component(each) for name, each in said.items()}
    decided = _more(before, now, "authorization_status_total", "status")
    answered = _more(before, now, "charging_requests_total", "outcome")
    letters = _more(before, now, "dead_letters", "")
    critical = {label: count for label, count in now.by("audit_anomalies", "severity").items() if count}
    troubles = Troubles(from_start=False)
    if before is not None:
        troubles.found(before.by)
    waiting, age = now.by("queue_depth", "").get(""), now.by("queue_oldest_age_seconds", "").get("")
    asked = components["authorization"].details.get("unanswered_ms") if "authorization" in components else None
    return Seen(
        components=components,
        workers=None,
        waiting=None if waiting is None else int(waiting),
        oldest_age_ms=None if age is None else round(age * 1000),
        max_size=int(now.by("queue_max_size", "").get("", 0)),
        oldest_question_ms=asked if isinstance(asked, int) else 0,
        recent=Recent(sum(decided.values()), decided.get("unknown", 0), 0, 0, 0, 0),
        given_up=letters.get("", 0),
        why_given_up=None,
        anomalies=int(sum(critical.values())),
        critical_anomalies=int(critical.get(Severity.CRITICAL.value, 0)),
        refused=answered.get("unavailable", 0),
        offered=answered.get("unavailable", 0) + answered.get("accepted", 0),
        troubles=troubles.found(now.by),
    )


def _component(said: Any) -> Component:
    """A component as ``/health`` has it. What is none is told by its status alone."""
    status = said.get("status") if isinstance(said, dict) else None
    details = said.get("details") if isinstance(said, dict) else None
    return Component(status if status in ("UP", *_WRONG) else "DEGRADED", details if isinstance(details, dict) else {})


def _more(before: Reading | None, now: Reading, name: str, label: str) -> dict[str, int]:
    if before is None:
        return {}
    then = before.by(name, label)
    return {key: max(0, round(value - then.get(key, 0.0))) for key, value in now.by(name, label).items()}
