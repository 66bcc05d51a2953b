"""What the analysis of the audit found. Reading raises ``LedgerUnavailable``."""

from collections.abc import Sequence

from chargegate.ledger.anomalies import Anomalies, Anomaly
from chargegate.operations.listing import Listing, Place


def anomalies(found: Anomalies, type_: str | None, open_: bool | None) -> Listing[Anomaly]:
    """Anomalies, those that began last first; ``open_``: only those that have not ended, or only others."""

    async def fetch(limit: int, after: Place | None) -> Sequence[Anomaly]:
        return await found.list(type_, open_, limit, after)

    return Listing(Anomaly, ("since", "id"), fetch)
