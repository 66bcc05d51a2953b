"""Decisions of one moment reach a server in one call at last, whoever commits and writes last."""

import asyncio
from collections.abc import Callable
from typing import Any

from chargegate.audit.line_protocol import places_of
from chargegate.audit.together import write_together
from chargegate.ledger.records import AuditRow
from chargegate.model import Decision

Decide = Callable[..., Decision]


class Points:
    """A server that knows a point by its moment, which is the same for all, and its place in a call."""

    name = "points"

    def __init__(self) -> None:
        self.held: dict[int, str] = {}
        self.calls: list[int] = []

    async def write(self, rows: list[AuditRow]) -> int:
        places = places_of(rows)
        self.calls.append(len(rows))
        self.held |= {places.get(row.decision.request_id, 0): row.decision.request_id for row in rows}
        return len(rows)

    async def close(self) -> None: ...


class Growing:
    """A ledger in which others have committed so many rows by each time that it is asked."""

    def __init__(self, others: list[AuditRow], *counts: int) -> None:
        self._others = others
        self._counts = list(counts)

    async def audit_beside(self, _rows: Any) -> list[AuditRow]:
        return self._others[: self._counts.pop(0) if len(self._counts) > 1 else self._counts[0]]


def test_rows_that_others_commit_meanwhile_are_written_too(decide: Decide) -> None:
    own = [AuditRow(1, decide("m"))]
    others = [AuditRow(number, decide(name), "other") for number, name in enumerate("zab", 1)]
    for counts, calls in (((0,), [1]), ((1,), [2]), ((0, 1), [1, 2]), ((0, 1, 3), [1, 2, 4]), ((3,), [4])):
        server, source = Points(), Growing(others, *counts)
        refused = asyncio.run(write_together(server, source, own))  # type: ignore[arg-type]  # it answers what is asked
        assert server.calls == calls
        assert sorted(server.held.values()) == sorted(["m", *"zab"[: counts[-1]]])
        assert refused == 1
