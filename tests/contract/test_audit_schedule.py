"""The service keeps the audit by itself: what does not work, or takes long, in one place holds up nothing elsewhere."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import outside
from servers.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

LIMIT_S = 90
DAY_MS = 86_400_000
HEADER = "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms\n"


def rows_of(service: Service) -> int:
    with contextlib.closing(sqlite3.connect(service.data / "chargegate.db", timeout=30)) as database:
        return int(database.execute("SELECT count(*) FROM authorization_audit").fetchone()[0])


def age(service: Service, days: int) -> None:
    """Decisions of a stopped service were made so long ago."""
    with contextlib.closing(sqlite3.connect(service.data / "chargegate.db")) as database, database:
        database.execute(f"UPDATE authorization_audit SET timestamp = timestamp - {days * DAY_MS}")


def test_a_folder_of_the_log_that_cannot_be_used_holds_up_no_export_and_no_retention(
    service: Callable[..., Service], receiver: Site
) -> None:
    running = service()
    running.decided(receiver, 3)
    running.stop()
    age(running, 3)
    running.folder.joinpath(".authorization_audit.log.lock").unlink(missing_ok=True)
    running.folder.joinpath(".authorization_audit.log.lock").mkdir()
    running.configure(**{"audit.export_dir": "exports", "audit.export_after_ms": 1000, "audit.retention_ms": DAY_MS})
    running.start()
    outside.eventually(lambda: list(running.folder.glob("exports/authorization_audit_rows.*")), LIMIT_S, "no export")
    outside.eventually(lambda: rows_of(running) == 0, LIMIT_S, "old rows stayed")

    def audit() -> Any:
        return running.client.get("/health").json()["components"]["audit"]

    assert audit()["status"] == "DEGRADED"
    assert "Is a directory" in audit()["details"]["life"]
    running.folder.joinpath(".authorization_audit.log.lock").rmdir()
    outside.eventually(lambda: audit()["status"] == "UP", LIMIT_S, "it was not noticed that all is well again")


def test_an_archive_that_takes_long_holds_up_no_rotation(
    service: Callable[..., Service], receiver: Site, s3_server: Any
) -> None:
    """There are thirty files that wait, and each takes many seconds."""
    with s3_server.proxied() as slow:
        bucket = Bucket(s3_server, slow.url)
        running = service(started=False, environ=bucket.environ)
        for number in range(10, 40):
            file = running.folder / f"authorization_audit.log.20260101T0000{number}.000Z"
            line = f"2026-01-01T00:00:00.000Z,{number},{number},0123456789abcdef,allowed,,1\n"
            file.write_text(HEADER + line)
        running.configure(
            **{"audit.archive_url": bucket.url, "audit.archive_after_ms": DAY_MS, "audit.rotate_after_ms": 4000}
        )
        slow.delay(1000)
        running.start()
        for _ in range(2):
            outside.eventually(bucket.files, LIMIT_S, "nothing was archived")
            before = set(running.folder.glob("authorization_audit.log.2*"))
            running.decided(receiver, 1)
            outside.eventually(
                lambda old=before: set(running.folder.glob("authorization_audit.log.2*")) - old, LIMIT_S, "not rotated"
            )
            assert len(bucket.files()) < 30
        slow.delay(0)
        outside.eventually(lambda: len(bucket.names()) == 30, LIMIT_S, "not all were archived")
