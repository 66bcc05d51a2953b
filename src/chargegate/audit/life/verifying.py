"""Verifies the chain of a log through all its files: rotated, compressed, archived, and the one that is written.

Each file is verified alone, and then that each goes on where the one before ended. A row whose MAC is wrong was
changed. Where numbers are left out, rows were removed. A row whose number was there before was put in between, or
moved. The signed statements tell whether the chain begins and ends where it should.
"""

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from chargegate.audit.chain import START, Chain, link_of
from chargegate.audit.csv_lines import CHAINED_HEADER, HEADER, UNREADABLE
from chargegate.audit.life.compressing import Damaged, opened
from chargegate.audit.life.heads import Heads, Statement
from chargegate.audit.life.restoring import fetch
from chargegate.audit.life.steps import Life

_MOST_PROBLEMS: Final = 1000


class Problem(msgspec.Struct, frozen=True):
    """``line`` counts from 1 with the header, and is None where it is about no line. ``row`` is the number of a row in
    the chain. ``what``: ``changed``, ``missing``, ``out_of_order``, ``not_in_chain``, ``end_missing``,
    ``start_missing``, ``unreadable``."""

    what: str
    file: str
    line: int | None
    row: int | None
    request_id: str
    detail: str


class Verified(msgspec.Struct, frozen=True):
    """``head``: the number and MAC of the last row of each log, to be kept elsewhere as a proof."""

    files: int
    rows: int
    unchained: int
    head: dict[str, str]
    problems: list[Problem]


def joined(parts: Sequence[Verified]) -> Verified:
    """What was found in the files of several logs."""
    heads = {log: head for part in parts for log, head in part.head.items()}
    return Verified(
        sum(part.files for part in parts),
        sum(part.rows for part in parts),
        sum(part.unchained for part in parts),
        heads,
        [problem for part in parts for problem in part.problems],
    )


class _Segment(msgspec.Struct):
    """What a file holds of the chain. ``macs`` has those rows that a statement is about."""

    file: str
    first: int = 0
    before: str = START
    last: int = 0
    mac: str = START
    rows: int = 0
    unchained: int = 0
    macs: dict[int, str] = {}


