"""The promise that every authorizer makes."""

from typing import Protocol

from chargegate.model import ChargingRequest, Verdict


class AuthorizationError(Exception):
    """The authorizer failed. The message says how, and holds no token."""


class AuthorizationTimeout(AuthorizationError):
    """The authorizer did not answer within its time."""


class CircuitOpen(AuthorizationError):
    """The authorizer was not asked, because it has been failing."""


class Authorizer(Protocol):
    """Decides whether a driver may charge at a station.

    ``decide`` answers, or raises ``AuthorizationError``; any other exception is a defect and is treated as one
    failure. It may be cancelled at any time, and keeps nothing of the request. The time limit is not its task.
    """

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        """``token_hash`` is the full keyed hash of the request's token, 64 hexadecimal digits."""
        ...

    async def check(self) -> None:
        """Raises ``AuthorizationError`` if it knows that it could not decide now; asks nobody's microservice."""

    async def close(self) -> None: ...
