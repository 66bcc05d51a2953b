"""The promise that every audit sink makes. The database's own ``authorization_audit`` is the source; sinks follow."""

from typing import Protocol

from chargegate.ledger.records import AuditRow


class AuditSink(Protocol):
    """A place beside the ledger where decisions are written, each once, in the ledger's order.

    Called from one thread at a time. ``write`` writes all rows or none and raises ``OSError``; the caller comes back
    with the same rows. What was written before ``sync`` returned survives a power cut. ``prompt``: a write is quick
    enough to be made before those who wait for the commit go on; else it is made soon after, and in pages.
    """

    name: str
    prompt: bool

    def resume(self) -> frozenset[str]:
        """Before the first ``write``: the request ids among the newest that the sink holds already."""
        ...

    def write(self, rows: list[AuditRow]) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...
