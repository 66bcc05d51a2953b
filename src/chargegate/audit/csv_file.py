"""The CSV audit log: one line a decision."""

import contextlib
import csv
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chargegate.ledger.records import AuditRow
from chargegate.model import Decision, to_iso

HEADER: Final = "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms\n"
_TAIL: Final = 16 * 1024 * 1024  # more than is written between two saved positions, five seconds apart
_FORMULA: Final = frozenset("=+-@\t\r\n")
_plain = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*|").fullmatch


class CsvFile:
    """Appends to a file; follows a rotation by renaming or truncating. A line is written whole or taken back. Several
    processes on one host may write one file."""

    name = "csv"
    prompt = True

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
        with contextlib.suppress(OSError):  # a full disk is told by the first line
            self._append("")

    def resume(self) -> frozenset[str]:
        """Cut off a line that a crash left unfinished."""
        with self._alone() as size:
            start = max(0, size - _TAIL)
            text = os.pread(self._file, size - start, start)
            whole = text[: text.rfind(b"\n") + 1]
            if len(whole) < len(text):
                os.ftruncate(self._file, start + len(whole))
        return frozenset(map(_request_id, whole.decode(errors="replace").splitlines()))

    def write(self, rows: list[AuditRow]) -> None:
        try:
            rotated = os.stat(self._path).st_ino != self._inode  # noqa: PTH116 - a system call a batch is enough
        except FileNotFoundError:
            rotated = True
        if rotated:
            self._open()
        self._append("".join(_line(row.decision) for row in rows))

    def _append(self, lines: str) -> None:
        with self._alone() as size:
            content = (lines if size else HEADER + lines).encode()
            try:
                if os.write(self._file, content) != len(content):
                    raise OSError("the disk took only a part")
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, size)
                raise

    @contextlib.contextmanager
    def _alone(self) -> Iterator[int]:
        """No other process writes meanwhile. The file's size."""
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


def _line(decision: Decision) -> str:
    return (
        f"{to_iso(decision.timestamp)},{_field(decision.request_id)},{_field(decision.station_id)},"
        f"{decision.driver_token_hash},{decision.status},{_field(decision.reason)},{decision.processing_time_ms}\n"
    )


def _field(text: str) -> str:
    """RFC 4180, and harmless where a spreadsheet would run it as a formula."""
    if _plain(text):
        return text
    if text[:1] in _FORMULA:
        text = "'" + text
    text = text.replace("\r", " ").replace("\n", " ")  # a line stays a line
    return '"' + text.replace('"', '""') + '"'
