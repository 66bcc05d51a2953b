"""The promise that every audit sink makes. The ledger holds the decisions, and the sinks copy them."""

from typing import Protocol

from chargegate.ledger.records import AuditRow


class AuditSink(Protocol):
    """A copy of the decisions outside the ledger: each once, in the ledger's order.

    One thread at a time calls the methods, except for ``sync``. Each of them may raise ``OSError``.
    """

    name: str

    def last_written(self) -> tuple[int, str] | None:
        """The sequence and the request id of the newest row that the sink remembers to have written. It is not asked
        for all that it remembers before the ledger has confirmed that row."""
        ...

    def resume(self, saved: int = 0, *, remembered: bool = False) -> int:
        """Prepare for the first ``write``. Returns the sequence of the row after which rows may be missing.

        ``saved`` is the position that the ledger has. ``remembered``: the ledger has the row that ``last_written``
        told, so that the sink may go by what it remembers.
        """
        ...

    def held(self) -> frozenset[str]:
        """After ``resume``, the request ids of the newest rows that the sink holds already."""
        ...

    def write(self, rows: list[AuditRow]) -> None:
        """Write all rows or none. After an ``OSError`` the caller tries the same rows again."""
        ...

    def sync(self) -> None:
        """Make what was written before this call survive a power cut. Another thread may write meanwhile."""
        ...

    def close(self) -> None: ...
