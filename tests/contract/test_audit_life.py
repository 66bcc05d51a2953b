"""A decision has one line somewhere until it is deleted: in the log, rotated, compressed or archived."""

from __future__ import annotations

import contextlib
import csv
import sqlite3
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import obstore
import pytest

import outside
from servers.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.conftest import Service, Site

HEADER = "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms"


def unpacked(content: bytes) -> bytes:
    """By the program that everybody has, where there is one."""
    from backports import zstd

    return zstd.decompress(content)


def rows(content: bytes, name: str = "") -> list[list[str]]:
    text = (unpacked(content) if name.endswith(".zst") else content).decode()
    assert text.endswith("\n"), name
    header, *found = csv.reader(text.splitlines(), strict=True)
    assert header == HEADER.split(",")
    assert all(len(row) == 7 for row in found)
    return found


@pytest.fixture
def bucket(s3_server: Any) -> Bucket:
    return Bucket(s3_server)


def everywhere(service: Service, bucket: Bucket | None = None) -> Counter[str]:
    """The request ids of all lines in all files."""
    found: Counter[str] = Counter()
    for file in service.folder.glob("authorization_audit*"):
        found.update(row[1] for row in rows(file.read_bytes(), file.name))
    for key, content in (bucket.files() if bucket else {}).items():
        found.update(row[1] for row in rows(content, key))
    return found


