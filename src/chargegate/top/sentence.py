"""What is wrong with a service, in one sentence."""

from collections.abc import Mapping
from typing import Any, Final

_WORST_FIRST: Final = ("DOWN", "DEGRADED")


def sentence_of(health: Mapping[str, Any] | None, fault: str, dead_letters: int | None) -> str:
    """``health`` is what ``/health`` says, or None, and then ``fault`` why."""
    if health is None:
        return f"The service does not answer: {fault}."
    components: Mapping[str, Any] = health["components"]
    wrong = [
        _about(name, component)
        for status in _WORST_FIRST
        for name, component in components.items()
        if isinstance(component, dict) and component.get("status") == status
    ]
    if wrong:
        more = f" ({len(wrong) - 1} more: see /health)" if len(wrong) > 1 else ""
        return f"{wrong[0]}{more}."
    if health["status"] != "UP":
        return f"The service is {health['status']}."
    if fault:
        return f"Nothing is wrong, but {fault}."
    if dead_letters:
        letters = "one dead letter waits" if dead_letters == 1 else f"{dead_letters} dead letters wait"
        return f"Nothing is wrong; {letters} for a replay."
    return "Nothing is wrong."


def _about(name: str, component: Mapping[str, Any]) -> str:
    details = component.get("details")
    if not isinstance(details, dict):
        details = {}
    known = {"queue": _queue, "authorization": _authorization, "callbacks": _callbacks}.get(name)
    said = known(details) if known is not None else ""
    if said:
        return said
    why = details.get("error") or ", ".join(f"{key} {value}" for key, value in details.items())
    return f"{name} is {component.get('status')}" + (f": {why}" if why else "")


def _queue(details: Mapping[str, Any]) -> str:
    waiting, most = details.get("waiting"), details.get("max_size")
    if isinstance(waiting, int) and isinstance(most, int) and waiting >= most:
        return f"The queue is full ({waiting} of {most}): requests are refused"
    if stuck := details.get("stuck"):
        return f"{stuck} requests could not be handled, and come back after a restart"
    return f"The queue is down: {details['error']}" if details.get("error") else ""


def _authorization(details: Mapping[str, Any]) -> str:
    if details.get("circuit") == "open":
        return "The authorizer failed too often and is not asked: decisions are unknown"
    return f"The authorizer cannot decide: {details['error']}" if details.get("error") else ""


def _callbacks(details: Mapping[str, Any]) -> str:
    if details.get("error"):
        return ""
    if circuits := details.get("open_circuits"):
        receivers = "One receiver of callbacks" if circuits == 1 else f"{circuits} receivers of callbacks"
        return f"{receivers} cannot be reached, {details.get('parked', 0)} callbacks wait"
    if waiting := details.get("waiting_for_connection"):
        return f"{waiting} callbacks have waited long, because all connections are in use"
    return ""
