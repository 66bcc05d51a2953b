"""Audit rows are exported from the database, a compressed CSV file a day, and each is in one file whatever happens."""

from __future__ import annotations

import contextlib
import csv
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore

import outside
from servers.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

HEADER = "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms"
KILL_AT_LINE = Path(__file__).with_name("kill_at_line.py")
TESTS = str(Path(__file__).parents[1])


def rows(content: bytes) -> list[list[str]]:
    from backports import zstd

    text = zstd.decompress(content).decode()
    assert text.endswith("\n")
    header, *found = csv.reader(text.splitlines(), strict=True)
    assert ",".join(header) in (HEADER, HEADER + ",chain")
    assert all(len(row) == len(header) for row in found)
    return found


def exported(service: Service) -> Counter[str]:
    """The request ids in all files."""
    files = (service.folder / "exports").glob("authorization_audit_rows.*")
    return Counter(row[1] for file in files for row in rows(file.read_bytes()))


def leftovers(service: Service) -> list[str]:
    names = {path.name for path in (service.folder / "exports").iterdir()}
    return sorted(name for name in names if name.startswith(".authorization_audit_rows.") and name[-6:] == ".draft")


def day(later: int = 0) -> str:
    return f"{datetime.now(UTC) + timedelta(days=later):%Y-%m-%d}"


def age(service: Service, days: int, which: str = "true") -> None:
    """Decisions of a stopped service were made so long ago."""
    with contextlib.closing(sqlite3.connect(service.data / "chargegate.db")) as database, database:
        database.execute(f"UPDATE authorization_audit SET timestamp = timestamp - {days * 86_400_000} WHERE {which}")


