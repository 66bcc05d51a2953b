"""`chargegate audit` on decisions that the real ledger recorded."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from chargegate.app.commands import Offline
from chargegate.audit.life.files import LogFiles
from chargegate.ledger.records import Finished
from chargegate.model import AUDIT_COLUMNS, Decision, Reason, RequestStatus, Status, now_ms, to_iso

Run = Callable[..., Any]
Record = Callable[..., None]
Finish = Callable[..., None]

STATIONS = ["0a1b2c3d-0000-4000-8000-00000000000a", "0a1b2c3d-0000-4000-8000-00000000000b"]
DAY = 86_400_000
START = 20_000 * DAY


def decision(number: int, status: Status = Status.ALLOWED, reason: str = "", station: str = STATIONS[0]) -> Decision:
    request_id = f"00000000-0000-7000-8000-{number:012x}"
    return Decision(request_id, station, "0123456789abcdef", status, reason, number % 7, START + number * 1000)


@pytest.fixture
def record(in_store: Callable[..., Any]) -> Record:
    def record(*decisions: Decision) -> None:
        async def act(store: Offline) -> None:
            await asyncio.gather(*(store.ledger.record(one, one.timestamp - 5) for one in decisions))

        in_store(act)

    return record


@pytest.fixture
def finish(in_store: Callable[..., Any]) -> Finish:
    def finish(*decisions: Decision) -> None:
        async def act(store: Offline) -> None:
            await asyncio.gather(
                *(
                    store.ledger.finish(
                        Finished(one.request_id, RequestStatus.COMPLETED, 1, 200, None, one.timestamp + 9, None)
                    )
                    for one in decisions
                )
            )

        in_store(act)

    return finish


def test_nothing_yet(run: Run, database: None) -> None:
    assert run("audit", "list", "--json").out == ""
    assert run("audit", "list").out.startswith("timestamp\trequest_id\t")
    assert run("audit", "stats", "--json").out == ""


def test_the_members_of_a_decision_are_those_of_the_http_contract(run: Run, record: Record) -> None:
    record(decision(3, Status.NOT_ALLOWED, Reason.NOT_IN_ACL))
    assert run("audit", "list", "--json").json() == {
        "timestamp": START + 3000,
        "request_id": "00000000-0000-7000-8000-000000000003",
        "station_id": STATIONS[0],
        "driver_token_hash": "0123456789abcdef",
        "status": "not_allowed",
        "reason": "driver_not_in_acl",
        "processing_time_ms": 3,
    }
    header, line = (text.split("\t") for text in run("audit", "list").out.splitlines())
    assert dict(zip(header, line, strict=True))["timestamp"] == to_iso(START + 3000)


def test_newest_first_and_as_many_as_asked_for(run: Run, record: Record) -> None:
    record(*(decision(number) for number in range(1203)))
    every = [line["timestamp"] for line in run("audit", "list", "--all", "--json").lines()]
    assert every == [START + number * 1000 for number in reversed(range(1203))]
    assert [line["timestamp"] for line in run("audit", "list", "--limit", "700", "--json").lines()] == every[:700]
    assert len(run("audit", "list", "--json").lines()) == 50


def test_filters(run: Run, record: Record) -> None:
    record(
        decision(1),
        decision(2, Status.UNKNOWN, Reason.TIMEOUT),
        decision(3, Status.UNKNOWN, Reason.CIRCUIT_OPEN, STATIONS[1].upper()),
        decision(4, Status.UNKNOWN, Reason.TIMEOUT, STATIONS[1]),
    )

    def found(*arguments: str) -> list[int]:
        return [(line["timestamp"] - START) // 1000 for line in run("audit", *arguments, "--json").lines()]

    assert found("list", "--station", STATIONS[1]) == [4, 3]
    assert found("list", "--station", STATIONS[1].upper()) == [4, 3]
    assert found("list", "--status", "unknown") == [4, 3, 2]
    assert found("list", "--from", to_iso(START + 2000), "--to", to_iso(START + 4000)) == [3, 2]
    assert found("timeouts") == [4, 2]
    assert found("timeouts", "--station", STATIONS[0]) == [2]
    assert found("timeouts", "--from", to_iso(START + 3000)) == [4]
    assert found("timeouts", "--limit", "1") == [4]


def test_counts_by_station_busiest_first(run: Run, record: Record) -> None:
    record(
        decision(1, station=STATIONS[1]),
        decision(2, Status.NOT_ALLOWED, Reason.NOT_IN_ACL),
        decision(3, Status.UNKNOWN, Reason.TIMEOUT),
        decision(4, Status.INVALID),
    )
    busy = {"station_id": STATIONS[0], "total": 3, "allowed": 0, "not_allowed": 1, "unknown": 1, "invalid": 1}
    quiet = {"station_id": STATIONS[1], "total": 1, "allowed": 1, "not_allowed": 0, "unknown": 0, "invalid": 0}
    assert run("audit", "stats", "--json").lines() == [busy, quiet]
    assert run("audit", "stats", "--json", "--station", STATIONS[1]).lines() == [quiet]
    later = run("audit", "stats", "--json", "--from", to_iso(START + 4000)).json()
    assert (later["total"], later["invalid"]) == (1, 1)


@pytest.fixture
def in_postgres(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Commands use it."""
    monkeypatch.setenv("CHARGEGATE_DATABASE__URL", postgres_url)
    return postgres_url


