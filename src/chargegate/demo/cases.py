"""The cases of the demo: what is sent, what must come of it, and what was seen."""

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chargegate.demo.wire import Answer, Call
from chargegate.model import RequestStatus, Status


@dataclass
class Sent:
    """One request, and what was seen of it. A callback has the status that it was answered with, or None."""

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
        """The id that the service gave, or an empty string."""
        return str(self.answers[0].json()["request_id"]) if self.answers and self.answers[0].status == 202 else ""

    @property
    def done(self) -> bool:
        return self.status in (RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.TIMEOUT)

    def update(self, record: Mapping[str, Any]) -> None:
        """Keep what the service says about the request."""
        self.status = record["status"]
        if record["decision"]:
            self.decision, self.reason = record["decision"]["status"], record["decision"]["reason"]


def new_requests(count: int = 1) -> list[Sent]:
    """Requests of one driver at several stations. Token and path are random, so that no file holds them by chance."""
    token = f"demo~{secrets.token_hex(16)}.driver"
    return [Sent(str(uuid.uuid4()), token, f"/callback/{secrets.token_hex(12)}") for _ in range(count)]


@dataclass
class Case:
    """Requests of one kind, and what must come of them.

    ``reason`` is None where the authorizer may give any. ``listed``: the driver is in the access list. ``external``:
    an external authorizer decides. The first ``fail_first`` callbacks of a request are answered 500.
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
