"""The promise that every authorizer makes."""

from typing import Protocol

from chargegate.model import ChargingRequest, Verdict


class AuthorizationError(Exception):
    """The authorizer failed. The message says how, without a driver token."""


class AuthorizationTimeout(AuthorizationError):
    """The authorizer did not answer within its time."""


class NotAsked(AuthorizationTimeout):
    """This process could not ask the authorizer in time, which says nothing of the authorizer."""


class CircuitOpen(AuthorizationError):
    """The authorizer was not asked, because it failed too often, or is still to show that it works again. ``state`` is
    ``open`` or ``half_open``, and ``since`` when the circuit left ``closed`` (Unix ms)."""

    def __init__(self, message: str, state: str, since: int) -> None:
        super().__init__(message)
        self.state = state
        self.since = since


class Authorizer(Protocol):
    """Decides whether a driver may charge at a station.

    ``decide`` answers, or raises ``AuthorizationError``. Any other exception is a defect, and counts as a failure.
    ``decide`` may be cancelled at any time, and does not keep the request. Its caller sets the time limit.
    """

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        """``token_hash`` is the full keyed hash of the request's token, 64 hexadecimal digits."""
        ...

    async def check(self) -> None:
        """Raises ``AuthorizationError`` if it could not decide now, or failed too often and has not worked since. It
        sends no request to a microservice."""

    async def close(self) -> None: ...
