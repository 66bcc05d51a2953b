"""Compares what was seen with what the HTTP contract promises."""

import base64
import csv
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chargegate.demo.cases import Case, Sent
from chargegate.demo.wire import Answer, Call
from chargegate.model import ACCEPTED_MESSAGE, is_uuid


@dataclass(frozen=True)
class Check:
    """A claim, and the faults that were found."""

    claim: str
    faults: Sequence[str]


def check_case(case: Case, audit: Mapping[str, Sequence[Mapping[str, str]]], signing_key: bytes) -> Check:
    """Compare a case with its expectation. ``audit`` has the lines of the audit log by request id."""
    faults: list[str] = []
    for number, sent in enumerate(case.requests, 1):
        prefix = f"request {number}: " if len(case.requests) > 1 else ""
        faults += [prefix + fault for fault in _faults(case, sent, audit.get(sent.request_id, ()), signing_key)]
    return Check(f"{case.title}: {case.claim}", faults)


def _faults(case: Case, sent: Sent, lines: Sequence[Mapping[str, str]], signing_key: bytes) -> Iterator[str]:
    if len(sent.answers) != case.times_sent or not all(map(_accepted, sent.answers)):
        yield f"not accepted as promised: {[answer.status for answer in sent.answers]}"
    elif len({answer.json()["request_id"] for answer in sent.answers}) != 1:
        yield "the repeat got another request_id"
    if sent.decision != case.decision or case.reason not in (None, sent.reason):
        yield f"decided {sent.decision or 'nothing'} {sent.reason}, expected {case.decision} {case.reason or ''}"
    if sent.status != case.final:
        yield f"is {sent.status or 'unknown to the service'}, expected {case.final}"
    answered = [status for _, status in sent.callbacks if status]
    if answered != [500] * case.fail_first + [200]:
        yield f"callbacks were answered {answered}"
    for call, _ in sent.callbacks:
        yield from _callback_faults(call, sent, case, signing_key)
    if [(line["station_id"], line["status"]) for line in lines] != [(sent.station_id, str(case.decision))]:
        yield f"{len(lines)} lines in the audit log, or not the right one"


def _accepted(answer: Answer) -> bool:
    if answer.status != 202:
        return False
    values = answer.json()
    return (
        set(values) == {"status", "message", "request_id", "timestamp"}
        and (values["status"], values["message"]) == ("accepted", ACCEPTED_MESSAGE)
        and is_uuid(values["request_id"])
        and isinstance(values["timestamp"], int)
    )


def _callback_faults(call: Call, sent: Sent, case: Case, signing_key: bytes) -> Iterator[str]:
    promised = [("station_id", sent.station_id), ("driver_token", sent.driver_token), ("status", str(case.decision))]
    if _members(call.body) != promised:
        yield "a callback's body was not the promised one"
    if call.headers.get("content-type") != "application/json":
        yield "a callback's content-type was not application/json"
    if call.headers.get("webhook-id") != sent.request_id:
        yield "a callback's webhook-id was not the request_id"
    signed = f"{call.headers.get('webhook-id')}.{call.headers.get('webhook-timestamp')}.".encode() + call.body
    signature = "v1," + base64.b64encode(hmac.digest(signing_key, signed, hashlib.sha256)).decode()
    if call.headers.get("webhook-signature") != signature:
        yield "a callback's signature was not right"


def _members(body: bytes) -> object:
    """The members of a JSON object in their order, with duplicates; None if it is not JSON."""
    try:
        return json.loads(body, object_pairs_hook=list)
    except ValueError:
        return None


def read_audit(files: Sequence[Path]) -> dict[str, list[dict[str, str]]]:
    """The lines of audit logs by request id."""
    lines: dict[str, list[dict[str, str]]] = {}
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                lines.setdefault(line["request_id"], []).append(line)
    return lines


def check_secrecy(folder: Path, cases: Sequence[Case], metrics: Sequence[bytes]) -> Check:
    """Look for driver tokens and callback URLs in every file and in the metrics."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    places = [(path.name, path.read_bytes()) for path in files] + [("/metrics", text) for text in metrics]
    secrets = [part.encode() for case in cases for sent in case.requests for part in (sent.driver_token, sent.path)]
    faults = [f"{name} holds one" for name, content in places if any(secret in content for secret in secrets)]
    return Check(f"no driver token or callback URL in {len(files)} files (databases, logs, audit) and /metrics", faults)