def test_from_the_log_to_the_archive_and_back_to_nothing(
    service: Callable[..., Service], receiver: Site, bucket: Bucket, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    running = service(environ=bucket.environ, audit__archive_url=bucket.url)
    ids = running.decided(receiver, 3)
    planned = audit(running, "rotate", "--dry-run")
    assert [(each["step"], each["file"]) for each in planned] == [("rotate", "authorization_audit.log")]
    assert len(list(running.folder.glob("authorization_audit*"))) == 1
    (rotated,) = audit(running, "rotate")
    assert (running.folder / rotated["to"]).is_file()
    assert audit(running, "rotate") == []  # nothing was written since
    ids |= running.decided(receiver, 2)
    assert everywhere(running) == Counter(ids)
    assert audit(running, "compress") == []  # it is not a week old
    (compressed,) = audit(running, "compress", "--all")
    assert compressed["to"].endswith(".zst")
    assert everywhere(running) == Counter(ids)
    assert audit(running, "archive", "--dry-run", "--all")[0]["file"] == compressed["to"]
    assert bucket.files() == {}
    (archived,) = audit(running, "archive", "--all")
    assert [path.name for path in running.folder.glob("authorization_audit*")] == ["authorization_audit.log"]
    assert list(bucket.files()) == [f"audit/{archived['to']}"]
    attributes = obstore.get(bucket.store, f"audit/{archived['to']}").attributes
    assert int(attributes["size"]) == len(bucket.files()[f"audit/{archived['to']}"])
    assert len(attributes["sha256"]) == 64
    assert everywhere(running, bucket) == Counter(ids)
    assert audit(running, "backfill", "--sink", "csv")[0]["written"] == 0
    listed = audit(running, "archive", "list")
    assert [place["state"] for place in listed] == ["archived", "written"]
    assert audit(running, "prune")[0]["files"] == []
    restored = audit(running, "restore", "--from", "2020-01-01", "--to", "2100-01-01")
    assert Counter(row["request_id"] for row in restored) == Counter(ids)
    assert audit(running, "restore", "--to", "2020-01-01") == []
    assert audit(running, "restore", "--dry-run") == [{"rows": 5, "to": None}]
    audit(running, "restore", "--output", "back.csv")
    assert Counter(row[1] for row in rows((running.folder / "back.csv").read_bytes())) == Counter(ids)
    audit(running, "restore", "--output", "back.csv", code=1)  # it replaces nothing
    for _ in range(2):
        audit(running, "restore", "--database", "back.db")
    with contextlib.closing(sqlite3.connect(running.folder / "back.db")) as database:
        assert database.execute("SELECT count(*) FROM authorization_audit").fetchone() == (5,)
    later = "2126-01-01"
    assert audit(running, "prune", "--at", later, "--dry-run")[0]["rows"] == 5
    assert audit(running, "prune", "--at", later)[0]["files"] == [archived["to"]]
    assert bucket.files() == {}


def test_the_service_does_all_of_it_by_itself(service: Callable[..., Service], receiver: Site, bucket: Bucket) -> None:
    running = service(
        environ=bucket.environ,
        audit__archive_url=bucket.url,
        audit__rotate_after_ms=1000,
        audit__compress_after_ms=1000,
        audit__archive_after_ms=2000,
    )
    ids = running.decided(receiver, 4)
    outside.eventually(lambda: len(bucket.names()) >= 1, 60)
    ids |= running.decided(receiver, 4)
    outside.eventually(lambda: sum(len(rows(c, k)) for k, c in bucket.files().items()) == 8, 60)
    outside.eventually(lambda: everywhere(running, bucket) == Counter(ids), 30)


def test_rows_that_are_too_old_go_from_files_and_database(service: Callable[..., Service], receiver: Site) -> None:
    running = service(audit__rotate_after_ms=500, audit__retention_ms=3000)
    running.decided(receiver, 3)
    outside.eventually(lambda: not everywhere(running), 60)
    outside.eventually(lambda: running.client.get("/api/v1/decisions").json()["items"] == [], 60)


def test_nothing_is_lost_or_doubled_while_it_is_rotated_and_killed(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    """Requests go on all the time; an outside rotation happens too."""
    running = service(audit__rotate_bytes=700)
    accepted: list[Any] = []
    for turn in range(4):
        ended = threading.Event()

        def keep_asking(ended: threading.Event = ended) -> None:
            while not ended.wait(0.01):
                accepted.append(running.ask(receiver.url()))

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            audit(running, "rotate")
            log = running.csv_file
            if turn % 2 and log.exists():
                log.rename(log.with_name(f"{log.name}.{turn}"))  # as logrotate does it
            audit(running, "compress", "--all")
        finally:
            ended.set()
            asking.join()
        running.kill()
        audit(running, "rotate")
        audit(running, "compress", "--all")
        running.start()
    for asked in accepted:
        running.finished(asked)
    assert running.stop() == 0
    assert everywhere(running) == Counter(asked.request_id for asked in accepted)


def test_a_log_that_is_a_link_is_rotated_where_it_lies(
    service: Callable[..., Service], receiver: Site, tmp_path: Path, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    running = service(started=False)
    (tmp_path / "disk").mkdir()
    running.csv_file.symlink_to(tmp_path / "disk" / "real.csv")
    running.start()
    ids = running.decided(receiver, 2)
    (done,) = audit(running, "rotate")
    assert (tmp_path / "disk" / done["to"]).is_file()
    ids |= running.decided(receiver, 2)
    found = [row[1] for file in (tmp_path / "disk").glob("real.csv*") for row in rows(file.read_bytes(), file.name)]
    assert Counter(found) == Counter(ids)
    assert running.csv_file.is_symlink()


def test_an_archive_that_is_away_or_refuses_costs_nothing(
    service: Callable[..., Service],
    receiver: Site,
    bucket: Bucket,
    s3_server: Any,
    audit: Callable[..., list[dict[str, Any]]],
) -> None:
    running = service(environ=bucket.environ, audit__archive_url=bucket.url)
    ids = running.decided(receiver, 2)
    audit(running, "rotate")
    reader = {"AWS_ACCESS_KEY_ID": s3_server.reader[0], "AWS_SECRET_ACCESS_KEY": s3_server.reader[1]}
    audit(running, "archive", "--all", code=1, **reader)
    s3_server.stop()
    audit(running, "archive", "--all", code=1)
    assert everywhere(running) == Counter(ids)
    s3_server.start()
    audit(running, "archive", "--all")
    assert everywhere(running, bucket) == Counter(ids)
    assert not list(running.folder.glob("*.zst"))


def test_health_says_while_old_files_cannot_be_dealt_with(service: Callable[..., Service], bucket: Bucket) -> None:
    nobody = "s3://nobody/x?endpoint=http://127.0.0.1:9"
    running = service(environ=bucket.environ, audit__archive_url=nobody, audit__archive_after_ms=4)

    def audit() -> dict[str, Any]:
        return running.client.get("/health").json()["components"]["audit"]

    outside.eventually(lambda: audit()["status"] == "DEGRADED", 90)
    assert "life" in audit()["details"]
    assert running.stop() == 0
    running.configure(**{"audit.archive_url": bucket.url, "audit.archive_after_ms": 4})
    running.start()
    assert audit()["status"] == "UP"


@pytest.mark.parametrize(
    "url",
    [
        "http://bucket/x",
        "s3://",
        "s3://user:secret@bucket/x",
        "s3://b/x?endpoint=nowhere",
        "s3://b/x?secret_access_key=0123456789",
        "s3://b/../x",
        "s3://b/x?endpoint=http://a@h",
    ],
)
def test_an_address_that_is_none_stops_the_start_and_is_not_repeated(service: Callable[..., Service], url: str) -> None:
    stopped = service(started=False, audit__archive_url=url)
    process = stopped.spawn()
    assert process.wait(30) == 1
    assert "audit.archive_url" in stopped.log
    assert "secret@" not in stopped.log
    assert "0123456789" not in stopped.log
