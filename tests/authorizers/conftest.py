"""Fixtures for the tests of authorizers: a request, a scripted authorizer, and an access list in memory."""

from collections.abc import Callable, Sequence

import pytest

from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.records import AccessEntry
from chargegate.model import ChargingRequest, Status, Verdict

TOKEN = "driver-token-0123456789~A"
STATION = "123E4567-e89b-12d3-a456-426614174000"
ALLOWED = Verdict(Status.ALLOWED)


def request_of(token: str = TOKEN, station: str = STATION, traceparent: str = "") -> ChargingRequest:
    return ChargingRequest(
        request_id="0198c0de-0000-7000-8000-000000000001",
        station_id=station,
        driver_token=token,
        callback_url="https://client.example/callback",
        accepted_at=1_767_225_600_000,
        traceparent=traceparent,
    )


class MemoryAccessList:
    """An access list without a database: these tests are about the rules, not about storage."""

    def __init__(self, *entries: AccessEntry) -> None:
        self.found = {entry.driver_token_hash: entry for entry in entries}
        self.fault: str | None = None
        self.closed = False

    async def entry(self, token_hash: str) -> AccessEntry | None:
        if self.fault:
            raise LedgerUnavailable(self.fault)
        return self.found.get(token_hash)

    async def put(self, entries: Sequence[AccessEntry]) -> None:
        self.found.update({entry.driver_token_hash: entry for entry in entries})

    async def remove(self, token_hash: str) -> bool:
        return self.found.pop(token_hash, None) is not None

    async def entries(self, limit: int, after: str | None) -> Sequence[AccessEntry]:
        return [self.found[key] for key in sorted(self.found) if key > (after or "")][:limit]

    async def changes(self, since: int) -> tuple[int, frozenset[str] | None]:
        return since, frozenset()


class ScriptedAuthorizer:
    """Follows a script: each call returns the next verdict, or raises the next exception."""

    def __init__(self, *script: Verdict | BaseException) -> None:
        self.script = list(script)
        self.calls = 0
        self.checks = 0
        self.closes = 0

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        self.calls += 1
        outcome = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(outcome, Verdict):
            return outcome
        raise outcome

    async def check(self) -> None:
        self.checks += 1

    async def close(self) -> None:
        self.closes += 1


@pytest.fixture(scope="session")
def make_request() -> Callable[..., ChargingRequest]:
    return request_of


@pytest.fixture(scope="session")
def memory_access_list() -> type[MemoryAccessList]:
    return MemoryAccessList


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedAuthorizer]:
    return ScriptedAuthorizer
