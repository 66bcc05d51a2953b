"""The promise that every audit sink makes. The ledger holds the decisions, and the sinks copy them."""

from typing import Protocol

from chargegate.ledger.records import AuditRow


class AuditSink(Protocol):
    """A copy of the decisions outside the ledger: each once, in the ledger's order.

    One thread at a time calls the methods. Each of them may raise ``OSError``.
    """

    name: str

    def resume(self) -> frozenset[str]:
        """Prepare for the first ``write``. Returns the request ids of the newest rows that the sink already holds."""
        ...

    def write(self, rows: list[AuditRow]) -> None:
        """Write all rows or none. After an ``OSError`` the caller tries the same rows again."""
        ...

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        ...

    def close(self) -> None: ...
