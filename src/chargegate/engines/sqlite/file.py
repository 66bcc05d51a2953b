"""The file itself: who may open it, how it is opened, and its tables."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from chargegate.observe import log
from chargegate.storage.unavailable import Unavailable, Unusable

_PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "cache_size=-16000",
    "wal_autocheckpoint=0",  # see checkpoints.py
    "journal_size_limit=67108864",
    "temp_store=MEMORY",
)


_STATEMENTS: Final = 256  # that stay prepared: each that takes many rows has a form for each number of them

PATIENT_S: Final = 10.0
"""How long a start or a command waits for a lock that another program holds."""


def connect(path: Path, lock_s: float = PATIENT_S) -> sqlite3.Connection:
    """A connection whose commits are on disk when they return. It may be closed in another thread. It waits ``lock_s``
    where another program has locked the file."""
    connection = sqlite3.connect(
        path, timeout=lock_s, isolation_level=None, check_same_thread=False, cached_statements=_STATEMENTS
    )
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def take_lock(path: Path) -> int:
    """The descriptor that holds the lock until it is closed. Raises ``Unusable`` where another process has it."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(lock, 20).decode("ascii", "replace").strip()
        os.close(lock)
        raise Unusable(
            f"{path.parent}: another process{f' (pid {owner})' if owner else ''} uses this database already"
        ) from None
    os.truncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def read_once(path: Path, query: str) -> list[Any]:
    """All rows that a query gives, from a file that need not be open. Raises ``Unavailable``."""
    try:
        with contextlib.closing(connect(path)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.Error as error:
        raise Unavailable(str(error)) from None


def migrate(path: Path, migrations: Mapping[str, Sequence[str]]) -> None:
    """Bring the tables of each component up to date. Raises ``Unusable``."""
    try:
        _run_migrations(path, migrations)
    except sqlite3.Error as error:
        raise Unusable(f"{path}: {error}") from None
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None


def _run_migrations(path: Path, migrations: Mapping[str, Sequence[str]]) -> None:
    # Never opened where it exists: closing it again would drop this process's locks (sqlite.org/howtocorrupt, 2.2).
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(connect(path)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER)")
        for component, scripts in migrations.items():
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute("SELECT version FROM schema_versions WHERE component = ?", (component,)).fetchone()
            version = row[0] if row else 0
            if version > len(scripts):
                connection.execute("ROLLBACK")
                raise Unusable(f"{path}: made by a newer release ({component} tables have version {version})")
            for script in scripts[version:]:
                for statement in script.split(";\n"):
                    connection.execute(statement)
            if version < len(scripts):
                log.info("tables migrated", component=component, version_from=version, version_to=len(scripts))
            connection.execute("INSERT OR REPLACE INTO schema_versions VALUES (?, ?)", (component, len(scripts)))
            connection.execute("COMMIT")
