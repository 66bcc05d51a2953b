"""Copies a database into another, page by page, each page one commit. See ``chargegate.ledger.transfer``."""

import asyncio
from collections.abc import Callable
from typing import Final

from chargegate.ledger.base import AccessList
from chargegate.ledger.records import CLAIM_MS
from chargegate.ledger.transfer import LedgerSource, LedgerTarget
from chargegate.model import now_ms

KINDS: Final = ("requests", "audit_rows", "access_list_entries", "idempotency_keys")

_PAGE: Final = 2000

OnCopied = Callable[[str, int], None]


async def copy(source: LedgerSource, target: LedgerTarget, on_copied: OnCopied) -> None:
    """``on_copied`` is told which of ``KINDS``, and how many more of it are in the target now; at first none of each.
    Raises ``LedgerUnavailable``, and ``ValueError`` for a value that the target's tables do not take."""
    for kind in KINDS:
        on_copied(kind, 0)
    request_id = ""
    while requests := await source.requests(request_id, _PAGE):
        request_id = requests[-1].request_id
        changed, audited = await target.put_requests(requests)
        on_copied("requests", changed)
        on_copied("audit_rows", audited)
    # What waits in the same database's queue is listed, because the queue that it goes to may not find it.
    place = 0
    while waiting := await source.waiting(place, _PAGE):
        place = waiting[-1].place
        on_copied("requests", await target.put_waiting(waiting))
    await _copy_access_list(source.access_list, target.access_list, on_copied)
    key, since = "", now_ms() - CLAIM_MS
    while claims := await source.claims(key, _PAGE, since):
        key = claims[-1].key_digest
        on_copied("idempotency_keys", await target.put_claims(claims))
    # These come last, because one of them says that a file's entries are in the access list.
    await target.put_values(await source.values())


async def _copy_access_list(source: AccessList, target: AccessList, on_copied: OnCopied) -> None:
    after = None
    while page := await source.entries(_PAGE, after):
        after = page[-1].driver_token_hash
        present = await asyncio.gather(*(target.entry(entry.driver_token_hash) for entry in page))
        new = [entry for entry, known in zip(page, present, strict=True) if known is None]
        await target.put(new)
        on_copied("access_list_entries", len(new))
