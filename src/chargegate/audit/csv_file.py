"""The CSV audit log: one line for each decision."""

import contextlib
import csv
import fcntl
import os
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Final

from chargegate.ledger.records import AuditRow
from chargegate.model import AUDIT_COLUMNS, Decision, to_iso

HEADER: Final = ",".join(AUDIT_COLUMNS) + "\n"
_LINE: Final = ",".join(["%s"] * len(AUDIT_COLUMNS)) + "\n"
_PLAIN: Final = "(?:[A-Za-z0-9_][A-Za-z0-9_.:-]*+)?+"
_TAIL_BYTES: Final = 16 * 1024 * 1024  # more than is written between two saves of the position, five seconds apart
_FORMULA: Final = frozenset("=+-@\t\r\n")

_fields_after_timestamp = attrgetter(*AUDIT_COLUMNS[1:])
_plain_field = re.compile(_PLAIN).fullmatch
_plain_lines = re.compile(f"(?:{','.join([_PLAIN] * len(AUDIT_COLUMNS))}\n)*+").fullmatch


class CsvFile:
    """Appends to a file. A line is written whole or not at all.

    Somebody may rename or truncate the file meanwhile: the next lines go into a new one, below a header. Several
    processes on one host may write to the same file.
    """

    name = "csv"

    def __init__(self, path: Path) -> None:
        """Raises ``OSError`` if the file cannot be opened for appending."""
        self._path = path
        self._file = -1
        self._inode = 0
        self._open()

    def _open(self) -> None:
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        self._inode = os.fstat(file).st_ino
        with contextlib.suppress(OSError):  # If the disk is full, the first line says so.
            self._append("")

    def resume(self) -> frozenset[str]:
        """The request ids near the end of the file, after removing a line that a crash left unfinished."""
        with self._locked() as size:
            start = max(0, size - _TAIL_BYTES)
            text = os.pread(self._file, size - start, start)
            whole = text[: text.rfind(b"\n") + 1]
            if len(whole) < len(text):
                os.ftruncate(self._file, start + len(whole))
        return frozenset(map(_request_id, whole.decode(errors="replace").splitlines()))

    def write(self, rows: list[AuditRow]) -> None:
        try:
            renamed = os.stat(self._path).st_ino != self._inode  # noqa: PTH116 - Path.stat costs more than the call
        except FileNotFoundError:
            renamed = True
        if renamed:
            self._open()
        self._append(_lines(rows))

    def _append(self, lines: str) -> None:
        with self._locked() as size:
            content = (lines if size else HEADER + lines).encode()
            try:
                if os.write(self._file, content) != len(content):
                    raise OSError("the disk took only a part")
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, size)
                raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Lock the file against other processes. Gives its size."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield os.fstat(self._file).st_size
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def sync(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _request_id(line: str) -> str:
    fields = next(csv.reader([line])) if '"' in line else line.split(",", 2)
    text = fields[1] if len(fields) > 1 else ""
    return text[1:] if text[:1] == "'" and text[1:2] in _FORMULA else text


def _lines(rows: list[AuditRow]) -> str:
    """A line for each row. All fields are checked together, because nearly always none of them needs quotes."""
    text = "".join([_LINE % (to_iso(row.decision.timestamp), *_fields_after_timestamp(row.decision)) for row in rows])
    # The count shows that no field has line breaks: such a field could look like several plain ones.
    if text.count("\n") == len(rows) and _plain_lines(text):
        return text
    return "".join([_quoted_line(row.decision) for row in rows])


def _quoted_line(decision: Decision) -> str:
    fields = (to_iso(decision.timestamp), *map(str, _fields_after_timestamp(decision)))
    return _LINE % tuple(map(_quoted, fields))


def _quoted(text: str) -> str:
    """A field as in RFC 4180. A spreadsheet does not run it as a formula."""
    if _plain_field(text):
        return text
    if text[:1] in _FORMULA:
        text = "'" + text
    text = text.replace("\r", " ").replace("\n", " ")
    return '"' + text.replace('"', '""') + '"'
