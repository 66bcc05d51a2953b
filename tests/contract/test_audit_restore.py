"""What `chargegate audit restore` brings back: all rows of the log's files, whoever renamed them, or a line that says
what it could not."""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import os
import select
import shutil
import sqlite3
import subprocess
import threading
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.conftest import Service

HEADER = "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms\n"
Audit = "Callable[..., list[dict[str, Any]]]"


def line(minute: int, took_ms: int = 1, request_id: str = "") -> str:
    at = f"2025-03-01T00:{minute:02}:00.000Z"
    return f"{at},{request_id or uuid.uuid4()},{uuid.uuid4()},0123456789abcdef,allowed,,{took_ms}\n"


def written(path: Path, *lines: str) -> set[str]:
    """Make a log of these lines; their request ids."""
    path.write_text(HEADER + "".join(lines))
    return {each.split(",")[1] for each in lines}


def restore(command: str, service: Service, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    done = service.run(command, "audit", "restore", *arguments, "--json")
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (1 if done.returncode else 0), done.stderr
    return done.returncode, [json.loads(each) for each in done.stdout.splitlines()], done.stderr


@pytest.fixture
def stopped(service: Callable[..., Service]) -> Service:
    return service(started=False)


def test_the_database_compares_numbers_as_numbers(stopped: Service, command: str) -> None:
    written(stopped.csv_file, *(line(took, took) for took in (3, 7, 12, 50, 51)), line(55, 30000))
    assert restore(command, stopped, "--database", "march.db")[:2] == (0, [{"rows": 6, "to": "march.db"}])
    with contextlib.closing(sqlite3.connect(stopped.folder / "march.db")) as database:

        def ask(query: str) -> Any:
            return database.execute(query.replace("TABLE", "authorization_audit")).fetchall()

        assert ask("SELECT max(processing_time_ms), min(processing_time_ms) FROM TABLE") == [(30000, 3)]
        assert ask("SELECT count(*) FROM TABLE WHERE processing_time_ms > 50") == [(2,)]
        assert ask("SELECT DISTINCT typeof(timestamp), typeof(processing_time_ms) FROM TABLE") == [("integer",) * 2]
        first = ask("SELECT min(timestamp), strftime('%Y-%m-%d %H:%M', min(timestamp) / 1000, 'unixepoch') FROM TABLE")
        assert first == [(1740787380000, "2025-03-01 00:03")]
        station = ask("SELECT station_id FROM TABLE LIMIT 1")[0][0]
        assert ask(f"SELECT count(*) FROM TABLE WHERE station_id = '{station.upper()}'") == [(1,)]


def test_the_database_has_the_columns_of_the_service_s_own(stopped: Service, command: str) -> None:
    written(stopped.csv_file, line(1))
    restore(command, stopped, "--database", "march.db")
    stopped.start()
    assert stopped.stop() == 0

    def columns(path: Path) -> dict[str, str]:
        with contextlib.closing(sqlite3.connect(path)) as database:
            found = database.execute("PRAGMA table_info(authorization_audit)").fetchall()
        return {name: kind for _, name, kind, *_ in found if name != "sequence"}

    assert columns(stopped.folder / "march.db") == columns(stopped.data / "chargegate.db")


def test_a_field_that_was_made_harmless_for_spreadsheets_is_itself_again(stopped: Service, command: str) -> None:
    formula = '2025-03-01T00:01:00.000Z,"\'=1+1","\'-x",0123456789abcdef,invalid,malformed_request,0\n'
    stopped.csv_file.write_text(HEADER + formula)
    (row,) = restore(command, stopped)[1]
    assert (row["request_id"], row["station_id"]) == ("=1+1", "-x")
    restore(command, stopped, "--database", "march.db")
    with contextlib.closing(sqlite3.connect(stopped.folder / "march.db")) as database:
        assert database.execute("SELECT request_id, station_id FROM authorization_audit").fetchone() == ("=1+1", "-x")
    restore(command, stopped, "--output", "march.csv")
    assert (stopped.folder / "march.csv").read_text() == HEADER + formula


def compressed_by(pack: Callable[[bytes], bytes]) -> Callable[[Path, str], None]:
    def compress(path: Path, ending: str) -> None:
        path.with_name(path.name + ending).write_bytes(pack(path.read_bytes()))
        path.unlink()

    return compress


@pytest.mark.parametrize(
    "name",
    [
        "authorization_audit.log.1",
        "authorization_audit.log.2.gz",
        "authorization_audit.log-20260131",
        "authorization_audit.log-20260131-1769817600.gz",
        "authorization_audit-20260131.log",
        "authorization_audit.3.log.gz",
        "authorization_audit_shard_7.log.1",
        "authorization_audit_shard_7.log.4.gz",
        "authorization_audit_shard_12-20260131.log",
        "authorization_audit.log.1.zst",
        "authorization_audit.log.old",
    ],
)
def test_files_that_an_outside_rotation_named_are_read(stopped: Service, command: str, name: str) -> None:
    from backports import zstd

    ids = written(stopped.csv_file, line(3), line(4))
    plain = stopped.folder / name.removesuffix(".gz").removesuffix(".zst")
    ids |= written(plain, line(1), line(2))
    if name.endswith(".gz"):
        compressed_by(gzip.compress)(plain, ".gz")
    elif name.endswith(".zst"):
        compressed_by(zstd.compress)(plain, ".zst")
    code, rows, _ = restore(command, stopped)
    assert code == 0
    assert Counter(row["request_id"] for row in rows) == Counter(ids)
    assert [row["timestamp"][14:16] for row in rows] == ["01", "02", "03", "04"]


def test_rows_that_an_outside_rotation_has_copied_are_given_once(stopped: Service, command: str) -> None:
    """While logrotate compresses, both files are there; with copytruncate the log and its copy are, too."""
    ids = written(stopped.csv_file, line(3), line(4))
    shutil.copy(stopped.csv_file, stopped.folder / "authorization_audit.log.1")
    (stopped.folder / "authorization_audit.log.1.gz").write_bytes(gzip.compress(stopped.csv_file.read_bytes()))
    code, rows, _ = restore(command, stopped)
    assert code == 0
    assert Counter(row["request_id"] for row in rows) == Counter(ids)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("authorization_audit.log.1.xz", lzma.compress((HEADER + line(1)).encode())),
        ("authorization_audit.log.2.gz", gzip.compress((HEADER + line(1) * 50).encode())[:-20]),
        ("authorization_audit_shard_3.log.1", b"of somebody else"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_restored(
    stopped: Service, command: str, name: str, content: bytes
) -> None:
    ids = written(stopped.csv_file, line(3), line(4))
    (stopped.folder / name).write_bytes(content)
    code, rows, err = restore(command, stopped)
    assert code == 1
    assert name in err
    assert ids <= {row["request_id"] for row in rows}
    code, (summary,), err = restore(command, stopped, "--output", "march.csv")
    assert (code, summary["to"]) == (1, "march.csv")
    assert name in err


def test_verify_finds_the_rest_of_a_shard_that_was_given_up(
    service: Callable[..., Service], command: str, audit: Callable[..., list[dict[str, Any]]], receiver: Any
) -> None:
    """Its file was renamed by somebody, and there is none of its own name any more."""
    running = service(audit__chain=True, audit__csv_shards=8)
    asked = [running.ask(receiver.url()) for _ in range(30)]
    for each in asked:
        running.finished(each)
    assert running.stop() == 0
    running.configure(**{"audit.chain": True})
    for path in running.folder.glob("authorization_audit_shard_*.log"):
        path.rename(path.with_name(f"{path.name}.1"))
    (verified,) = audit(running, "verify")
    assert verified["problems"] == []
    assert verified["rows"] == 30
    _, rows, _ = restore(command, running)
    assert Counter(row["request_id"] for row in rows) == Counter(each.request_id for each in asked)


@pytest.mark.parametrize(
    "bad",
    [
        "2025-03-01T00:09:00.000Z,a,b,c,allowed,,never\n",
        "2025-03-01T00:09:00.000Z,a,b\n",
        "2025-99-99T00:09:00.000Z,a,b,c,allowed,,1\n",
        "2025-03-01T00:09:00.000Z,a,b,c,allowed,,99999999999999999999\n",
        "something else\n",
    ],
)
def test_a_line_that_is_no_row_is_named_and_the_rest_is_restored(stopped: Service, command: str, bad: str) -> None:
    ids = written(stopped.csv_file, line(3)) | {(last := line(4)).split(",")[1]}
    with stopped.csv_file.open("a") as log:
        log.write(bad + last)
    code, rows, err = restore(command, stopped)
    assert code == 1
    assert "authorization_audit.log: line 3 " in err
    assert {row["request_id"] for row in rows} == ids
    assert restore(command, stopped, "--database", "march.db")[0] == 1
    with contextlib.closing(sqlite3.connect(stopped.folder / "march.db")) as database:
        assert database.execute("SELECT count(*) FROM authorization_audit").fetchone() == (2,)


def test_a_line_that_is_being_written_is_no_fault(stopped: Service, command: str) -> None:
    ids = written(stopped.csv_file, line(3))
    with stopped.csv_file.open("a") as log:
        log.write(line(4)[:-3])
    code, rows, _ = restore(command, stopped)
    assert (code, {row["request_id"] for row in rows}) == (0, ids)


def test_a_database_with_another_table_is_refused_and_stays_as_it_is(stopped: Service, command: str) -> None:
    stopped.start()
    assert stopped.stop() == 0
    written(stopped.csv_file, line(1))
    copy = stopped.folder / "copy.db"
    shutil.copy(stopped.data / "chargegate.db", copy)
    text = stopped.folder / "text.db"
    with contextlib.closing(sqlite3.connect(text)) as database:
        database.execute(f"CREATE TABLE authorization_audit ({HEADER.strip()})")
    other = stopped.folder / "other.db"
    other.write_bytes(b"no database at all, and long enough to be looked at" * 50)
    for path in (copy, text, other):
        before = path.read_bytes()
        code, _, err = restore(command, stopped, "--database", path.name)
        assert code == 1
        assert path.name in err
        assert path.read_bytes() == before
    for nowhere in ("/dev/full", ".", "missing/march.db"):
        code, _, err = restore(command, stopped, "--database", nowhere)
        assert code == 1
        assert nowhere in err


@pytest.mark.parametrize("target", ["--database", "--output"])
def test_a_full_disk_leaves_no_part_of_a_restore(
    stopped: Service, audit: Callable[..., list[dict[str, Any]]], target: str
) -> None:
    written(stopped.csv_file, *(line(n % 60) for n in range(3000)))
    before = sorted(path.name for path in stopped.folder.iterdir())
    audit(stopped, "restore", target, "march", code=1, largest_file=50_000)
    assert sorted({path.name for path in stopped.folder.iterdir()} - {"data"}) == sorted({*before} - {"data"})
    (done,) = audit(stopped, "restore", target, "march")
    assert done["rows"] == 3000


def test_nothing_is_missing_while_files_are_renamed_and_compressed(
    service: Callable[..., Service], receiver: Any, command: str, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    running = service(audit__csv_shards=3)
    ended = threading.Event()
    ids: set[str] = set()

    def keep_rotating() -> None:
        while not ended.is_set():
            audit(running, "rotate")
            audit(running, "compress", "--all")

    rotating = threading.Thread(target=keep_rotating)
    rotating.start()
    try:
        for _ in range(8):
            asked = [running.ask(receiver.url()) for _ in range(5)]
            ids |= {each.request_id for each in asked if running.finished(each)}
            known = set(ids)
            code, rows, err = restore(command, running)
            assert code == 0, err
            assert Counter(row["request_id"] for row in rows) == Counter(known)
    finally:
        ended.set()
        rotating.join()


def many(stopped: Service, count: int) -> set[str]:
    """Files that an outside rotation has named, of which number 1 is the newest."""
    ids = written(stopped.csv_file, line(59))
    for number in range(1, count + 1):
        path = stopped.folder / f"authorization_audit.log.{number}"
        ids |= written(path, *(line(58 - number % 50) for _ in range(10)))
        os.utime(path, (1_700_000_000 - number, 1_700_000_000 - number))
    return ids


def test_more_files_than_a_process_may_open(stopped: Service, command: str) -> None:
    """A year of daily files, for example, with some shards."""
    ids = many(stopped, 300)
    few = ["sh", "-c", 'ulimit -n 250; exec "$@"', "sh"]
    done = stopped.run(*few, command, "audit", "restore")
    assert done.returncode == 0, done.stderr
    assert Counter(each.split(",")[1] for each in done.stdout.splitlines()[1:]) == Counter(ids)


def test_many_files_that_are_renamed_and_compressed_while_they_are_read(stopped: Service, command: str) -> None:
    """It waits until somebody reads what it writes, and meanwhile most files get other names."""
    ids = many(stopped, 300)
    running = subprocess.Popen(
        [command, "audit", "restore"], cwd=stopped.folder, env=stopped._environ, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert select.select([running.stdout], [], [], 60)[0]
    for number in range(300, 0, -1):
        path = stopped.folder / f"authorization_audit.log.{number}"
        later = path.with_name(f"authorization_audit.log.{number + 1}")
        path.rename(later)
        if number % 3 == 0:
            compressed_by(gzip.compress)(later, ".gz")
    text = running.communicate(timeout=120)[0]
    assert running.returncode == 0
    assert Counter(each.split(",")[1] for each in text.splitlines()[1:]) == Counter(ids)