class Verifier:
    """Collects what is found in the files, in any order."""

    def __init__(self, chain: Chain, statements: Sequence[Statement]) -> None:
        self._chain = chain
        self._statements = statements
        self._segments: dict[str, list[_Segment]] = defaultdict(list)
        self._problems: list[Problem] = []

    def _found(
        self, what: str, file: str, line: int | None, row: int | None, *, request_id: str = "", detail: str = ""
    ) -> None:
        if len(self._problems) < _MOST_PROBLEMS:
            self._problems.append(Problem(what, file, line, row, request_id, detail))

    def unreadable(self, file: str, reason: str) -> None:
        self._found("unreadable", file, None, None, detail=reason)

    def read(self, log: str, file: str, lines: Iterable[bytes]) -> None:
        """Verify one file. A log without the chain, from before it was switched on, is only counted."""
        told = {statement.number for statement in self._statements if statement.log == log}
        segment = _Segment(file)
        iterator = iter(lines)
        header = next(iterator, b"").decode("utf-8", "replace")
        if header == HEADER:
            segment.unchained = sum(1 for _ in iterator)
        elif header:
            if header != CHAINED_HEADER:
                self._found("changed", file, 1, None, detail="the header")
            for number, line in enumerate(iterator, start=2):
                self._row(segment, file, number, line.decode("utf-8", "replace"), told)
        self._segments[log].append(segment)

    def _row(self, segment: _Segment, file: str, line: int, text: str, told: set[int]) -> None:
        parsed = link_of(text.rstrip("\n"))
        if parsed is None:
            self._found("not_in_chain", file, line, None, request_id=_id(text), detail="no number and MAC")
            return
        row, link = parsed
        if not segment.rows:
            before = link.before
            segment.first, segment.before = link.number, before or ""
            if before is None:
                detail = "the file does not begin with this row"
                self._found("start_missing", file, line, link.number, request_id=_id(row), detail=detail)
        elif link.number <= segment.last:
            self._found("out_of_order", file, line, link.number, request_id=_id(row), detail="put in between, or moved")
            return
        else:
            follows = link.number == segment.last + 1
            before = segment.mac if follows else None
            if not follows:
                missing = f"rows {segment.last + 1} to {link.number - 1}"
                self._found("missing", file, line, segment.last + 1, detail=missing)
        if before is not None and self._chain.mac(before, link.number, row) != link.mac:
            self._found("changed", file, line, link.number, request_id=_id(row))
        segment.last, segment.mac = link.number, link.mac
        segment.rows += 1
        if link.number in told:
            segment.macs = {**segment.macs, link.number: link.mac}

    def result(self) -> Verified:
        """After all files: whether they join, and begin and end where the signed statements say."""
        heads = {}
        for log, segments in sorted(self._segments.items()):
            chained = sorted((s for s in segments if s.rows), key=lambda segment: (segment.first, segment.last))
            self._joined(log, chained)
            self._ended(log, chained)
            if chained:
                heads[log] = f"{chained[-1].last}-{chained[-1].mac}"
        for log in {statement.log for statement in self._statements} - self._segments.keys():
            self._ended(log, [])
        every = [segment for segments in self._segments.values() for segment in segments]
        return Verified(
            len(every), sum(s.rows for s in every), sum(s.unchained for s in every), heads, list(self._problems)
        )

    def _joined(self, log: str, segments: list[_Segment]) -> None:
        starts = {(s.number, s.mac) for s in self._statements if s.log == log and s.kind == "start"}
        last, mac, name = 0, START, ""
        for segment in segments:
            place = (segment.first - 1, segment.before)
            if segment.first <= last:
                self._found("out_of_order", segment.file, None, segment.first, detail=f"{name} has this row too")
            elif place != (last, mac) and not (not name and place in starts):
                if segment.first == last + 1:
                    self._found("changed", segment.file, None, segment.first, detail="it follows another row")
                else:
                    what = "missing" if name else "start_missing"
                    detail = f"rows {last + 1} to {segment.first - 1}, before this file"
                    self._found(what, segment.file, None, last + 1, detail=detail)
            if segment.last >= last:
                last, mac, name = segment.last, segment.mac, segment.file

    def _ended(self, log: str, segments: list[_Segment]) -> None:
        last = max((segment.last for segment in segments), default=0)
        macs = {number: mac for segment in segments for number, mac in segment.macs.items()}
        started = max((s.number for s in self._statements if s.log == log and s.kind == "start"), default=0)
        for statement in self._statements:
            if statement.log != log or statement.kind != "head" or statement.number <= started:
                continue
            if statement.number > last:
                self._found(
                    "end_missing", log, None, last + 1, detail=f"rows {last + 1} to {statement.number} were there"
                )
            elif macs.get(statement.number, statement.mac) != statement.mac:
                self._found("changed", log, None, statement.number, detail="another row was there")


def _id(row: str) -> str:
    return row.split(",", 2)[1][:64] if row.count(",") > 1 else ""


async def verify(
    life: Life, heads: Heads, on_file: Callable[[int, int], None], *, only: Sequence[Path] = ()
) -> Verified:
    """Verify all files of this service's log, here and archived; or ``only`` files that somebody has. Raises
    ``ArchiveUnavailable`` and ``OSError``."""
    told = [] if only else await asyncio.to_thread(heads.statements)
    statements = [statement for statement in told if life.files.is_log(statement.log)]
    verifier = Verifier(heads.chain, statements)
    archived = [] if only else await life.archived_here()
    here = list(only) or life.files.beside()
    local = {path.name.removesuffix(".zst") for path in here}
    total = len(archived) + len(here)
    with tempfile.TemporaryDirectory(prefix="chargegate-verify-") as folder:
        for number, file in enumerate(archived):
            on_file(number, total)
            if file.name in local:
                continue  # a run that moves it was killed, and it is verified here
            path = Path(folder) / "fetched"
            try:
                await fetch(life, file, path)
                await asyncio.to_thread(_read, verifier, file.log, file.key, path)
            except Damaged as error:
                verifier.unreadable(file.key, str(error))
    for number, path in enumerate(here, start=len(archived)):
        on_file(number, total)
        log = life.files.log_of(path.name)
        await asyncio.to_thread(_read, verifier, log, str(path) if only else path.name, path)
    on_file(total, total)
    return verifier.result()


def _read(verifier: Verifier, log: str, name: str, path: Path) -> None:
    try:
        with opened(path, name) as file:
            verifier.read(log, name, file)
    except FileNotFoundError:
        return  # it was rotated or archived just now; the next run sees it there
    except (*UNREADABLE, Damaged) as error:
        verifier.unreadable(name, str(error))
