"""Writes decisions to a server that could take two of one moment for one, if it did not get them together."""

from chargegate.audit.base import RemoteSink
from chargegate.ledger.base import AuditSource
from chargegate.ledger.records import AuditRow


async def write_together(sink: RemoteSink, source: AuditSource, rows: list[AuditRow]) -> int:
    """As ``RemoteSink.write``. Where the ledger has further rows of the moments of these, all are written again in one
    call, so that the sink can tell them apart. The ledger is asked after each write: whichever process commits such a
    row last, or writes last, sees all of them. Raises ``LedgerUnavailable`` too."""
    refused = await sink.write(rows)
    known = 0
    while len(beside := await source.audit_beside(rows)) > known:
        known = len(beside)
        await sink.write([*rows, *beside])
    return refused
