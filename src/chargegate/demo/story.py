"""What the demo asks of the service, what it expects, and what it saw."""

import json
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chargegate.demo.wire import Answer, Call
from chargegate.model import RequestStatus, Status


@dataclass
class Sent:
    """One request and all that was seen of it."""

    station_id: str
    driver_token: str
    path: str
    answers: list[Answer] = field(default_factory=list)
    callbacks: list[tuple[Call, int | None]] = field(default_factory=list)
    status: str = ""
    decision: str = ""
    reason: str = ""

    @property
    def request_id(self) -> str:
        """As the service named it; empty while it has not."""
        return str(self.answers[0].json()["request_id"]) if self.answers and self.answers[0].status == 202 else ""

    @property
    def done(self) -> bool:
        return self.status in (RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.TIMEOUT)

    def see(self, record: Mapping[str, Any]) -> None:
        """Take over what the service says of the request."""
        self.status = record["status"]
        if record["decision"]:
            self.decision, self.reason = record["decision"]["status"], record["decision"]["reason"]


def new_requests(count: int = 1) -> list[Sent]:
    """Requests of one driver at several stations. Nothing in them can be found by chance in a file."""
    token = f"demo~{secrets.token_hex(16)}.driver"
    return [Sent(str(uuid.uuid4()), token, f"/callback/{secrets.token_hex(12)}") for _ in range(count)]


@dataclass
class Scene:
    """One case: its requests, and what must come of them.

    ``reason`` is None where the authorizer may give any. ``fail_first``: so many callbacks get a 500.
    """

    title: str
    claim: str
    decision: Status
    reason: str | None = ""
    final: RequestStatus = RequestStatus.COMPLETED
    listed: bool = True
    external: bool = False
    fail_first: int = 0
    times_sent: int = 1
    requests: list[Sent] = field(default_factory=new_requests)

    @property
    def done(self) -> bool:
        return all(sent.done for sent in self.requests)


def expected_body(sent: Sent, decision: Status) -> list[tuple[str, str]]:
    """The callback's members in their order."""
    return [("station_id", sent.station_id), ("driver_token", sent.driver_token), ("status", str(decision))]


def members(body: bytes) -> object:
    """A JSON object's members in their order, doubles kept; None if it is not JSON."""
    try:
        return json.loads(body, object_pairs_hook=list)
    except ValueError:
        return None
