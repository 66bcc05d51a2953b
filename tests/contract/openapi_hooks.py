"""Rules of the service that no schema can say, for what schemathesis generates: loaded by ``test_openapi``."""

import re
import uuid
from datetime import datetime
from typing import Any

import schemathesis

HOST = re.compile(r"(?<=://)(\[.*?\]|[^:/?]*)")
NUMERIC = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)\.?", re.IGNORECASE).fullmatch


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Changes what is right by the document; what is wrong on purpose stays as it is."""
    if "Authorization" in (kwargs.get("headers") or {}) or "Authorization" in case.headers:
        case.headers.pop("X-API-Key", None)  # the document's ways to send a key exclude each other
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    match case.operation.label:
        case "POST /api/v1/charging-session":
            if "Idempotency-Key" in case.headers:
                case.headers["Idempotency-Key"] = uuid.uuid4().hex  # another body has another key
            reachable(case.body)
        case "PUT /api/v1/acl":
            in_order(case.body)


def reachable(body: dict[str, Any]) -> None:
    """What has the form of an address becomes one that is open to callbacks here."""
    for name in body.keys() & {"callback_url", "callbackUrl"}:
        host = HOST.search(body[name])[0]
        if host.startswith("[") or NUMERIC(host):
            body[name] = HOST.sub("127.0.0.1", body[name], count=1)


def in_order(entry: dict[str, Any]) -> None:
    """``valid_until`` is after ``valid_from``, or absent."""
    if entry.get("valid_from") and entry.get("valid_until"):
        since, until = sorted((entry["valid_from"], entry["valid_until"]), key=milliseconds)
        entry["valid_from"], entry["valid_until"] = since, until
        if milliseconds(since) == milliseconds(until):
            del entry["valid_until"]


def milliseconds(time: str) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000)
