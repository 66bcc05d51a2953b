"""The promise that every audit sink makes. The database's own ``authorization_audit`` is the source; sinks follow it."""

from typing import Protocol

import msgspec

from chargegate.model import Decision


class AuditRow(msgspec.Struct, frozen=True):
    """A decision with its place in the ledger: ``sequence`` grows with each commit."""

    sequence: int
    decision: Decision


class AuditSink(Protocol):
    """A place beside the ledger where decisions are written, each once, in the ledger's order.

    ``write`` is called from one thread at a time. It writes all rows or raises ``OSError``; after an error the
    caller comes back with the same rows. ``resume`` is called once before the first ``write``.
    """

    name: str

    def resume(self, since: int) -> frozenset[str]:
        """Request ids that the sink may already hold beyond the ledger's row ``since`` (its last known position)."""
        ...

    def write(self, rows: list[AuditRow]) -> None: ...

    def close(self) -> None: ...
