"""Copies a database into another, page by page, each page one commit. See ``chargegate.ledger.transfer``."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar, get_args

import msgspec

from chargegate.ledger.base import AccessList, LedgerUnavailable
from chargegate.ledger.exports import ExportedFile
from chargegate.ledger.records import CLAIM_MS, AccessEntry
from chargegate.ledger.transfer import CountKind, LedgerSource, LedgerTarget, WaitingRequest
from chargegate.model import now_ms

T = TypeVar("T")

KINDS: Final = ("requests", "audit_rows", "access_list_entries", "idempotency_keys")

_PAGE: Final = 2000

OnCopied = Callable[[str, int], None]
ClientOf = Callable[[WaitingRequest], str]


async def copy(
    source: LedgerSource,
    target: LedgerTarget,
    on_copied: OnCopied,
    *,
    client_of: ClientOf = lambda _: "",
    source_name: str = "source",
    target_name: str = "target",
) -> None:
    """``on_copied`` is told which of ``KINDS``, and how many more of it are in the target now; at first none of each.
    ``client_of`` opens a waiting request, and says whose it is.
    Raises ``LedgerUnavailable``, whose message begins with the name of the one that failed, ``ValueError`` for a value
    that the target's tables do not take, and ``Unmergeable``, then as a rule before anything is copied."""
    read, write = partial(_named, source_name), partial(_named, target_name)
    await _each_export(source, read, lambda files: write(target.refuse_others(files)))
    for kind in KINDS:
        on_copied(kind, 0)
    request_id = ""
    while requests := await read(source.requests(request_id, _PAGE)):
        request_id = requests[-1].request_id
        changed, audited = await write(target.put_requests(requests))
        on_copied("requests", changed)
        on_copied("audit_rows", audited)
    # What waits in the same database's queue is listed, because the queue that it goes to may not find it.
    place = 0
    while waiting := await read(source.waiting(place, _PAGE)):
        place = waiting[-1].place
        named = [msgspec.structs.replace(request, client=client_of(request)) for request in waiting]
        on_copied("requests", await write(target.put_waiting(named)))
    token_hash = None
    while entries := await read(source.access_list.entries(_PAGE, token_hash)):
        token_hash = entries[-1].driver_token_hash
        on_copied("access_list_entries", await write(_put_new(target.access_list, entries)))
    key, since = "", now_ms() - CLAIM_MS
    while claims := await read(source.claims(key, _PAGE, since)):
        key = claims[-1].key_digest
        on_copied("idempotency_keys", await write(target.put_claims(claims)))
    number = 0
    while links := await read(source.links(number, _PAGE)):
        number = links[-1].number
        await write(target.put_links(links))
    await _each_export(source, read, lambda files: write(target.put_exports(files)))
    for kind in get_args(CountKind):
        at = await write(target.counts_place(kind))
        while counts := await read(source.gone_counts(kind, at, _PAGE)):
            at = counts[-1][0], counts[-1][1]
            await write(target.put_counts(kind, counts))
    # These come last, because one of them says that a file's entries are in the access list.
    await write(target.put_values(await read(source.values())))


async def _each_export(
    source: LedgerSource,
    read: Callable[..., Awaitable[Any]],
    use: Callable[[Sequence[ExportedFile]], Awaitable[Any]],
) -> None:
    number = 0
    while files := await read(source.exports(number, _PAGE)):
        number = files[-1].number
        await use(files)


async def _put_new(access_list: AccessList, entries: Sequence[AccessEntry]) -> int:
    """Put the entries that are not there. Returns how many these were."""
    present = await asyncio.gather(*(access_list.entry(entry.driver_token_hash) for entry in entries))
    new = [entry for entry, known in zip(entries, present, strict=True) if known is None]
    await access_list.put(new)
    return len(new)


async def _named(name: str, work: Awaitable[T]) -> T:
    try:
        return await work
    except LedgerUnavailable as error:
        raise LedgerUnavailable(f"{name}: {error}") from None
