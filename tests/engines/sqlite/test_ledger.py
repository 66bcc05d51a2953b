"""What is peculiar to the ledger in SQLite."""

import hashlib
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest
import uvloop

from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.ledger.base import Ledger, LedgerUnavailable
from chargegate.ledger.records import DecisionFilter
from chargegate.model import Decision, RequestStatus


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


RELEASED = ["1db73bd598928811d01d9c870fad8d31fc8c007402b34d5bf882b078916e3d55"]
"""The SHA-256 of each step that a release has."""


def test_a_released_step_never_changes() -> None:
    steps = [hashlib.sha256(step.encode()).hexdigest() for step in ALL_TABLES["ledger"]]
    assert steps[: len(RELEASED)] == RELEASED


def test_a_database_made_by_the_first_step_alone_goes_on(sqlite_run: Run, decide: Decide, tmp_path: Path) -> None:
    fine, dead, accepted = decide(), decide(), decide()

    async def make() -> None:
        store = await SqliteStore.open(tmp_path / "ledger.db", {"ledger": ALL_TABLES["ledger"][:1]}, exclusive=False)
        await store.close()
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
            for d in (fine, dead):
                connection.execute(
                    "INSERT INTO authorization_audit (request_id, station_id, driver_token_hash, status, reason,"
                    " processing_time_ms, timestamp) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    msgspec.structs.astuple(d),
                )
                connection.execute(
                    "INSERT INTO charging_requests (request_id, station_id, driver_token_hash, created_at, started_at,"
                    " status) VALUES (?, ?, ?, 1000, ?, 'PROCESSING')",
                    (d.request_id, d.station_id, d.driver_token_hash, d.timestamp),
                )
            connection.execute(
                "UPDATE charging_requests SET status = 'FAILED', attempts = 3, last_status_code = 503,"
                " last_error = 'http_503', processed_at = 3000, sealed = ? WHERE request_id = ?",
                (b"sealed", dead.request_id),
            )
            connection.commit()

    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        assert [letter.request_id for letter in await ledger.dead_letters(None, None, 10, None)] == [dead.request_id]
        assert await ledger.count_dead_letters() == 1
        assert await ledger.sealed_prefixes(5) == {b"seale"}
        ledger.accepted(accepted.request_id, accepted.station_id, 4_000)
        await ledger.close()
        record = await ledger.find(accepted.request_id)
        assert record is not None
        assert record.status is RequestStatus.QUEUED
        nobodys = await ledger.find(fine.request_id)
        assert nobodys is not None
        assert nobodys.client == ""
        assert await ledger.decisions(DecisionFilter(client="north"), 10, None) == []
        for decision in (fine, accepted):
            assert (await ledger.record(decision, 1_000)).decision == decision
        assert [row.decision for row in await ledger.audit_after(0, 10)] == [fine, dead, accepted]

    uvloop.run(make())
    sqlite_run(scenario)
