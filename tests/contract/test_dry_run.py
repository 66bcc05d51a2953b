"""A dry run changes nothing: the folder is what it was, name by name and byte by byte."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.conftest import Service, Site

TABLES = ["authorization_audit", "charging_requests", "audit_chain", "audit_exports"]
COMMANDS = [
    "rotate",
    "rotate --due --at 2126-01-01",
    "compress --all",
    "export --all",
    "archive --all",
    "prune --at 2126-01-01",
    "backfill --sink csv",
    "restore",
    "restore --output march.csv",
    "restore --database march.db",
    "restore --exports",
]


def content(folder: Path) -> dict[str, str]:
    """Each file and folder by name, with its mode and a checksum: of a database's audit and requests, because whoever
    opens it notes that."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if path.suffix == ".db":
            with contextlib.closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as database:
                rows = [database.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in TABLES]
                data = repr(rows).encode()
        else:
            data = path.read_bytes() if path.is_file() else b""
        digest = hashlib.sha256(data).hexdigest()
        found[str(path.relative_to(folder))] = f"{status.st_mode:o} {status.st_ino} {digest}"
    return found


@pytest.fixture(scope="module", params=["as it was", "with other settings"])
def stopped(request: pytest.FixtureRequest, shared_service: Callable[..., Service], receiver: Site) -> Service:
    """A service that has decided, and whose settings have changed since."""
    running = shared_service(audit__csv_shards=3, audit__chain=True)
    for each in [running.ask(receiver.url()) for _ in range(4)]:
        running.finished(each)
    assert running.stop() == 0
    changed = {"audit.csv_shards": 3, "audit.chain": True, "audit.export_dir": "exports/of/days"}
    if request.param != "as it was":
        changed |= {"audit.csv_shards": 20, "audit.chain": False}
        changed |= {"audit.archive_url": "s3://nobody/x?endpoint=http://127.0.0.1:9"}
    running.configure(**changed)
    return running


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_dry_run_changes_nothing(stopped: Service, command: str, arguments: str) -> None:
    before = content(stopped.folder)
    done = subprocess.run(
        [command, "audit", *arguments.split(), "--dry-run"],
        cwd=stopped.folder,
        env={**os.environ, **stopped._environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert content(stopped.folder) == before


def test_a_dry_run_before_anything_was_made_makes_nothing(service: Callable[..., Service], command: str) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    new = service(
        started=False,
        environ=keys,
        audit__export_dir="exports",
        audit__archive_url="s3://b/x?endpoint=http://127.0.0.1:9",
    )
    before = content(new.folder)
    for arguments in COMMANDS:
        words = [command, "audit", *arguments.split(), "--dry-run"]
        done = subprocess.run(words, cwd=new.folder, env=new._environ, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        assert content(new.folder) == before, arguments
