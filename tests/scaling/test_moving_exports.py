"""`chargegate database move` where both databases have made daily exports."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import sqlite3
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg  # type: ignore[import-untyped]  # it ships no types
import pytest

from scaling.cluster import COMMAND, ENVIRONMENT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.servers

DAY_MS = 86_400_000
START = 1_767_225_600_000
KEY = base64.b64encode(secrets.token_bytes(32)).decode()


def ran(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, *arguments, "--config", "chargegate.toml"]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )


def done(folder: Path, *arguments: str) -> str:
    result = ran(folder, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def site(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    values = {
        "security.encryption_keys": [KEY],
        "security.token_hash_key": KEY,
        "audit.export_dir": "exports",
        **settings,
    }
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]  # JSON's values are TOML's
    (folder / "chargegate.toml").write_text("".join(lines))
    return folder


def decided(folder: Path, count: int) -> None:
    """Decisions in the embedded database of a site, each on another day."""
    done(folder, "acl", "add", "04A1B2C3D4E5F6A7B8C9")  # makes the tables
    with contextlib.closing(sqlite3.connect(folder / "data" / "chargegate.db", timeout=20)) as database, database:
        database.executemany(
            "INSERT INTO authorization_audit (timestamp, request_id, station_id, driver_token_hash, status, reason,"
            " processing_time_ms) VALUES (?, ?, ?, '0123456789abcdef', 'allowed', '', 1)",
            [(START + day * DAY_MS, str(uuid.uuid4()), str(uuid.uuid4())) for day in range(count)],
        )


def exported(folder: Path) -> list[str]:
    done(folder, "audit", "export", "--all")
    return sorted(path.name for path in (folder / "exports").glob("*.zst"))


def rows(url: str, query: str) -> list[Any]:
    async def ask() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def test_two_sets_of_exports_are_not_mixed(tmp_path: Path, postgres_url: str) -> None:
    """A row would be in two files, or in none. Nothing is copied then, and the message says why."""
    first, second = site(tmp_path / "first"), site(tmp_path / "second")
    there = site(tmp_path / "there", **{"database.url": postgres_url})
    decided(first, 3)
    done(first, "database", "move", "--to", postgres_url)
    assert len(exported(there)) == 3
    decided(second, 2)
    assert len(exported(second)) == 2
    before = rows(postgres_url, "SELECT count(*) FROM authorization_audit")
    for _ in range(2):
        refused = ran(second, "database", "move", "--to", postgres_url)
        assert refused.returncode == 1
        assert "--to: it has daily exports of its own" in refused.stderr
        assert "A row is in exactly one daily export" in refused.stderr
    assert rows(postgres_url, "SELECT count(*) FROM authorization_audit") == before
    assert rows(postgres_url, "SELECT count(*) FROM audit_exports") == [(3,)]


def test_exports_go_on_where_the_database_went(tmp_path: Path, postgres_url: str) -> None:
    """Also after what the new place exported by itself, and a move that is run again."""
    here, there = site(tmp_path / "here"), site(tmp_path / "there", **{"database.url": postgres_url})
    decided(here, 3)
    files = exported(here)
    for _ in range(2):
        done(here, "database", "move", "--to", postgres_url)
    assert rows(postgres_url, "SELECT file FROM audit_exports ORDER BY number") == [(name,) for name in files]
    assert exported(there) == []
    (at, request_id, station) = (START + 9 * DAY_MS, str(uuid.uuid4()), str(uuid.uuid4()))
    rows(
        postgres_url,
        "INSERT INTO authorization_audit (writer, sequence, timestamp, request_id, station_id, driver_token_hash,"
        f" status, reason, processing_time_ms) VALUES ('w', 1, {at}, '{request_id}', '{station}', '0123456789abcdef',"
        " 'allowed', '', 1)",
    )
    assert len(exported(there)) == 1
    done(here, "database", "move", "--to", postgres_url)
    assert rows(postgres_url, "SELECT count(*) FROM audit_exports") == [(4,)]
