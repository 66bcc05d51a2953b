"""With ``audit.chain`` nobody changes the CSV log unnoticed: ``chargegate audit verify`` names the row."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sqlite3
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

import outside

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.conftest import Service, Site

HEADER = "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms,chain"


def run(command: str, service: Service, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = service.run(command, "audit", *arguments, "--json")
    return done.returncode, json.loads(done.stdout.splitlines()[0]) if done.stdout.strip() else {"error": done.stderr}


def linked(told: dict[str, Any]) -> bool:
    """Whether every row has its link. A database whose first rows have none yet has no chain to tell of."""
    return "embedded" in told["database"] and told["database"]["embedded"]["waiting"] == 0


def decided(service: Service, receiver: Site, count: int) -> list[str]:
    """One after another, so that the order is known."""
    found = []
    for _ in range(count):
        asked = service.ask(receiver.url())
        service.finished(asked)
        found.append(asked.request_id)
    return found


@pytest.fixture(scope="module")
def written(
    shared_service: Callable[..., Service], receiver: Site, command: str
) -> tuple[Service, list[str], list[Path]]:
    """A stopped service with three files of the log, of four rows each: compressed, rotated, and not."""
    service = shared_service(audit__chain=True)
    ids = []
    for turn in range(3):
        ids += decided(service, receiver, 4)
        if turn < 2:
            assert run(command, service, "rotate")[0] == 0
        if turn < 1:
            assert run(command, service, "compress", "--all")[0] == 0
        if turn == 1:
            service.kill()  # the chain goes on after it
            service.start()
    assert service.stop() == 0
    files = sorted(service.folder.glob("authorization_audit.log.*"), key=lambda path: path.name)
    return service, ids, [*files, service.csv_file]


@pytest.fixture
def found(
    written: tuple[Service, list[str], list[Path]], tmp_path: Path, command: str
) -> Callable[[Callable[[Path], None]], dict[str, Any]]:
    """What verify finds after somebody did something to the rotated file (rows 5 to 8) or to the log (9 to 12)."""
    service, _, files = written

    def found(tamper: Callable[[Path], None], file: int = 1) -> dict[str, Any]:
        kept = tmp_path / "kept"
        shutil.copytree(service.folder, kept)
        try:
            tamper(files[file])
            code, told = run(command, service, "verify")
            assert code == 1, told
            assert told["problems"]
            return told
        finally:
            for path in service.folder.glob("authorization_audit*"):
                path.unlink()
            for path in kept.glob("authorization_audit*"):
                shutil.copy2(path, service.folder)

    return found


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def test_what_nobody_touched_is_as_it_was(written: tuple[Service, list[str], list[Path]], command: str) -> None:
    service, ids, files = written
    assert lines_of(files[2])[0] == HEADER + "\n"
    assert files[0].name.endswith(".zst")
    code, told = run(command, service, "verify")
    assert (code, told["problems"]) == (0, [])
    assert (told["files"], told["rows"]) == (3, 12)
    assert told["head"]["authorization_audit.log"].startswith("12-")
    assert run(command, service, "restore", "--output", "back.csv")[1]["rows"] == 12
    restored = lines_of(service.folder / "back.csv")
    assert len(restored) == 13
    assert {line.count(",") for line in restored} == {6}
    (service.folder / "back.csv").unlink()
    code, told = run(command, service, "verify", files[0].name)
    assert (code, told["rows"]) == (0, 4)
    assert len(ids) == 12


def change(path: Path) -> None:
    path.write_text(path.read_text().replace("not_allowed", "allowed", 1))


def remove(path: Path) -> None:
    lines = lines_of(path)
    path.write_text("".join(lines[:2] + lines[3:]))


def put_a_copy_between(path: Path) -> None:
    lines = lines_of(path)
    path.write_text("".join([*lines[:4], lines[1], *lines[4:]]))


def put_a_forgery_between(path: Path) -> None:
    lines = lines_of(path)
    row = lines[1].rpartition(",")[0].replace("not_allowed", "allowed")
    path.write_text("".join([*lines[:2], f"{row},6-{'0' * 32}\n", *lines[2:]]))


def move(path: Path) -> None:
    lines = lines_of(path)
    path.write_text("".join([*lines[:2], lines[3], lines[2], *lines[4:]]))


def cut_the_end_off(path: Path) -> None:
    path.write_text("".join(lines_of(path)[:-1]))


def cut_the_beginning_off(path: Path) -> None:
    lines = lines_of(path)
    path.write_text("".join([lines[0], *lines[2:]]))


def take_the_file_away(path: Path) -> None:
    path.unlink()


def drop_the_chain(path: Path) -> None:
    lines = [line.rpartition(",")[0] + "\n" for line in lines_of(path)]
    path.write_text("".join(lines))


def drop_the_chain_of_a_row(path: Path) -> None:
    lines = lines_of(path)
    path.write_text("".join([*lines[:2], lines[2].rpartition(",")[0] + "\n", *lines[3:]]))


def exchange_chains(path: Path) -> None:
    lines = [line.rpartition(",") for line in lines_of(path)]
    lines[2], lines[3] = (lines[2][0], ",", lines[3][2]), (lines[3][0], ",", lines[2][2])
    path.write_text("".join("".join(line) for line in lines))


@pytest.mark.parametrize(
    ("tamper", "file", "what", "row"),
    [
        (change, 1, "changed", 5),
        (remove, 1, "missing", 6),
        (put_a_copy_between, 1, "out_of_order", 5),
        (put_a_forgery_between, 1, "changed", 6),
        (move, 1, "out_of_order", 6),
        (cut_the_end_off, 1, "missing", 8),
        (cut_the_end_off, 2, "end_missing", 12),
        (cut_the_beginning_off, 1, "start_missing", 6),
        (take_the_file_away, 0, "start_missing", 1),
        (take_the_file_away, 1, "missing", 5),
        (take_the_file_away, 2, "end_missing", 9),
        (drop_the_chain, 1, "missing", 5),
        (drop_the_chain, 2, "end_missing", 9),
        (drop_the_chain_of_a_row, 1, "not_in_chain", None),
        (exchange_chains, 1, "out_of_order", 6),
    ],
)
def test_tampering_is_found_and_named(
    found: Callable[..., dict[str, Any]],
    written: tuple[Service, list[str], list[Path]],
    tamper: Callable[[Path], None],
    file: int,
    what: str,
    row: int | None,
) -> None:
    problems = found(tamper, file)["problems"]
    named = [problem for problem in problems if (problem["what"], problem["row"]) == (what, row)]
    assert named, problems
    if what == "changed":
        assert named[0]["request_id"] in written[1]


def test_the_chain_can_be_switched_on_and_off(service: Callable[..., Service], receiver: Site, command: str) -> None:
    running = service()
    decided(running, receiver, 2)
    for chained, count in ((True, 3), (False, 1), (True, 2)):
        running.stop()
        running.configure(**{"audit.chain": chained})
        running.start()
        decided(running, receiver, count)
    running.stop()
    code, told = run(command, running, "verify")
    assert (code, told["problems"]) == (0, [])
    assert (told["rows"], told["unchained"]) == (5, 3)


def test_another_key_verifies_nothing(
    written: tuple[Service, list[str], list[Path]], command: str, tmp_path: Path
) -> None:
    _, _, files = written
    other = tmp_path / files[2].name
    shutil.copy2(files[2], other)
    done = subprocess.run([command, "audit", "verify", other.name], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 1


CHANGES = {
    "change": ("UPDATE authorization_audit SET status = 'allowed' WHERE sequence = 5", "changed", 5),
    "remove": ("DELETE FROM authorization_audit WHERE sequence = 5", "missing", 5),
    "remove with its link": (
        "DELETE FROM authorization_audit WHERE sequence = 5; DELETE FROM audit_chain WHERE sequence = 5",
        "missing",
        6,
    ),
    "exchange": (
        (
            "UPDATE authorization_audit SET sequence = 500 WHERE sequence = 5;"
            "UPDATE authorization_audit SET sequence = 5 WHERE sequence = 6;"
            "UPDATE authorization_audit SET sequence = 6 WHERE sequence = 500"
        ),
        "changed",
        5,
    ),
    "cut the end off": (
        "DELETE FROM authorization_audit WHERE sequence > 10; DELETE FROM audit_chain WHERE sequence > 10",
        "end_missing",
        None,
    ),
    "cut the beginning off": (
        "DELETE FROM authorization_audit WHERE sequence < 4; DELETE FROM audit_chain WHERE sequence < 4",
        "missing",
        4,
    ),
    "put in between": (
        (
            "UPDATE audit_chain SET sequence = sequence + 100 WHERE sequence > 7;"
            "UPDATE authorization_audit SET sequence = sequence + 100 WHERE sequence > 7;"
            "INSERT INTO authorization_audit SELECT 50, timestamp, 'forged', station_id, driver_token_hash, 'allowed',"
            " '', 1 FROM authorization_audit WHERE sequence = 7"
        ),
        "not_in_chain",
        50,
    ),
    "forge a link": (
        (
            "UPDATE authorization_audit SET status = 'allowed' WHERE sequence = 5;"
            "UPDATE audit_chain SET mac = zeroblob(16) WHERE sequence = 5"
        ),
        "changed",
        5,
    ),
    "another time": ("UPDATE authorization_audit SET timestamp = timestamp - 1 WHERE sequence = 12", "changed", 12),
}


@pytest.mark.parametrize("how", sorted(CHANGES))
def test_rows_of_the_database_are_verified_too(
    written: tuple[Service, list[str], list[Path]], command: str, tmp_path: Path, how: str
) -> None:
    service, _, _ = written
    file = service.data / "chargegate.db"
    kept = tmp_path / "kept.db"
    code, told = run(command, service, "verify")
    assert (code, told["database"]["embedded"]["rows"]) == (0, 12)
    statements, what, sequence = CHANGES[how]
    with contextlib.closing(sqlite3.connect(file)) as database, contextlib.closing(sqlite3.connect(kept)) as copy:
        database.backup(copy)
        database.executescript(statements)
    try:
        code, told = run(command, service, "verify")
        problems = told["database"]["embedded"]["problems"]
        assert code == 1
        assert (what, sequence) in {(problem["what"], problem["sequence"]) for problem in problems}, problems
    finally:
        with contextlib.closing(sqlite3.connect(kept)) as copy, contextlib.closing(sqlite3.connect(file)) as database:
            copy.backup(database)


def test_what_retention_drops_was_not_removed_by_anybody(
    service: Callable[..., Service], receiver: Site, command: str
) -> None:
    """Rows and files go, and the rest begins where it was signed; a second time too."""
    running = service(audit__chain=True)
    for _ in range(2):
        decided(running, receiver, 3)
        assert run(command, running, "rotate")[0] == 0
        before = running.client.get("/api/v1/decisions").json()["items"][1]["timestamp"]
        decided(running, receiver, 2)
        outside.eventually(lambda: linked(run(command, running, "verify")[1]))
        moment = before if isinstance(before, str) else datetime.fromtimestamp(before / 1000, UTC).isoformat()
        code, told = run(command, running, "prune", "--before", moment)
        assert code == 0
        assert told["rows"] > 0
        code, told = run(command, running, "verify")
        assert (code, told["problems"], told["database"]["embedded"]["problems"]) == (0, [], [])
    assert running.stop() == 0
    assert run(command, running, "verify")[0] == 0


def test_rows_from_before_the_chain_and_after_a_kill_are_in_it(
    service: Callable[..., Service], receiver: Site, command: str
) -> None:
    running = service()
    decided(running, receiver, 2)
    running.stop()
    running.configure(**{"audit.chain": True})
    running.start()
    decided(running, receiver, 2)
    running.kill()
    running.start()
    decided(running, receiver, 1)
    assert running.stop() == 0
    code, told = run(command, running, "verify")
    assert (code, told["database"]["embedded"]["rows"], told["unchained"]) == (0, 5, 2)


def test_a_metric_says_what_the_last_verification_found(
    service: Callable[..., Service], receiver: Site, command: str
) -> None:
    running = service(audit__chain=True, audit__rotate_after_ms=4000)  # it looks each second
    decided(running, receiver, 3)
    assert run(command, running, "rotate")[0] == 0
    assert math.isnan(running.metrics()["audit_chain_intact"])

    def verified(*, intact: bool) -> None:
        assert run(command, running, "verify")[0] == int(not intact)
        outside.eventually(lambda: running.metrics()["audit_chain_intact"] == int(intact), 60)

    verified(intact=True)
    file = next(running.folder.glob("authorization_audit.log.*"))
    text = file.read_text()
    file.write_text(text.replace(",not_allowed,", ",allowed,"))
    assert file.read_text() != text
    verified(intact=False)
    file.write_text(text)
    verified(intact=True)
    assert running.stop() == 0
    running.start()
    outside.eventually(lambda: running.metrics()["audit_chain_intact"] == 1, 60)
