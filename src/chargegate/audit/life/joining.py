"""Whether the files of a log join: each goes on where the one before ended, but for what was deleted as old."""

from collections.abc import Callable, Sequence

import msgspec

from chargegate.audit.chain import START
from chargegate.audit.life.heads import Statement, started_at
from chargegate.model import to_iso


class Problem(msgspec.Struct, frozen=True):
    """``line`` counts from 1 with the header, and is None where it is about no line. ``row`` is the number of a row in
    the chain. ``what``: ``changed``, ``missing``, ``out_of_order``, ``not_in_chain``, ``end_missing``,
    ``start_missing``, ``unreadable``, ``statement_missing``, ``statement_changed``."""

    what: str
    file: str
    line: int | None
    row: int | None
    request_id: str
    detail: str


class Segment(msgspec.Struct):
    """What a file holds of the chain. ``macs`` has those rows that a statement is about. ``identity`` is what
    the file is known by, whatever it is called. ``sha256`` is of a daily export without the chain. ``problems``: those
    within the file."""

    log: str
    file: str
    identity: tuple[int, int, int] | None = None
    sha256: str = ""
    first: int = 0
    before: str = START
    last: int = 0
    mac: str = START
    rows: int = 0
    unchained: int = 0
    macs: dict[int, str] = {}
    problems: list[Problem] = []


def between(
    log: str, segments: Sequence[Segment], statements: Sequence[Statement], found: Callable[[Problem], None]
) -> None:
    """Tell what is wrong between a log's files, which are in the order of their rows, and at both its ends.
    ``statements`` are those about this log."""
    last, mac, name = 0, START, ""
    for segment in segments:
        if segment.first <= last:
            detail = f"{name} has this row too"
            found(Problem("out_of_order", segment.file, None, segment.first, "", detail))
        elif (segment.first - 1, segment.before) != (last, mac):
            _gap(segment, _after_deleted(statements, last, mac, segment.first), name, found)
        if segment.last >= last:
            last, mac, name = segment.last, segment.mac, segment.file
    furthest = max((each.number for each in statements if each.kind in ("start", "gone")), default=0)
    reached = _after_deleted(statements, last, mac, furthest + 1)[0]
    if reached < furthest:
        detail = f"rows from {reached + 1} on, before some that were deleted because they were old"
        found(Problem("missing", log, None, reached + 1, "", detail))
    _end(log, segments, statements, found)


def _gap(segment: Segment, reached: tuple[int, str | None], name: str, found: Callable[[Problem], None]) -> None:
    """``reached``: up to where rows are there, or were deleted because they were old."""
    row, mac = reached
    if row >= segment.first or (row == segment.first - 1 and mac in (segment.before, None)):
        return
    if row == segment.first - 1:
        found(Problem("changed", segment.file, None, segment.first, "", "it follows another row"))
    else:
        detail = f"rows {row + 1} to {segment.first - 1}, before this file"
        found(Problem("missing" if name else "start_missing", segment.file, None, row + 1, "", detail))


def _after_deleted(statements: Sequence[Statement], row: int, mac: str, upto: int) -> tuple[int, str | None]:
    """Follow what was signed as deleted from after a row on. Where a deletion begins within the rows that are there, a
    process died between the two."""
    deleted = [each for each in statements if each.kind in ("start", "gone")]
    while row < upto - 1:
        follows = [
            each
            for each in deleted
            if each.covers[0] <= row + 1 <= each.number and (each.covers[0] <= row or each.covers[1] == mac)
        ]
        if not follows:
            break
        furthest = max(follows, key=lambda each: each.number)
        row, mac = furthest.number, furthest.mac
    return row, mac


def _end(
    log: str, segments: Sequence[Segment], statements: Sequence[Statement], found: Callable[[Problem], None]
) -> None:
    deleted = [each.number for each in statements if each.kind in ("start", "gone")]
    last = max([*(segment.last for segment in segments), *deleted], default=0)
    macs = {number: mac for segment in segments for number, mac in segment.macs.items()}
    started = started_at(statements, log)
    for each in statements:
        if each.number <= started:
            continue
        if each.kind == "lost":
            detail = f"row {each.number} was not there any more at {to_iso(each.at)}"
            found(Problem("end_missing", log, None, each.number, "", detail))
        elif each.kind == "head" and each.number > last:
            detail = f"rows {last + 1} to {each.number} were there"
            found(Problem("end_missing", log, None, last + 1, "", detail))
        elif each.kind == "head" and macs.get(each.number, each.mac) != each.mac:
            found(Problem("changed", log, None, each.number, "", "another row was there"))
