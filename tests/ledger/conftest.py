"""What the ledger's tests share: an open database, and decisions to put into it."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from chargegate.ledger import migrations
from chargegate.model import Decision, Status, new_request_id
from chargegate.sqlite import SqliteStore

STATION = "123e4567-e89b-12d3-a456-426614174000"
LIMIT_S = 20

Run = Callable[[Callable[[SqliteStore], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a scenario with the database open; each run opens it anew."""

    def running(scenario: Callable[[SqliteStore], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            path = tmp_path / "ledger.db"
            store = await SqliteStore.open(path, {"ledger": migrations.SQLITE}, exclusive=False)
            try:
                async with asyncio.timeout(LIMIT_S):
                    await scenario(store)
            finally:
                await store.close()

        uvloop.run(main())

    return running


@pytest.fixture(scope="session")
def decide() -> Callable[..., Decision]:
    def made(
        timestamp: int = 2_000,
        *,
        request_id: str = "",
        station: str = STATION,
        status: Status = Status.ALLOWED,
        reason: str = "",
    ) -> Decision:
        return Decision(request_id or new_request_id(), station, "0123456789abcdef", status, reason, 12, timestamp)

    return made
