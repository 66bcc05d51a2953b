"""The chain of audit rows in the database: for each row of a writer a link, which follows the row by a second at most.

A link's MAC is over the MAC of the link before, the link's number, the row's sequence, and the row (``audit.chain``).
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from chargegate.ledger.records import AuditRow


class RowLink(msgspec.Struct, frozen=True):
    """``number`` counts the rows of a writer from 1 on; ``sequence`` is the row's."""

    number: int
    sequence: int
    mac: bytes


class AuditChain(Protocol):
    """Raises ``LedgerUnavailable``. A writer's rows and links are listed in the order of their numbers."""

    writer: str
    """Whose rows this process writes."""

    async def writers(self) -> Sequence[str]:
        """Those that have links."""
        ...

    async def last_link(self) -> RowLink | None:
        """This writer's newest."""
        ...

    async def add(self, links: Sequence[RowLink]) -> bool:
        """To this writer's. One that is there stays as it is. False where one of their rows was dropped meanwhile; then
        none is added. So each link has its row, except those before a signed start."""
        ...

    async def links(self, writer: str, after: int, limit: int) -> Sequence[RowLink]: ...

    async def rows(self, writer: str, after: int, limit: int) -> Sequence[AuditRow]:
        """Audit rows after a sequence."""
        ...

    async def old_links(self, at: int) -> Sequence[tuple[str, RowLink]]:
        """For each writer the newest link of a row that retention drops when it drops what is older than ``at``."""
        ...

    async def drop(self, writer: str, last: RowLink) -> None:
        """Links before ``last``, which a statement tells. Those of rows that are still there stay, each with the one
        before it, by which it is verified."""
