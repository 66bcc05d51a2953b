"""Where restored rows go: a new CSV file, a stream, or an SQLite file for queries."""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol, Self

from chargegate.audit.csv_lines import HEADER, Row
from chargegate.audit.life.files import PART, sync_folder
from chargegate.model import AUDIT_COLUMNS, from_iso

_NUMBERS: Final = ("timestamp", "processing_time_ms")
_COLUMNS: Final = {
    name: "INTEGER" if name in _NUMBERS else "TEXT COLLATE NOCASE" if name == "station_id" else "TEXT"
    for name in AUDIT_COLUMNS
}
"""The columns of the table that is made, with what SQLite is to hold in them: those of the embedded database's own."""

_INDEXES: Final = {
    "audit_by_station": "station_id, timestamp",
    "audit_by_status": "status, timestamp",
    "audit_by_time": "timestamp",
}


class RowWriter(Protocol):
    """Takes rows of the log. What ``finish`` returned from is whole and on disk."""

    def write(self, row: Row) -> None: ...

    def finish(self) -> None: ...


class CsvWriter:
    """Writes beside the path, which gets the file once it is whole. It never replaces one."""

    def __init__(self, path: Path) -> None:
        """Raises ``OSError``."""
        _refuse_existing(path)
        self._path = path
        self._part = _new_part(path)
        self._file = self._part.open("w", encoding="utf-8", newline="")
        self._file.write(HEADER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what is left over could not be written, and that was told
            self._file.close()
        self._part.unlink(missing_ok=True)

    def write(self, row: Row) -> None:
        self._file.write(row.line + "\n")

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        _give_name(self._part, self._path)


class StreamWriter:
    """Writes to a stream, below a header."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        write(HEADER.rstrip("\n"))

    def write(self, row: Row) -> None:
        self._write(row.line)

    def finish(self) -> None:
        """Nothing is kept back."""


class DatabaseWriter:
    """Puts the rows into ``authorization_audit`` of an SQLite file; a row that is there stays as it is.

    Columns have the types of the embedded database's table: times are integers in Unix milliseconds. All rows are put
    in by one transaction, and a new file gets its name after that, so that no part of a restore is ever seen.
    """

    def __init__(self, path: Path) -> None:
        """Raises ``OSError`` for a file that cannot be one, or that has another table of this name."""
        self._path = path
        self._part: Path | None = None
        if path.exists():
            if not stat.S_ISREG(path.stat().st_mode):
                raise OSError(22, "is no file for a database", str(path))
        else:
            self._part = _new_part(path)
            _journal_of(self._part).unlink(missing_ok=True)
        with self._telling():
            self._connection = sqlite3.connect(self._part or path, isolation_level=None, check_same_thread=False)
        try:
            with self._telling():
                self._prepare()
        except OSError:
            self.__exit__()
            raise

    def _prepare(self) -> None:
        columns = ", ".join(f"{name} {kind} NOT NULL" for name, kind in _COLUMNS.items())
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS authorization_audit ({columns}, PRIMARY KEY (request_id))"
        )
        found = {name: kind for _, name, kind, *_ in self._connection.execute("PRAGMA table_info(authorization_audit)")}
        if found != {name: kind.partition(" ")[0] for name, kind in _COLUMNS.items()}:
            raise OSError(22, "has an authorization_audit with other columns; name a new file", str(self._path))
        for name, indexed in _INDEXES.items():
            self._connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON authorization_audit ({indexed})")

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OSError(5, str(error), str(self._path)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)
            _journal_of(self._part).unlink(missing_ok=True)

    def write(self, row: Row) -> None:
        values = [_value(name, text) for name, text in zip(_COLUMNS, row.fields, strict=True)]
        places = ", ".join("?" * len(values))
        with self._telling():
            self._connection.execute(
                f"INSERT OR IGNORE INTO authorization_audit VALUES ({places})",  # noqa: S608 - only question marks
                values,
            )

    def finish(self) -> None:
        with self._telling():
            self._connection.execute("COMMIT")
        if self._part is not None:
            _give_name(self._part, self._path)


def _value(name: str, text: str) -> str | int:
    if name == "timestamp":
        return from_iso(text)
    return int(text) if name in _NUMBERS else text


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(17, "exists already", str(path))


def _new_part(path: Path) -> Path:
    """A new and empty file beside a path. Raises ``OSError``, which names the path."""
    part = path.with_name(f".{path.name}{PART}")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    return part


def _give_name(part: Path, path: Path) -> None:
    """Where another file has got the name meanwhile, that stays. Raises ``OSError``."""
    try:
        os.link(part, path)
    except FileExistsError:
        _refuse_existing(path)
        raise
    sync_folder(path.parent)


def _journal_of(part: Path) -> Path:
    return part.with_name(f"{part.name}-journal")
