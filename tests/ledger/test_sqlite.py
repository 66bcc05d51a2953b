"""What is peculiar to the ledger in SQLite."""

import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import pytest

from chargegate.ledger.base import DecisionFilter, Ledger, LedgerUnavailable
from chargegate.model import Decision


class Database(Protocol):
    ledger: Callable[..., Ledger]


Run = Callable[[Callable[[Database], Coroutine[Any, Any, None]]], None]
Decide = Callable[..., Decision]


def test_the_decision_and_its_audit_row_are_in_one_commit(sqlite_run: Run, decide: Decide, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
            connection.execute(
                "CREATE TRIGGER refuse BEFORE INSERT ON charging_requests BEGIN SELECT raise(FAIL, 'no'); END"
            )
        with pytest.raises(LedgerUnavailable):
            await ledger.record(decide(), 0)
        assert await ledger.decisions(DecisionFilter(), 10, None) == []
        assert await ledger.audit_after(0, 10) == []

    sqlite_run(scenario)


def test_the_audit_is_indexed_as_the_contract_says(sqlite_run: Run, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
            names = [row[1] for row in connection.execute("PRAGMA index_list(authorization_audit)")]
            indexes = [[row[2] for row in connection.execute(f"PRAGMA index_info({name})")] for name in names]
        for wanted in (["station_id", "timestamp"], ["status"], ["timestamp"]):
            assert any(index[: len(wanted)] == wanted for index in indexes), wanted

    sqlite_run(scenario)
