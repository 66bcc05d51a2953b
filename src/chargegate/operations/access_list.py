"""The access list: kept, checked and imported. Every operation raises ``LedgerUnavailable``."""

import asyncio
import io
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, Final, Literal

import msgspec

from chargegate.authorizers.acl import judge
from chargegate.authorizers.acl_entries import AclLineError, entry_from, read_csv
from chargegate.keys import Keyring
from chargegate.ledger.base import AccessList
from chargegate.ledger.records import AccessEntry
from chargegate.model import Status, TokenHash, broken, now_ms, station_fault, token_fault
from chargegate.operations.listing import Listing, Place
from chargegate.operations.views import shown

# A commit of so many does not hold up a running service.
_IN_ONE_COMMIT: Final = 5000
_CHANGES_SHOWN: Final = 100


class Judgement(msgspec.Struct):
    """What would be decided now."""

    station_id: str
    status: Status
    reason: str


def access_entries(access_list: AccessList) -> Listing[AccessEntry]:
    """The entries, in the order of their hashes."""

    async def fetch(limit: int, after: Place | None) -> Sequence[AccessEntry]:
        return await access_list.entries(limit, after[1] if after else None)

    return Listing(AccessEntry, ("driver_token_hash",), fetch)


async def put_entry(access_list: AccessList, keyring: Keyring, fields: Mapping[str, object]) -> AccessEntry:
    """Add an entry, or replace the one of the same token. The fields are those of ``acl_entries.FIELDS``. Raises
    ``Invalid``."""
    entry = entry_from(fields, keyring.token_hash)
    await access_list.put([entry])
    return entry


async def block_entry(access_list: AccessList, token_hash: str, *, blocked: bool) -> AccessEntry | None:
    """Block the entry with this hash, or let it in again. Returns it; None where there is none."""
    entry = await access_list.entry(token_hash)
    if entry is not None and entry.blocked != blocked:
        entry = msgspec.structs.replace(entry, blocked=blocked)
        await access_list.put([entry])
    return entry


async def remove_entry(access_list: AccessList, keyring: Keyring, token_or_hash: str) -> str | None:
    """Remove the entry with this hash, or else that of this token. Returns its hash; None where there was none."""
    for token_hash in (token_or_hash.lower(), keyring.token_hash(token_or_hash)):
        if await access_list.remove(token_hash):
            return token_hash
    return None


async def check_access(access_list: AccessList, keyring: Keyring, fields: Mapping[str, object]) -> Judgement:
    """What the access list decides about ``station_id`` and ``driver_token``. It is recorded nowhere. Raises
    ``Invalid``."""
    faults = {
        name: fault(fields[name]) if name in fields else "is required"
        for name, fault in (("station_id", station_fault), ("driver_token", token_fault))
    }
    if details := {name: fault for name, fault in faults.items() if fault}:
        raise broken(details)
    station = str(fields["station_id"])
    entry = await access_list.entry(keyring.token_hash(str(fields["driver_token"])))
    verdict = judge(entry, station, now_ms())
    return Judgement(station, verdict.status, verdict.reason)


class FieldChange(msgspec.Struct, frozen=True):
    """A field of an entry before and after, as the entry shows it. ``old`` is null for an entry that is added."""

    field: str
    old: bool | str | list[str] | None
    new: bool | str | list[str] | None


class Change(msgspec.Struct, frozen=True):
    """What a line of a CSV file does to the access list. The hash is that of the line's token. ``fields`` are those
    that the line changes; of an entry that is added, those that say something."""

    driver_token_hash: TokenHash
    change: Literal["added", "changed"]
    blocked: bool
    note: str
    fields: list[FieldChange]


class Changes(msgspec.Struct, frozen=True):
    """What a CSV file does to the access list. ``items`` are the first of those that change something. ``fault`` names
    the line that breaks a rule, and which one: then nothing is stored, and nothing is counted."""

    added: int
    changed: int
    unchanged: int
    stored: bool
    fault: str | None
    items: list[Change]


async def import_bytes(
    access_list: AccessList, keyring: Keyring, content: bytes, *, store: bool
) -> tuple[Changes, frozenset[str]]:
    """What the CSV file with this content changes, and the hashes of what it changed; it is stored only if told to. One
    wrong line, and nothing is stored. Its rules and faults are those of ``import_csv``."""
    try:
        entries = list(read_csv(_lines_of(io.BytesIO(content)), keyring.token_hash))
    except AclLineError as error:
        return Changes(0, 0, 0, stored=False, fault=str(error), items=[]), frozenset()
    added, changed = [], []
    for entry in entries:
        known = await access_list.entry(entry.driver_token_hash)
        if known is None:
            added.append(_change(None, entry))
        elif known != entry:
            changed.append(_change(known, entry))
    altering = [*added, *changed]
    if store and altering:
        await access_list.put(entries)
    hashes = frozenset(change.driver_token_hash for change in altering)
    return Changes(
        added=len(added),
        changed=len(changed),
        unchanged=len(entries) - len(altering),
        stored=store,
        fault=None,
        items=altering[:_CHANGES_SHOWN],
    ), hashes if store else frozenset()


def _change(known: AccessEntry | None, entry: AccessEntry) -> Change:
    before, after = shown(known or AccessEntry(entry.driver_token_hash)), shown(entry)
    fields = [
        FieldChange(name, before[name] if known else None, value)
        for name, value in after.items()
        if value != before[name]
    ]
    return Change(entry.driver_token_hash, "changed" if known else "added", entry.blocked, entry.note, fields)


def _lines_of(file: BinaryIO) -> io.TextIOWrapper:
    """A file as ``read_csv`` wants it."""
    return io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")


async def import_csv(
    access_list: AccessList,
    keyring: Keyring,
    file: BinaryIO,
    on_checked: Callable[[int], None],
    on_stored: Callable[[int, int], None],
) -> int:
    """Add or replace the entries of a CSV file, and return how many there are. One wrong line, and nothing is stored.

    ``on_checked`` is told how many bytes are read, ``on_stored`` how many entries are stored, and of how many. The file
    is closed at the end. Raises ``AclLineError`` and ``OSError``.
    """
    entries = []
    with _lines_of(file) as lines:
        for entry in read_csv(lines, keyring.token_hash):
            entries.append(entry)
            if len(entries) % _IN_ONE_COMMIT == 0:
                on_checked(file.tell())
                await asyncio.sleep(0)  # lets an interrupt in
    for start in range(0, len(entries), _IN_ONE_COMMIT):
        part = entries[start : start + _IN_ONE_COMMIT]
        await access_list.put(part)
        on_stored(start + len(part), len(entries))
    return len(entries)
