"""What somebody with access to the files and the database does to the audit is found, and stays found; and nothing that
the service does by itself is taken for it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import threading
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import outside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.contract.conftest import Service, Site

PLAIN = "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms\n"
STATION = "0a1b2c3d-0000-4000-8000-00000000000a"
SECOND = {"audit__chain": True, "audit__rotate_after_ms": 4_000_000, "audit__compress_after_ms": 4000}
"""The chain, and a look at the files each second; nothing is rotated meanwhile."""


def audit(command: str, service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return service.run(command, "audit", *arguments)


def verify(command: str, service: Service) -> tuple[int, set[str], dict[str, Any]]:
    """How it ended, which kinds of problems it named, and all that it said."""
    done = audit(command, service, "verify", "--json")
    assert done.stdout.strip(), done.stderr
    told = json.loads(done.stdout.splitlines()[0])
    rows = [problem for each in told["database"].values() for problem in each["problems"]]
    return done.returncode, {problem["what"] for problem in [*told["problems"], *rows]}, told


def decided(service: Service, receiver: Site, count: int) -> list[str]:
    asked = [service.ask(receiver.url()) for _ in range(count)]
    for each in asked:
        service.finished(each)
    return [each.request_id for each in asked]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def cut(path: Path, count: int = 5) -> None:
    """Where it lies, as the inode stays."""
    text = lines(path)
    os.truncate(path, len("".join(text[:-count])))


def signed(service: Service, log: str, number: int) -> None:
    """The service has signed that the log has so many rows."""

    def told() -> bool:
        path = service.data / "audit.heads"
        found = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        return any((each["kind"], each["log"], each["number"]) == ("head", log, number) for each in found)

    outside.eventually(told, 90)


def sql(service: Service, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(service.data / "chargegate.db", timeout=20)) as database, database:
        for statement in statements:
            database.execute(statement)


def counted(service: Service) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in service.folder.glob("authorization_audit*"):
        found.update(line.split(",")[1] for line in lines(path)[1:] if line.count(",") >= 6)
    return found


def intact(service: Service, value: int) -> None:
    outside.eventually(lambda: service.metrics().get("audit_chain_intact") == value, 90)


@pytest.mark.parametrize("stopped", [False, True])
def test_an_end_that_was_cut_off_stays_known(
    service: Callable[..., Service], receiver: Site, command: str, *, stopped: bool
) -> None:
    """Its lines are there again, and that they were not is named, by the service and by each verification."""
    running = service(**SECOND)
    ids = decided(running, receiver, 20)
    signed(running, "authorization_audit.log", 20)
    if stopped:
        assert running.stop() == 0
    cut(running.csv_file)
    code, kinds, _ = verify(command, running)
    assert code == 1
    assert "end_missing" in kinds
    if stopped:
        running.start()
    ids += decided(running, receiver, 10)
    signed(running, "authorization_audit.log", 30)
    for _ in range(2):
        intact(running, 0)
        code, kinds, told = verify(command, running)
        assert code == 1
        assert "end_missing" in kinds, told
        assert running.stop() == 0
        assert counted(running) == Counter(ids)
        assert verify(command, running)[0] == 1
        running.start()
    assert "lost its end" in running.log


def test_an_end_that_was_cut_off_and_forged_stays_known(
    service: Callable[..., Service], receiver: Site, command: str
) -> None:
    """The file is another one afterwards, so that the service does not take it for its own."""
    running = service(**SECOND)
    decided(running, receiver, 12)
    signed(running, "authorization_audit.log", 12)
    assert running.stop() == 0
    text = lines(running.csv_file)
    other = running.folder / "other"
    other.write_text("".join(text[:-4]))
    other.replace(running.csv_file)
    running.start()
    decided(running, receiver, 9)
    intact(running, 0)
    assert {"end_missing", "changed"} <= verify(command, running)[1]
    assert running.stop() == 0
    assert verify(command, running)[0] == 1


def test_rows_that_were_cut_off_the_database_stay_known(
    service: Callable[..., Service], receiver: Site, command: str
) -> None:
    running = service(**SECOND)
    decided(running, receiver, 20)
    assert running.stop() == 0
    assert verify(command, running)[0] == 0
    tables = ("authorization_audit", "audit_chain")
    sql(running, *(f"DELETE FROM {table} WHERE sequence > 10" for table in tables))
    code, kinds, told = verify(command, running)
    assert code == 1
    assert "end_missing" in kinds
    running.start()
    decided(running, receiver, 15)
    intact(running, 0)
    for _ in range(2):
        code, kinds, told = verify(command, running)
        assert code == 1
        found = {problem["what"] for problem in told["database"]["embedded"]["problems"]}
        assert "end_missing" in found
        running.restart()


def test_a_chain_of_which_all_links_were_removed_is_missed(
    service: Callable[..., Service], receiver: Site, command: str
) -> None:
    running = service(audit__chain=True)
    decided(running, receiver, 5)
    assert running.stop() == 0
    sql(running, "DELETE FROM audit_chain")
    code, kinds, _ = verify(command, running)
    assert (code, "end_missing" in kinds) == (1, True)


@pytest.fixture(scope="module")
def written(shared_service: Callable[..., Service], receiver: Site, command: str) -> Service:
    """A stopped service that had the chain from the beginning on, with shards and daily exports."""
    service = shared_service(audit__chain=True, audit__csv_shards=3, audit__export_dir="exports")
    decided(service, receiver, 40)
    assert audit(command, service, "rotate").returncode == 0
    decided(service, receiver, 40)
    assert audit(command, service, "export", "--all").returncode == 0
    assert service.stop() == 0
    code, kinds, told = verify(command, service)
    assert (code, kinds, told["unchained"]) == (0, set(), 0)
    return service


@pytest.fixture
def copied(written: Service, tmp_path: Path) -> Iterator[Service]:
    """The same, for a test of its own."""
    shutil.copytree(written.folder, tmp_path / "copy")
    kept, written.folder, written.data = (written.folder, written.data), tmp_path / "copy", tmp_path / "copy" / "data"
    yield written
    written.folder, written.data = kept


def forged(at: str) -> str:
    return PLAIN + f"{at},{uuid.uuid4()},{STATION},0123456789abcdef,allowed,,1\n"


@pytest.mark.parametrize(
    "name",
    [
        "authorization_audit_shard_0.log.20261126T104609.000Z",
        "authorization_audit_shard_1.log.20261126T104609.000Z-2",
        "authorization_audit.log.20261126T104609.000Z",
        "authorization_audit_shard_77.log.20261126T104609.000Z",
        "authorization_audit_shard_78.log",
        "authorization_audit_shard_0.log.1",
    ],
)
@pytest.mark.parametrize("at", ["2099-01-01T00:00:00.000Z", "2020-01-01T00:00:00.000Z"])
def test_a_file_without_the_chain_is_named_where_there_was_always_one(
    copied: Service, command: str, name: str, at: str
) -> None:
    copied.folder.joinpath(name).write_text(forged(at))
    code, kinds, told = verify(command, copied)
    assert code == 1
    assert "not_in_chain" in kinds
    assert {problem["file"] for problem in told["problems"]} == {name}


@pytest.mark.parametrize("day", ["2020-01-01", "2099-01-01"])
def test_a_daily_export_that_the_service_did_not_make_is_named(copied: Service, command: str, day: str) -> None:
    from backports import zstd

    name = f"authorization_audit_rows.{day}.csv.zst"
    copied.folder.joinpath("exports", name).write_bytes(zstd.compress(forged(f"{day}T01:00:00.000Z").encode()))
    code, kinds, told = verify(command, copied)
    assert (code, kinds) == (1, {"not_in_chain"})
    assert told["problems"][0]["file"] == name


INSERTED = (
    "INSERT INTO authorization_audit SELECT {}, timestamp, 'forged', station_id, driver_token_hash, 'allowed', '', 1"
    " FROM authorization_audit WHERE sequence = 7"
)


@pytest.mark.parametrize("number", [-5, 0, -(2**60)])
def test_a_row_with_a_number_outside_of_the_chain_is_named(copied: Service, command: str, number: int) -> None:
    sql(copied, INSERTED.format(number))
    code, kinds, told = verify(command, copied)
    assert (code, kinds) == (1, {"not_in_chain"})
    assert told["database"]["embedded"]["problems"][0]["sequence"] == number


def test_a_row_below_the_first_link_is_named(copied: Service, command: str) -> None:
    for table in ("authorization_audit", "audit_chain"):
        sql(copied, f"DELETE FROM {table} WHERE sequence = 1")
    sql(copied, INSERTED.format(1), "UPDATE audit_chain SET number = 1 WHERE sequence = 2")
    assert "not_in_chain" in verify(command, copied)[1]


def test_rows_without_a_link_are_told(copied: Service, command: str) -> None:
    sql(copied, INSERTED.format(5000))
    done = audit(command, copied, "verify")
    assert "1 without a link" in done.stdout


def without(path: Path, log: str) -> None:
    kept = [line for line in path.read_text().splitlines(keepends=True) if f'"{log}"' not in line]
    path.write_text("".join(kept))


SHARD = "authorization_audit_shard_1.log"
MADE_AWAY: dict[str, Callable[[Service], None]] = {
    "the file": lambda service: (service.data / "audit.heads").unlink(),
    "a log's lines": lambda service: without(service.data / "audit.heads", SHARD),
    "the database's copy": lambda service: sql(service, f"DELETE FROM service_facts WHERE name LIKE '%{SHARD}'"),
    "both": lambda service: (
        without(service.data / "audit.heads", SHARD),
        sql(service, f"DELETE FROM service_facts WHERE name LIKE '%{SHARD}'"),
    ),
    "what is said of rows": lambda service: sql(
        service, "DELETE FROM service_facts WHERE name LIKE 'audit chain head %'"
    ),
}


@pytest.mark.parametrize("how", sorted(MADE_AWAY))
@pytest.mark.parametrize("cut_off", [False, True])
def test_a_statement_that_was_made_away_is_missed(copied: Service, command: str, how: str, *, cut_off: bool) -> None:
    if cut_off:
        cut(copied.folder / SHARD, 1)
    MADE_AWAY[how](copied)
    code, kinds, _ = verify(command, copied)
    assert code == 1
    assert "statement_missing" in kinds
    if cut_off and how != "both":
        assert "end_missing" in kinds


@pytest.mark.parametrize("place", ["the file", "the copy", "of rows"])
def test_a_statement_that_was_changed_is_named(copied: Service, command: str, place: str) -> None:
    if place == "the file":
        path = copied.data / "audit.heads"
        path.write_bytes(path.read_bytes().replace(b'"kind":"head"', b'"kind":"start"', 1))
    else:
        name = f"%{SHARD}" if place == "the copy" else "audit chain head %"
        sql(copied, f"UPDATE service_facts SET value = replace(value, 'head', 'start') WHERE name LIKE '{name}'")
    code, kinds, _ = verify(command, copied)
    assert (code, "statement_changed" in kinds) == (1, True)


def test_a_lost_file_of_statements_comes_back_from_the_database(
    service: Callable[..., Service], receiver: Site, command: str
) -> None:
    running = service(**SECOND)
    decided(running, receiver, 6)
    assert running.stop() == 0
    (running.data / "audit.heads").unlink()
    cut(running.csv_file, 2)
    running.start()
    decided(running, receiver, 2)
    intact(running, 0)
    assert "end_missing" in verify(command, running)[1]


@pytest.mark.parametrize("step", ["rotate", "compress", "prune"])
def test_nothing_that_the_service_does_meanwhile_is_taken_for_tampering(
    service: Callable[..., Service], receiver: Site, command: str, step: str
) -> None:
    """Files get other names and go, over and over, while they are verified."""
    running = service(audit__chain=True)
    for _ in range(6):
        decided(running, receiver, 4)
        assert audit(command, running, "rotate").returncode == 0
    stop = threading.Event()
    failures: list[str] = []

    def live() -> None:
        while not stop.is_set():
            decided(running, receiver, 2)
            for each in ("rotate", "compress") if step != "rotate" else ("rotate",):
                done = audit(command, running, each, *(["--all"] if each == "compress" else []))
                if done.returncode:
                    failures.append(done.stderr)
            if step == "prune":
                done = audit(command, running, "prune", "--before", "2099-01-01")
                if done.returncode:
                    failures.append(done.stderr)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        for _ in range(6):
            code, kinds, told = verify(command, running)
            assert (code, kinds) == (0, set()), told
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_files_go_in_any_order_where_it_is_signed(
    service: Callable[..., Service], receiver: Site, command: str
) -> None:
    """As under a clock that was set back: the newer file has the older name."""
    running = service(audit__chain=True)
    for _ in range(3):
        decided(running, receiver, 3)
        assert audit(command, running, "rotate").returncode == 0
    decided(running, receiver, 2)
    first, second, third = sorted(running.folder.glob("authorization_audit.log.*"))
    second.rename(running.folder / "authorization_audit.log.20200101T000000.000Z")
    assert audit(command, running, "prune", "--before", "2021-01-01").returncode == 0
    assert not second.exists()
    assert first.exists()
    assert verify(command, running)[:2] == (0, set())
    third.rename(running.folder / "kept")
    assert "missing" in verify(command, running)[1]
    (running.folder / "kept").rename(third)
    first.rename(running.folder / "authorization_audit.log.20200102T000000.000Z")
    assert audit(command, running, "prune", "--before", "2021-01-01").returncode == 0
    assert verify(command, running)[:2] == (0, set())
    assert running.stop() == 0
    third.unlink()
    assert verify(command, running)[0] == 1


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_lines_that_are_cut_off_while_it_runs_are_written_again(
    service: Callable[..., Service], receiver: Site, *, chain: bool, shards: int
) -> None:
    """In whole lines and within one; and of a file beside which there is a rotated one."""
    running = service(audit__chain=chain, audit__csv_shards=shards)
    ids = decided(running, receiver, 10)
    files = sorted(running.folder.glob("authorization_audit*.log"))
    if shards > 1:
        files = [path for path in files if "shard" in path.name]
    for take in (3, 1):
        for path in files:
            size = path.stat().st_size
            os.truncate(path, min(size, max(40, size - 150 * take)))  # never longer: it may be empty for a moment
        ids += decided(running, receiver, 12)
    if shards == 1:  # a shard of which nothing was decided since gets its lines with the start
        outside.eventually(lambda: counted(running) == Counter(ids), 60)
    running.restart()
    assert running.stop() == 0
    assert counted(running) == Counter(ids)
