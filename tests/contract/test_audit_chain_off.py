"""The chain was switched off: what was made before and after is still what it was, and nobody is accused."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from typing import TYPE_CHECKING, Any

import pytest

import outside
from servers.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site


@pytest.mark.parametrize("shards", [1, 3])
def test_files_of_the_chain_that_retention_deletes_later(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]], shards: int
) -> None:
    running = service(audit__chain=True, audit__csv_shards=shards, audit__export_dir="exports")
    running.decided(receiver, 6)
    audit(running, "rotate")
    audit(running, "export", "--all")
    running.stop()
    settings = {"audit.csv_shards": shards, "audit.export_dir": "exports"}
    running.configure(**settings)
    running.start()
    running.decided(receiver, 6)
    audit(running, "rotate")
    assert audit(running, "verify")[0]["problems"] == []
    gone = audit(running, "prune", "--at", "2126-01-01")[0]["files"]
    assert len(gone) > 1
    assert audit(running, "verify")[0]["problems"] == []
    running.stop()
    running.configure(**settings, **{"audit.chain": True})
    running.start()
    running.decided(receiver, 6)
    running.stop()
    told = audit(running, "verify")[0]
    assert (told["problems"], told["rows"] > 0) == ([], True)


def test_rows_of_the_chain_that_are_exported_later(
    service: Callable[..., Service], receiver: Site, s3_server: Any, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    bucket = Bucket(s3_server)
    settings = {"audit.export_dir": "exports", "audit.archive_url": bucket.url}
    running = service(environ=bucket.environ, audit__chain=True, **settings)
    running.decided(receiver, 3)
    audit(running, "export", "--all")
    running.decided(receiver, 3)
    running.stop()
    running.configure(**settings)
    running.start()
    running.decided(receiver, 3)
    audit(running, "export", "--all")
    told = audit(running, "verify")[0]
    assert (told["problems"], told["rows"] >= 3, told["unchained"] >= 6) == ([], True, True)
    audit(running, "archive", "--all")
    assert audit(running, "verify")[0]["problems"] == []
    running.stop()
    running.configure(**settings, **{"audit.chain": True})
    running.start()
    running.decided(receiver, 3)
    audit(running, "export", "--all")
    assert audit(running, "verify")[0]["problems"] == []


def test_exports_from_before_the_chain_are_archived(
    service: Callable[..., Service], receiver: Site, s3_server: Any, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    bucket = Bucket(s3_server)
    settings = {"audit.export_dir": "exports", "audit.archive_url": bucket.url}
    running = service(environ=bucket.environ, **settings)
    running.decided(receiver, 3)
    audit(running, "export", "--all")
    running.stop()
    running.configure(**settings, **{"audit.chain": True})
    running.start()
    running.decided(receiver, 3)
    audit(running, "export", "--all")
    assert audit(running, "verify")[0]["problems"] == []
    audit(running, "archive", "--all")
    assert audit(running, "verify")[0]["problems"] == []


def test_an_export_without_the_chain_that_was_changed_is_named(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    from backports import zstd

    running = service(audit__chain=True, audit__export_dir="exports")
    running.decided(receiver, 3)
    audit(running, "export", "--all")
    running.stop()
    running.configure(**{"audit.export_dir": "exports"})
    running.start()
    running.decided(receiver, 3)
    audit(running, "export", "--all")
    running.stop()
    assert audit(running, "verify")[0]["problems"] == []
    (file,) = (running.folder / "exports").glob("authorization_audit_rows.*-2.csv.zst")
    whole = zstd.decompress(file.read_bytes())
    file.write_bytes(zstd.compress(whole.replace(b",not_allowed,", b",allowed,", 1)))
    problems = audit(running, "verify", code=1)[0]["problems"]
    assert [(each["what"], each["file"]) for each in problems] == [("not_in_chain", file.name)]


def test_new_files_begin_without_the_chain_where_the_old_ones_are_gone(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    """Nothing was said of the new ones before, and the log that was a chain is not written any more."""
    running = service(audit__chain=True)
    running.decided(receiver, 3)
    audit(running, "rotate")
    running.stop()
    running.csv_file.unlink(missing_ok=True)
    for shards, chain in ((3, False), (5, False), (2, True), (7, False)):
        running.configure(**{"audit.csv_shards": shards, "audit.chain": chain})
        running.start()
        running.decided(receiver, 4)
        running.stop()
        told = audit(running, "verify")[0]
        assert told["problems"] == []
    assert (told["rows"], told["unchained"]) == (7, 12)


def test_the_chain_is_switched_off_while_no_log_is_written(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    running = service(audit__chain=True)
    running.decided(receiver, 3)
    for settings in ({"audit.csv_path": ""}, {"audit.csv_shards": 3}, {"audit.chain": True}):
        running.stop()
        running.configure(**settings)
        running.start()
        running.decided(receiver, 3)
    running.stop()
    told = audit(running, "verify")[0]
    assert (told["problems"], told["rows"], told["unchained"]) == ([], 6, 6)


def test_rows_get_their_links_while_they_are_verified(
    service: Callable[..., Service], receiver: Site, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    """The chain was switched on just now, and the database has many rows from before."""
    running = service(audit__csv_path="")
    running.decided(receiver, 1)
    running.stop()
    rows = 30_000
    with contextlib.closing(sqlite3.connect(running.data / "chargegate.db")) as database, database:
        database.executemany(
            "INSERT INTO authorization_audit (timestamp, request_id, station_id, driver_token_hash, status, reason,"
            " processing_time_ms) VALUES (?, ?, ?, '0123456789abcdef', 'allowed', '', 1)",
            ((1_767_225_600_000 + number, f"row {number}", str(uuid.uuid4())) for number in range(rows)),
        )
    running.configure(**{"audit.csv_path": "", "audit.chain": True})
    running.start()

    def all_have_one() -> bool:
        found = audit(running, "verify")[0]["database"].get("embedded", {"rows": 0, "problems": []})
        assert found["problems"] == []
        return bool(found["rows"] == rows + 1)

    outside.eventually(all_have_one, 90, "some rows got no link")