def test_each_day_has_a_file_and_each_decision_is_in_one(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    running = service(audit__export_dir="exports")
    ids = running.decided(receiver, 4)
    running.stop()
    age(running, 3, "sequence = 1")
    age(running, 1, "sequence IN (2, 3)")
    running.start()
    names = [f"authorization_audit_rows.{day(back)}.csv.zst" for back in (-3, -1)]
    assert [each["file"] for each in audit(running, "export", "--dry-run", "--at", day() + "T02:00")] == names
    made = audit(running, "export", "--at", day() + "T02:00")
    assert [(each["step"], each["file"], each["to"]) for each in made] == [
        ("export", day(-3), names[0]),
        ("export", day(-1), names[1]),
    ]
    assert audit(running, "export", "--at", day() + "T02:00") == []
    assert [len(rows((running.folder / "exports" / name).read_bytes())) for name in names] == [1, 2]
    assert sum(exported(running).values()) == 3
    audit(running, "export", "--all")
    assert exported(running) == Counter(ids)
    ids |= running.decided(receiver, 2)
    (more,) = audit(running, "export", "--all")
    assert more["to"] == f"authorization_audit_rows.{day()}-4.csv.zst"
    assert exported(running) == Counter(ids)
    states = Counter(place["state"] for place in audit(running, "archive", "list"))
    assert states == {"exported": 4, "written": 1}


def test_a_row_of_a_day_that_is_exported_already_is_in_a_later_file(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    """Its clock was wrong, or its commit came late."""
    running = service(audit__export_dir="exports")
    ids = running.decided(receiver, 2)
    running.stop()
    age(running, 1)
    running.start()
    audit(running, "export", "--at", day() + "T12:00")
    ids |= running.decided(receiver, 3)
    running.stop()
    age(running, 5, "sequence IN (3, 4)")
    running.start()
    assert audit(running, "export", "--at", day() + "T12:00") == []  # they wait for the next day
    audit(running, "export", "--at", day(1) + "T12:00")
    assert exported(running) == Counter(ids)


def test_rows_stay_in_the_database_until_they_are_exported(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    running = service(audit__export_dir="exports")
    ids = running.decided(receiver, 3)
    running.stop()
    age(running, 40)
    running.start()
    assert audit(running, "prune", "--before", day(-1))[0]["rows"] == 0
    assert audit(running, "export", "--at", day(-20)) != []
    assert audit(running, "prune", "--before", day(-1), "--dry-run")[0]["rows"] == 3
    ids |= running.decided(receiver, 1)
    running.stop()
    age(running, 50, "sequence = 4")  # older than what is exported, and not exported itself
    running.start()
    pruned = audit(running, "prune", "--before", day(-1))[0]
    assert pruned["rows"] == 3
    assert len(running.client.get("/api/v1/decisions").json()["items"]) == 1
    assert exported(running) == Counter() if pruned["files"] else sum(exported(running).values()) == 3


def test_to_the_archive_and_back_and_verified(
    service: Callable[..., Service],
    receiver: Site,
    s3_server: Any,
    audit: Callable[..., list[dict[str, Any]]],
) -> None:
    bucket = Bucket(s3_server)
    running = service(
        environ=bucket.environ,
        audit__archive_url=bucket.url,
        audit__export_dir="exports",
        audit__chain=True,
    )
    ids = running.decided(receiver, 3)
    audit(running, "export", "--all")
    ids |= running.decided(receiver, 2)
    audit(running, "rotate")
    (done,) = [each for each in audit(running, "archive", "--all") if "rows" in each["file"]]
    assert exported(running) == Counter()
    audit(running, "export", "--all")
    assert len(bucket.files()) == 2  # the log is there too
    restored = audit(running, "restore", "--exports")
    assert Counter(row["request_id"] for row in restored) == Counter(ids)
    assert Counter(row["request_id"] for row in audit(running, "restore")) == Counter(ids)
    assert audit(running, "backfill", "--sink", "csv")[0]["written"] == 0
    told = audit(running, "verify")[0]
    assert told["problems"] == []
    assert told["head"]["authorization_audit_rows"].startswith("5-")
    assert told["rows"] == 10
    (file,) = (running.folder / "exports").glob("authorization_audit_rows*")
    whole = file.read_bytes()
    tampered = b"\n".join(line.replace(b",not_allowed,", b",allowed,") for line in _text(whole).split(b"\n"))
    file.write_bytes(tampered)
    problems = audit(running, "verify", code=1)[0]["problems"]
    assert {problem["what"] for problem in problems} == {"changed"}
    assert {problem["request_id"] for problem in problems} <= ids
    file.write_bytes(whole)
    key = f"audit/{done['to']}"
    obstore.delete(bucket.store, key)
    problems = audit(running, "verify", code=1)[0]["problems"]
    assert [(each["what"], each["row"]) for each in problems] == [("start_missing", 1)]


def _text(content: bytes) -> bytes:
    from backports import zstd

    return zstd.decompress(content)


def test_the_service_does_it_by_itself(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    running = service(audit__export_dir="exports")
    ids = running.decided(receiver, 3)
    running.stop()
    age(running, 2)
    running.configure(**{"audit.export_dir": "exports", "audit.export_after_ms": 1})
    running.start()
    outside.eventually(lambda: exported(running) == Counter(ids), 60)
    outside.eventually(lambda: running.metrics().get('audit_life_total{outcome="done",step="export"}') == 1, 60)
    assert audit(running, "export", "--at", day() + "T12:00") == []


def test_killed_anywhere_while_traffic_goes_on(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    """The command dies at a line that was drawn before; two at once do not both export a row."""
    running = service(audit__export_dir="exports")
    ids = running.decided(receiver, 3)
    drawn = random.Random(7)
    killed = 0
    for turn in range(12):
        ended = threading.Event()
        accepted: list[Any] = []

        def keep_asking(ended: threading.Event = ended, accepted: list[Any] = accepted) -> None:
            while not ended.is_set():
                accepted.append(running.ask(receiver.url()))

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            outside.eventually(lambda accepted=accepted: len(accepted) > 2)
            line = str(drawn.randint(1, (40, 120, 250)[turn % 3]))
            command = [sys.executable, str(KILL_AT_LINE), line, "audit", "export", "--all"]
            environ = running._environ | {"PYTHONPATH": TESTS}
            done = subprocess.run(
                command, cwd=running.folder, env=environ, capture_output=True, timeout=120, check=False
            )
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
            killed += done.returncode != 0
        finally:
            ended.set()
            asking.join()
        ids |= {each.request_id for each in accepted if running.finished(each)}
    assert killed >= 6
    audit(running, "export", "--all")
    audit(running, "export", "--all")
    assert exported(running) == Counter(ids)
    assert leftovers(running) == []


def test_a_folder_that_takes_nothing_loses_nothing(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    running = service(audit__export_dir="exports")
    ids = running.decided(receiver, 3)
    folder = running.folder / "exports"
    folder.rmdir()
    folder.write_text("")
    audit(running, "export", "--all", code=1)
    folder.unlink()
    audit(running, "export", "--all")
    assert exported(running) == Counter(ids)


def test_the_folder_of_the_log_is_refused(service: Callable[..., Service]) -> None:
    stopped = service(started=False, audit__export_dir=".")
    assert stopped.spawn().wait(30) == 1
    assert "audit.export_dir" in stopped.log
