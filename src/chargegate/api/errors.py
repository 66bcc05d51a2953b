"""The one shape of every error, and which fault is answered with which error."""

import traceback
from collections.abc import Mapping

import msgspec
from starlette.types import Send

from chargegate.api.shares import ShareUsedUp
from chargegate.ledger.base import LedgerUnavailable
from chargegate.model import Invalid, now_ms
from chargegate.observe import log
from chargegate.queues.base import QueueFull, QueueUnavailable


class Error(msgspec.Struct, omit_defaults=True):
    """``status`` is a stable code, ``message`` is for a person, ``details`` names every field at fault."""

    status: str
    message: str
    timestamp: int
    details: dict[str, str] = {}


class Refused(Exception):
    """A request that is answered with an error. No part of it repeats what was sent."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = dict(details or {})
        self.headers = headers or {}

    def body(self) -> bytes:
        return msgspec.json.encode(Error(self.code, self.message, now_ms(), self.details))


class ClientGone(Exception):
    """The client left before its request was complete; nobody waits for an answer."""


def not_found(message: str = "There is nothing at this path.") -> Refused:
    return Refused(404, "not_found", message)


def unavailable(message: str) -> Refused:
    return Refused(503, "service_unavailable", message, headers={"retry-after": "1"})


def refusal(fault: Exception) -> Refused:
    """What a fault is answered with. An unexpected one is a defect: it is logged, and answered with 500."""
    match fault:
        case Refused():
            return fault
        case Invalid():
            return Refused(400, "validation_error", str(fault), fault.details)
        case ShareUsedUp():
            return unavailable("Your share of the queue is used up.")
        case QueueFull():
            return unavailable("The queue is full.")
        case QueueUnavailable():
            return unavailable("The queue cannot be reached now.")
        case LedgerUnavailable():
            return unavailable("The database cannot be reached now.")
    # The exception's message is not logged, because it may repeat a value.
    frames = "".join(traceback.format_tb(fault.__traceback__))
    log.error("defect in the HTTP interface", error=type(fault).__name__, traceback=frames)
    return Refused(500, "internal_error", "The request could not be handled because of a defect in the service.")


def refusal_fields(refused: Refused, length: int) -> list[tuple[bytes, bytes]]:
    """The header fields of an error whose body has so many bytes."""
    own = [(name.encode(), value.encode()) for name, value in refused.headers.items()]
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % length), *own]


async def send_refusal(send: Send, refused: Refused, *more: tuple[bytes, bytes]) -> None:
    """Answer with an error and the headers that come with it, and ``more``."""
    body = refused.body()
    headers = [*refusal_fields(refused, len(body)), *more]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
