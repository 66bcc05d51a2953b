"""Writes decisions to a server that could mistake two of one moment for one, if it did not get them together."""

from chargegate.audit.base import RemoteSink
from chargegate.ledger.base import AuditSource
from chargegate.ledger.records import AuditRow


async def write_together(sink: RemoteSink, source: AuditSource, rows: list[AuditRow]) -> int:
    """As ``RemoteSink.write``, with the further rows of the moments of these that the ledger has. It is asked again
    after each write, and where there are more, all are written again: whichever process commits such a row last, or
    writes last, sees all of them. Raises ``LedgerUnavailable`` too."""
    others = await source.audit_beside(rows)
    refused = await sink.write([*rows, *others])
    while len(more := await source.audit_beside(rows)) > len(others):
        others = more
        await sink.write([*rows, *others])
    return min(refused, len(rows))
