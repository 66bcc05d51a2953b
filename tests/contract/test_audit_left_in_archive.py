"""What is in the archive of a log, or of daily exports, that the service does not write any more."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import outside
from servers.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

LATER = {
    "no log": {"audit.csv_path": ""},
    "another log": {"audit.csv_path": "decisions.csv"},
    "no log, but exports": {"audit.csv_path": "", "audit.export_dir": "exports"},
}


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
def test_it_is_listed_restored_and_deleted_when_it_is_old(
    service: Callable[..., Service],
    receiver: Site,
    s3_server: Any,
    audit: Callable[..., list[dict[str, Any]]],
    later: dict[str, Any],
) -> None:
    bucket = Bucket(s3_server)
    running = service(environ=bucket.environ, audit__archive_url=bucket.url, audit__export_dir="exports")
    ids = running.decided(receiver, 3)
    audit(running, "rotate")
    audit(running, "export", "--all")
    audit(running, "archive", "--all")
    assert len(bucket.files()) == 2
    running.stop()
    running.configure(**{"audit.archive_url": bucket.url, **later})
    running.start()
    archived = [each["file"] for each in audit(running, "archive", "list") if each["state"] == "archived"]
    assert len(archived) == 2
    for arguments in ((), ("--exports",)):
        rows = audit(running, "restore", *arguments)
        assert Counter(row["request_id"] for row in rows) == Counter(ids)
    assert audit(running, "verify")[0]["problems"] == []
    assert audit(running, "prune", "--at", "2126-01-01", "--dry-run")[0]["files"] == archived
    assert len(bucket.files()) == 2
    running.stop()
    running.configure(**{"audit.archive_url": bucket.url, "audit.retention_ms": 1000, **later})
    running.start()
    outside.eventually(lambda: not bucket.names(), 60, "what is too old was not deleted")


def test_an_archive_that_is_away_keeps_no_old_file_here(
    service: Callable[..., Service], audit: Callable[..., list[dict[str, Any]]]
) -> None:
    running = service(
        environ={"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"},
        audit__archive_url="s3://nobody/x?endpoint=http://127.0.0.1:9",
        audit__rotate_bytes=10**9,  # so that it looks often
    )
    running.stop()
    old = running.folder / "authorization_audit.log.20200101T000000.000Z"
    old.write_text("timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms\n")
    audit(running, "prune", "--dry-run", code=1)
    assert old.exists()
    running.start()
    outside.eventually(lambda: not old.exists(), 60, "what is too old was not deleted")
