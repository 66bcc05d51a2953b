"""The lines of the CSV audit log: how a row becomes one, and what can be read back from them."""

import csv
import gzip
import os
import re
import stat
import zlib
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Final

import msgspec

from chargegate.audit.chain import BEGINNING, COLUMN, Link, link_of
from chargegate.audit.zst import MAGIC, zstd
from chargegate.ledger.records import AuditRow
from chargegate.model import AUDIT_COLUMNS, Decision, Status, from_iso, to_iso

HEADER: Final = ",".join(AUDIT_COLUMNS) + "\n"
CHAINED_HEADER: Final = ",".join((*AUDIT_COLUMNS, COLUMN)) + "\n"
HEADERS: Final = (HEADER.encode(), CHAINED_HEADER.encode())
NO_LINES: Final = (b"", *HEADERS)
"""The content of a file that has no line yet, or that was emptied."""

_LINE: Final = ",".join(["%s"] * len(AUDIT_COLUMNS)) + "\n"
_PLAIN: Final = "(?:[A-Za-z0-9_][A-Za-z0-9_.:-]*+)?+"
_FORMULA: Final = frozenset("=+-@\t\r\n")
HEAD_BYTES: Final = 4096
"""More than the header and the first line of a log have, and so more than its last line."""

BLANK: Final = b"\x00\t\r\n "
"""What a line may have that says nothing, as a power cut leaves it."""

TAIL_BYTES: Final = 16 * 1024 * 1024
"""More than is written between two saves of the position, five seconds apart."""

UNREADABLE: Final = (OSError, EOFError, zlib.error, zstd.ZstdError)
"""What reading a compressed file may raise."""

_CHUNK: Final = 1024 * 1024
_MOST_UNPACKED: Final = 16 * TAIL_BYTES
_MOST_DIGITS: Final = 18  # what fits into 64 bits, in which databases hold a number

_fields_after_timestamp = attrgetter(*AUDIT_COLUMNS[1:])
_iso = lru_cache(maxsize=64)(to_iso)  # many decisions are of one millisecond
_plain_field = re.compile(_PLAIN).fullmatch
_plain_lines = re.compile(f"(?:{','.join([_PLAIN] * len(AUDIT_COLUMNS))}\n)*+").fullmatch

_ANY_FIELD: Final = rb'(?:"(?:[^"\n]|"")*+"|[^",\x00-\x1f\x7f]*+)'
_whole_line = re.compile(
    rb"\d{4}-\d\d-\d\dT[0-9:.]+Z,%s,(?:%s),%s,-?\d+(?:,[0-9a-f-]+)?\n"
    % (b",".join([_ANY_FIELD] * 3), "|".join(Status).encode(), _ANY_FIELD)
).fullmatch


class Row(msgspec.Struct, frozen=True):
    """A row as it stands in a log. ``line`` has neither the end of the line nor the place in the chain, and ``fields``
    are its columns, as they were before they were made harmless for spreadsheets."""

    line: str
    fields: list[str]


def row_in(line: bytes) -> Row | None:
    """None for a line that is not a whole row, such as the header."""
    line = line.replace(b"\r\n", b"\n")
    if not _whole_line(line):
        return None
    text = line[:-1].decode("utf-8", "replace")
    fields = next(csv.reader([text])) if '"' in text else text.split(",")
    if len(fields) > len(AUDIT_COLUMNS):
        text = text.rpartition(",")[0]
        del fields[len(AUDIT_COLUMNS) :]
    fields[1:] = [field[1:] if _is_harmless_formula(field) else field for field in fields[1:]]
    try:
        from_iso(fields[0])
    except ValueError:
        return None
    return Row(text, fields) if len(fields[-1]) <= _MOST_DIGITS else None


def is_header(line: bytes) -> bool:
    """Whether a line is the header of a log, also of one of another release."""
    return line.startswith(b"timestamp,")


