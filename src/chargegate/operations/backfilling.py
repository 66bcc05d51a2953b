"""Gives a sink the decisions of a time range again, from the ledger."""

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from chargegate.ledger.base import AuditHistory
from chargegate.ledger.records import AuditRow

_PAGE: Final = 2000


class Filled(msgspec.Struct):
    """How many decisions the range has, how many of them the sink was given because it lacked them or takes them again
    without a change, and how many of those it will never take."""

    decisions: int = 0
    written: int = 0
    refused: int = 0


class Fillable(Protocol):
    """A sink that can be given any row, at any time and in any order, and has each once."""

    follower: str
    """The sink whose writers are still to give it the rows after their saved positions; empty where they may be given
    twice."""

    def lacking(self, rows: list[AuditRow]) -> list[AuditRow]:
        """Those of the rows that the sink may lack."""
        ...

    async def write(self, rows: list[AuditRow]) -> int:
        """Write rows that it lacks. Returns how many it will never take."""
        ...

    async def close(self) -> None:
        """Make what was written survive a power cut, and close the sink."""
        ...


async def backfill(
    history: AuditHistory,
    sink: Fillable,
    since: int | None,
    until: int | None,
    *,
    dry_run: bool,
    on_read: Callable[[int], None],
) -> Filled:
    """Write what a sink lacks of the range, oldest first; with ``dry_run`` only count it. ``on_read`` is told again and
    again how many decisions were looked at. Raises what the sink and the ledger raise."""
    filled = Filled()
    after: tuple[int, str] | None = None
    while rows := await history.audit_between(sink.follower, since, until, after, _PAGE):
        newest = rows[-1].decision
        after = (newest.timestamp, newest.request_id)
        lacking = sink.lacking(rows)
        if lacking and not dry_run:
            filled.refused += await sink.write(lacking)
        filled.decisions += len(rows)
        filled.written += len(lacking)
        on_read(filled.decisions)
    return filled