def test_months_that_ended_are_dropped_and_no_other(run: Run, in_postgres: str, record: Record) -> None:
    record(decision(1), decision(2 + 31 * 86_400))
    record(Decision(decision(3).request_id, STATIONS[0], "0123456789abcdef", Status.ALLOWED, "", 0, now_ms()))

    def left() -> int:
        return len(run("audit", "list", "--json").lines())

    assert run("audit", "prune", "--before", "2024-10-31").out == "dropped nothing: nothing is so old\n"
    assert left() == 3
    october = {"dropped": ["authorization_audit_2024_10"], "rows": 0, "files": []}
    assert run("audit", "prune", "--before", "2024-11-01", "--dry-run", "--json").json() == october
    assert left() == 3
    assert run("audit", "prune", "--before", "2024-11-01", "--json").json() == october
    assert left() == 2
    assert run("audit", "prune", "--before", "2999-01-01").out == "dropped authorization_audit_2024_11\n"
    assert left() == 1
    assert run("audit", "prune").out == "dropped nothing: nothing is so old\n"


def test_months_that_are_being_read_are_not_dropped(run: Run, in_postgres: str, record: Record) -> None:
    record(decision(1))

    async def read_meanwhile() -> Any:
        reader = await asyncpg.connect(in_postgres)
        async with reader.transaction():
            await reader.execute("SELECT FROM authorization_audit")
            result = await asyncio.to_thread(run, "audit", "prune", "--before", "2025-01-01")
        await reader.close()
        return result

    result = asyncio.run(read_meanwhile())
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith("the audit is being read or changed for long, and nothing was dropped\n")


def test_rows_of_the_embedded_audit_are_dropped_once_their_requests_have_ended(
    run: Run, database: None, record: Record, finish: Finish
) -> None:
    decisions = [decision(number) for number in range(5)]
    record(*decisions)
    late = to_iso(START + 4000)
    assert run("audit", "prune", "--before", late).out == "dropped nothing: nothing is so old\n"
    finish(*decisions[:2], *decisions[3:])
    assert run("audit", "prune", "--before", late, "--dry-run", "--json").json()["rows"] == 3
    assert run("audit", "prune", "--before", late, "--json").json() == {"dropped": [], "rows": 3, "files": []}
    assert [line["timestamp"] for line in run("audit", "list", "--json").lines()] == [START + 4000, START + 2000]


def test_without_an_age_prune_must_be_told_one(run: Run, database: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARGEGATE_AUDIT__RETENTION_MS", "0")
    assert run("audit", "prune").code == 2
    assert run("audit", "prune", "--before", "2020-01-01").code == 0


def test_rotate_waits_while_another_process_works_on_the_files(run: Run, folder: Path) -> None:
    log = folder / "authorization_audit.log"
    row = f"{to_iso(START)},{decision(1).request_id},{STATIONS[0]},0123456789abcdef,allowed,,1\n"
    log.write_text(f"{','.join(AUDIT_COLUMNS)}\n{row}")
    with ExitStack() as stack:
        stack.enter_context(LogFiles(log).locked())
        release = threading.Timer(1, stack.pop_all().close)
        release.start()
        assert [line["file"] for line in run("audit", "rotate", "--json").lines()] == [log.name]
        release.join()
