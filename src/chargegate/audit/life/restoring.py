"""Brings rows back: those of a time range, from the archive and from the files that are still here."""

import asyncio
import contextlib
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final, Protocol, Self

from chargegate.audit.csv_lines import HEADER
from chargegate.audit.life.compressing import Damaged, fields_of, opened
from chargegate.audit.life.files import PART, sync_folder
from chargegate.audit.life.names import ArchivedFile
from chargegate.audit.life.steps import Life
from chargegate.model import AUDIT_COLUMNS, to_iso

_COLUMNS: Final = len(AUDIT_COLUMNS)


class RowWriter(Protocol):
    """Takes lines of the log. What ``finish`` returned from is whole and on disk."""

    def write(self, line: str, fields: list[str]) -> None: ...

    def finish(self) -> None: ...


async def restore(
    life: Life,
    writer: RowWriter,
    since: int | None,
    until: int | None,
    on_file: Callable[[int, int], None],
    *,
    origin: str | None = None,
) -> int:
    """Give the writer each row that was decided from ``since`` on and before ``until`` (Unix ms), oldest file first,
    and return how many there were. ``on_file`` is told how many files of how many are done. ``origin``: only what that
    service has archived. Raises ``ArchiveUnavailable``, ``OSError``, and ``Damaged`` for a file that is not as it was
    archived."""
    wanted = Range(since, until)
    here = [] if origin else [file.path for file in life.files.rotated()] + life.files.written()
    local = {path.name.removesuffix(".zst") for path in here}
    there = [
        file
        for file in await life.archived(f"{origin}/" if origin else "")
        if wanted.overlaps(file.first, file.last) and not (life.is_own(file) and file.name in local)
    ]
    there.sort(key=lambda file: (file.first, file.key))
    total, rows = len(there) + len(here), 0
    with tempfile.TemporaryDirectory(prefix="chargegate-restore-") as folder:
        for number, file in enumerate(there):
            on_file(number, total)
            path = Path(folder) / "fetched"
            await fetch(life, file, path)
            rows += await asyncio.to_thread(_copy, path, wanted, writer)
            await asyncio.to_thread(path.unlink)
    for number, path in enumerate(here, start=len(there)):
        on_file(number, total)
        with contextlib.suppress(FileNotFoundError):
            rows += await asyncio.to_thread(_copy, path, wanted, writer)
    await asyncio.to_thread(writer.finish)
    on_file(total, total)
    return rows


class Range:
    """From ``since`` on and before ``until`` (Unix ms); None for no end."""

    def __init__(self, since: int | None, until: int | None) -> None:
        self._since, self._until = since, until
        self._first = "" if since is None else to_iso(since)
        self._end = "~" if until is None else to_iso(until)

    def overlaps(self, first: int, last: int) -> bool:
        return (self._since is None or last >= self._since) and (self._until is None or first < self._until)

    def holds(self, time: str) -> bool:
        """A time as a line has it."""
        return self._first <= time < self._end


async def fetch(life: Life, file: ArchivedFile, path: Path) -> None:
    """Bring an archived file here. Raises also ``Damaged`` where it is not what was put there."""
    if life.archive is None:
        raise Damaged("there is no archive")  # never: there would be no archived file
    said = await life.archive.attributes(file.key) or {}
    digest = hashlib.sha256()
    with path.open("wb") as target:
        async for chunk in life.archive.read(file.key):
            digest.update(chunk)
            await asyncio.to_thread(target.write, chunk)
    if said.get("sha256", digest.hexdigest()) != digest.hexdigest():
        raise Damaged(f"{file.key}: is not what was archived")


def _copy(path: Path, wanted: Range, writer: RowWriter) -> int:
    rows = 0
    with opened(path) as file:
        for line, fields in lines(file):
            if len(fields) >= _COLUMNS and wanted.holds(fields[0]):
                # Without its place in the chain, which says nothing outside of its file.
                writer.write(line.rpartition(",")[0] if len(fields) > _COLUMNS else line, fields)
                rows += 1
    return rows


def lines(file: IO[bytes]) -> Iterator[tuple[str, list[str]]]:
    """Each row of a log as it stands there, and its fields."""
    for text in file:
        line = text.decode("utf-8", "replace").rstrip("\r\n")
        if line[:1].isdigit():
            yield line, fields_of(line)


class CsvWriter:
    """Writes beside the path, which gets the file once it is whole. It never replaces one."""

    def __init__(self, path: Path) -> None:
        """Raises ``OSError``."""
        if path.exists():
            raise FileExistsError(17, "exists already", str(path))
        self._path = path
        self._part = path.with_name(f".{path.name}{PART}")
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", newline="")
        self._file.write(HEADER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def write(self, line: str, fields: list[str]) -> None:  # noqa: ARG002 - the protocol's
        self._file.write(line + "\n")

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        os.link(self._part, self._path)
        sync_folder(self._path.parent)


class StreamWriter:
    """Writes to a stream, below a header."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        write(HEADER.rstrip("\n"))

    def write(self, line: str, fields: list[str]) -> None:  # noqa: ARG002 - the protocol's
        self._write(line)

    def finish(self) -> None:
        """Nothing is kept back."""


class DatabaseWriter:
    """Puts the rows into ``authorization_audit`` of an SQLite file for reading; a row that is there stays as it is."""

    def __init__(self, path: Path) -> None:
        """Raises ``OSError`` for a file that cannot be one."""
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            columns = ", ".join(f"{name} TEXT NOT NULL" for name in AUDIT_COLUMNS)
            self._connection.execute(
                f"CREATE TABLE IF NOT EXISTS authorization_audit ({columns}, PRIMARY KEY (request_id))"
            )
            self._connection.execute(
                "CREATE INDEX IF NOT EXISTS audit_by_station ON authorization_audit (station_id, timestamp)"
            )
            self._connection.execute("CREATE INDEX IF NOT EXISTS audit_by_time ON authorization_audit (timestamp)")
            self._connection.execute("BEGIN")
        except sqlite3.Error as error:
            raise OSError(5, str(error), str(path)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def write(self, line: str, fields: list[str]) -> None:  # noqa: ARG002 - the protocol's
        places = ", ".join("?" * _COLUMNS)
        self._connection.execute(
            f"INSERT OR IGNORE INTO authorization_audit VALUES ({places})",  # noqa: S608 - constants
            fields[:_COLUMNS],
        )

    def finish(self) -> None:
        self._connection.execute("COMMIT")