def _is_harmless_formula(field: str) -> bool:
    return field[:1] == "'" and field[1:2] in _FORMULA


def as_lines(rows: list[AuditRow]) -> str:
    """A line for each row. All fields are checked together, because nearly always none of them needs quotes."""
    text = "".join([_plain_line(row.decision) for row in rows])
    # The count shows that no field has line breaks: such a field could look like several plain ones.
    if text.count("\n") == len(rows) and _plain_lines(text):
        return text
    return "".join([_quoted_line(row.decision) for row in rows])


def _plain_line(d: Decision) -> str:
    """A line without quotes. The writing thread makes one for each decision, so its columns are written out here."""
    return (
        f"{_iso(d.timestamp)},{d.request_id},{d.station_id},{d.driver_token_hash},{d.status},{d.reason},"
        f"{d.processing_time_ms}\n"
    )


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


def request_ids(text: bytes) -> Iterator[str]:
    """The request ids of the whole lines in a part of a log that begins anywhere."""
    for whole in filter(_whole_line, text.splitlines(keepends=True)):
        line = whole.decode(errors="replace")
        field = (next(csv.reader([line])) if '"' in line else line.split(",", 2))[1]
        yield field[1:] if _is_harmless_formula(field) else field


def end_of_lines(text: bytes, *, only_whole: bool) -> int:
    """Where the last line of a part of a log ends; what stands behind it was left unfinished.

    With ``only_whole`` also lines that cannot be ours are left behind it, where one of ours stands before them: a disk
    that lost its power may have put anything at the end of the file.
    """
    finished = text.rfind(b"\n") + 1
    end = finished
    while only_whole and end:
        start = text.rfind(b"\n", 0, end - 1) + 1
        line = text[start:end]
        if _whole_line(line) or line in HEADERS:
            return end
        end = start
    return finished if text.strip(b"\x00\t\r\n ") or not only_whole else 0


def checksum_of_head(text: bytes) -> int:
    """A checksum of the header and the first line of a log, by which it is known again; 0 where it has no line."""
    end = text.find(b"\n", text.find(b"\n") + 1) + 1
    return zlib.crc32(text[:end]) if end > len(HEADER) else 0


def tail_of(path: Path) -> bytes:
    """The end of a log, which may be compressed. Raises one of ``UNREADABLE``."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(file, "rb") as raw:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return b""
        magic = raw.read(4)
        if magic[:2] != b"\x1f\x8b" and magic != MAGIC:
            raw.seek(max(0, status.st_size - TAIL_BYTES))
            return raw.read(TAIL_BYTES)
        raw.seek(0)
        chunks: deque[bytes] = deque(maxlen=TAIL_BYTES // _CHUNK)
        read = 0
        with zstd.ZstdFile(raw) if magic == MAGIC else gzip.GzipFile(fileobj=raw) as unpacked:
            while read < _MOST_UNPACKED and (chunk := unpacked.read(_CHUNK)):
                chunks.append(chunk)
                read += len(chunk)
        return b"".join(chunks)


def first_time(text: bytes) -> int | None:
    """The time of the first row in the beginning of a log (Unix ms). None where it has none that can be read."""
    for line in text.split(b"\n")[:3]:
        if line[:1].isdigit():
            try:
                return from_iso(line.partition(b",")[0].decode("ascii", "replace"))
            except ValueError:
                return None
    return None


def last_time(text: bytes) -> int | None:
    """The time of the last row in the end of a log (Unix ms). None where it has none that can be read."""
    for line in reversed(text.split(b"\n")[1:]):
        if line[:1].isdigit():
            try:
                return from_iso(line.partition(b",")[0].decode("ascii", "replace"))
            except ValueError:
                continue
    return None


def last_link(text: bytes) -> Link:
    """The link of the last row in the end of a chained log; the beginning where it has no row with one."""
    for line in reversed(text.decode("utf-8", "replace").splitlines()):
        found = link_of(line)
        if found is not None:
            return found[1]
    return BEGINNING
