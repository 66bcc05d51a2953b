"""Compares what was seen with what the contract promises."""

import base64
import csv
import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chargegate.demo.story import Scene, Sent, expected_body, members
from chargegate.demo.wire import Answer, Call
from chargegate.model import ACCEPTED_MESSAGE, is_uuid


@dataclass(frozen=True)
class Check:
    """A claim, and what speaks against it."""

    claim: str
    faults: Sequence[str]


def check_scene(scene: Scene, audit: Mapping[str, Sequence[Mapping[str, str]]], signing_key: bytes) -> Check:
    """One scene against its expectation. ``audit`` is the audit log's lines by request id."""
    faults: list[str] = []
    for number, sent in enumerate(scene.requests, 1):
        which = f"request {number}: " if len(scene.requests) > 1 else ""
        faults += [which + fault for fault in _faults(scene, sent, audit.get(sent.request_id, ()), signing_key)]
    return Check(f"{scene.title}: {scene.claim}", faults)


def _faults(scene: Scene, sent: Sent, lines: Sequence[Mapping[str, str]], signing_key: bytes) -> Iterator[str]:
    if len(sent.answers) != scene.times_sent or not all(map(_accepted, sent.answers)):
        yield f"not accepted as promised: {[answer.status for answer in sent.answers]}"
    elif len({answer.json()["request_id"] for answer in sent.answers}) != 1:
        yield "the repeat got another request_id"
    if sent.decision != scene.decision or scene.reason not in (None, sent.reason):
        yield f"decided {sent.decision or 'nothing'} {sent.reason}, expected {scene.decision} {scene.reason or ''}"
    if sent.status != scene.final:
        yield f"is {sent.status or 'unknown to the service'}, expected {scene.final}"
    answered = [status for _, status in sent.callbacks if status]
    if answered != [500] * scene.fail_first + [200]:
        yield f"callbacks were answered {answered}"
    for call, _ in sent.callbacks:
        yield from _callback_faults(call, sent, scene, signing_key)
    if [(line["station_id"], line["status"]) for line in lines] != [(sent.station_id, str(scene.decision))]:
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


def _callback_faults(call: Call, sent: Sent, scene: Scene, signing_key: bytes) -> Iterator[str]:
    if members(call.body) != expected_body(sent, scene.decision):
        yield "a callback's body was not the promised one"
    if call.headers.get("content-type") != "application/json":
        yield "a callback's content-type was not application/json"
    if call.headers.get("webhook-id") != sent.request_id:
        yield "a callback's webhook-id was not the request_id"
    signed = f"{call.headers.get('webhook-id')}.{call.headers.get('webhook-timestamp')}.".encode() + call.body
    signature = "v1," + base64.b64encode(hmac.digest(signing_key, signed, hashlib.sha256)).decode()
    if call.headers.get("webhook-signature") != signature:
        yield "a callback's signature was not right"


def read_audit(files: Sequence[Path]) -> dict[str, list[dict[str, str]]]:
    """The lines of audit logs by request id."""
    lines: dict[str, list[dict[str, str]]] = {}
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                lines.setdefault(line["request_id"], []).append(line)
    return lines


def check_secrecy(folder: Path, scenes: Sequence[Scene], metrics: Sequence[bytes]) -> Check:
    """No driver token and no callback URL in any file or metric."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    places = [(path.name, path.read_bytes()) for path in files] + [("/metrics", text) for text in metrics]
    hidden = [part.encode() for scene in scenes for sent in scene.requests for part in (sent.driver_token, sent.path)]
    faults = [f"{name} holds one" for name, content in places if any(part in content for part in hidden)]
    return Check(f"no driver token or callback URL in {len(files)} files (databases, logs, audit) and /metrics", faults)
