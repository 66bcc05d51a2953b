"""Verifies one file of a log: each row by its MAC, which is over that of the row before."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from chargegate.audit.chain import Chain, link_of
from chargegate.audit.csv_lines import CHAINED_HEADER, HEAD_BYTES, HEADER, UNREADABLE, checksum_of_head
from chargegate.audit.life.compressing import Damaged, opened
from chargegate.audit.life.files import EXPORTS
from chargegate.audit.life.heads import Statement, periods
from chargegate.audit.life.joining import Problem, Segment
from chargegate.model import to_iso

_MOST_PROBLEMS: Final = 1000


class Verifier:
    """Verifies single files."""

    def __init__(self, chain: Chain, statements: Sequence[Statement]) -> None:
        self._chain = chain
        self._statements = statements
        self._count = 0

    def _found(
        self, segment: Segment, what: str, line: int | None, row: int | None, *, request_id: str = "", detail: str = ""
    ) -> None:
        self._count += 1
        if self._count <= _MOST_PROBLEMS:
            segment.problems.append(Problem(what, segment.file, line, row, request_id, detail))

    def unreadable(self, log: str, file: str, reason: str) -> Segment:
        segment = Segment(log, file)
        self._found(segment, "unreadable", None, None, detail=reason)
        return segment

    def read(self, log: str, file: str, lines: Iterable[bytes]) -> Segment:
        """Verify one file."""
        told = {each.number for each in self._statements if each.log == log and each.kind in ("head", "lost")}
        segment = Segment(log, file)
        iterator = iter(lines)
        header = next(iterator, b"").decode("utf-8", "replace")
        if header == HEADER:
            self._plain(segment, iterator)
        elif header:
            if header != CHAINED_HEADER:
                self._found(segment, "changed", 1, None, detail="the header")
            for number, line in enumerate(iterator, start=2):
                self._row(segment, number, line.decode("utf-8", "replace"), told)
        return segment

    def _plain(self, segment: Segment, lines: Iterable[bytes]) -> None:
        """Lines without the chain are counted, and named where they say that they are from when it was on. Not those of
        a daily export, which is made later: the database says whether it was."""
        on = [] if segment.log == EXPORTS else periods(self._statements, segment.log)
        chained = [(to_iso(since).encode(), to_iso(until).encode()) for since, until in on]
        for number, line in enumerate(lines, start=2):
            segment.unchained += 1
            at = line[:24]
            if at[:1].isdigit() and any(since <= at < until for since, until in chained):
                detail = "no number and MAC, though the chain was on"
                request_id = _id(line.decode("utf-8", "replace"))
                self._found(segment, "not_in_chain", number, None, request_id=request_id, detail=detail)

    def _row(self, segment: Segment, line: int, text: str, told: set[int]) -> None:
        parsed = link_of(text.rstrip("\n"))
        if parsed is None:
            self._found(segment, "not_in_chain", line, None, request_id=_id(text), detail="no number and MAC")
            return
        row, link = parsed
        if not segment.rows:
            before = link.before
            segment.first, segment.before = link.number, before or ""
            if before is None:
                detail = "the file does not begin with this row"
                self._found(segment, "start_missing", line, link.number, request_id=_id(row), detail=detail)
        elif link.number <= segment.last:
            detail = "put in between, or moved"
            self._found(segment, "out_of_order", line, link.number, request_id=_id(row), detail=detail)
            return
        else:
            follows = link.number == segment.last + 1
            before = segment.mac if follows else None
            if not follows:
                missing = f"rows {segment.last + 1} to {link.number - 1}"
                self._found(segment, "missing", line, segment.last + 1, detail=missing)
        if before is not None and self._chain.mac(before, link.number, row) != link.mac:
            self._found(segment, "changed", line, link.number, request_id=_id(row))
        segment.last, segment.mac = link.number, link.mac
        segment.rows += 1
        if link.number in told:
            segment.macs = {**segment.macs, link.number: link.mac}


def _id(row: str) -> str:
    return row.split(",", 2)[1][:64] if row.count(",") > 1 else ""


def identity(file: int) -> tuple[int, int, int]:
    """What an open file is known by, whatever it is called: its inode, which another file may get once it is gone, and
    a checksum of its beginning."""
    status = os.fstat(file)
    return status.st_dev, status.st_ino, checksum_of_head(os.pread(file, HEAD_BYTES, 0))


def segment_of(verifier: Verifier, log: str, name: str, path: Path) -> Segment:
    """Verify a file. Raises ``FileNotFoundError``."""
    try:
        with opened(path, name) as file:
            known_by = identity(file.fileno())
            segment = verifier.read(log, name, file)
            segment.identity = known_by
        if log == EXPORTS and segment.unchained:
            with path.open("rb") as whole:
                segment.sha256 = hashlib.file_digest(whole, "sha256").hexdigest()
    except FileNotFoundError:
        raise
    except (*UNREADABLE, Damaged) as error:
        return verifier.unreadable(log, name, str(error))
    return segment
