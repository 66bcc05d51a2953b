"""Carries out the steps of the life of audit files and rows, for a command or on a schedule."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

import msgspec

from chargegate.audit.chaining import drop_links
from chargegate.audit.kept_heads import KeptHeads
from chargegate.audit.life.archive import ArchiveUnavailable
from chargegate.audit.life.compressing import Damaged
from chargegate.audit.life.exporting import Exporter, exported_until
from chargegate.audit.life.files import LifeBusy, name_of_day
from chargegate.audit.life.names import ArchivedFile
from chargegate.audit.life.steps import Done, Item, Life, Step
from chargegate.audit.row_statements import Statements
from chargegate.ledger.base import AuditRetention, LedgerUnavailable
from chargegate.ledger.chain import AuditChain
from chargegate.ledger.exports import AuditExports
from chargegate.ledger.records import DroppedAudit
from chargegate.model import Moment, now_ms
from chargegate.observe import log

_TURN_MS: Final = 600_000


class Watcher(Protocol):
    """Who is told how far it is. ``planned``: so many items are due in this step."""

    def planned(self, step: Step, count: int) -> None: ...

    def done(self, done: Done) -> None: ...

    def failed(self, step: Step, file: str, error: str) -> None: ...


async def carry_out(
    life: Life,
    steps: Sequence[Step],
    now: int,
    watcher: Watcher,
    *,
    every: bool = False,
    before: int | None = None,
    dry_run: bool = False,
    for_s: float = math.inf,
) -> set[Step]:
    """What fails is told, and the rest goes on; but an archive that is away ends its step. After ``for_s`` no step
    begins another item than its first; returns the steps that are not through. See ``Life.due`` for ``every`` and
    ``before``. Raises ``LifeBusy``, ``Stopped``, and ``OSError`` where the folder cannot be used."""
    options = _Options(now, every, before, dry_run, time.monotonic() + for_s)
    if dry_run:
        return {step for step in steps if await _step(life, step, watcher, options)}
    with life.files.locked():
        life.files.remove_parts()
        return {step for step in steps if await _step(life, step, watcher, options)}


async def export_days(
    exporter: Exporter,
    exports: AuditExports,
    now: int,
    watcher: Watcher,
    *,
    every: bool = False,
    dry_run: bool = False,
    for_s: float = math.inf,
) -> bool:
    """Export the days that are due, oldest first. See ``Exporter.next_day`` for ``every``. After ``for_s`` no other
    day is begun; whether there may be one. Raises ``LifeBusy`` also where another of the services that share the
    database does it, ``Stopped``, ``LedgerUnavailable``, and ``OSError`` where the folder cannot be used."""
    end = time.monotonic() + for_s
    if dry_run:
        day = None
        while (day := await exporter.next_day(now, every=every, after=day)) is not None:
            watcher.done(Done("export", day.file, day.file, 0))
        return False
    with exporter.files.locked():
        exporter.files.remove_parts()
        await exporter.settle()
        while True:
            if not await exports.take_turn(exporter.origin, now_ms(), _TURN_MS):
                raise LifeBusy("another of the services that share the database exports its rows now")
            day = await exporter.next_day(now, every=every)
            if day is None:
                return False
            watcher.planned("export", 1)
            try:
                file = await exporter.export(day, now)
            except (OSError, Damaged) as error:
                reason = error.strerror if isinstance(error, OSError) else None
                watcher.failed("export", day.file, reason or str(error))
                return False
            if file is not None:
                watcher.done(Done("export", name_of_day(day.since), file.file, file.bytes))
            if time.monotonic() >= end:
                return True


class _Options(NamedTuple):
    """See ``carry_out``. ``end`` is of the monotonic clock."""

    now: int
    every: bool
    before: int | None
    dry_run: bool
    end: float


async def _step(life: Life, step: Step, watcher: Watcher, options: _Options) -> bool:
    """Whether something of the step is left that is to be done soon."""
    now = options.now
    due = partial(life.due, step, now, every=options.every, before=options.before)
    try:
        items = await due()
    except ArchiveUnavailable as error:
        watcher.failed(step, "", str(error))
        items = await due(only_here=True)
    watcher.planned(step, len(items))
    for number, item in enumerate(items):
        if number and time.monotonic() >= options.end:
            return True
        if options.dry_run:
            watcher.done(Done(step, item.name, life.target_of(item, now), item.size))
        elif not await _carried_out(life, item, now, watcher):
            return False
    return False


async def _carried_out(life: Life, item: Item, now: int, watcher: Watcher) -> bool:
    """Whether the step may go on with the next item."""
    try:
        done = await life.carry_out(item, now)
    except ArchiveUnavailable as error:
        watcher.failed(item.step, item.name, str(error))
        return False
    except (OSError, Damaged) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        watcher.failed(item.step, item.name, reason or str(error))
        return True
    if done is not None:
        watcher.done(done)
    return True


async def sign_heads(lives: Sequence[Life], kept: KeptHeads) -> None:
    """Sign how far each log has come, and keep what is signed in the database as well, from which it comes back where
    somebody made it away. A row that was signed before and is gone is logged. Raises ``OSError`` and, after it was
    signed, ``LedgerUnavailable``."""
    away: LedgerUnavailable | None = None
    try:
        await kept.restore()
    except LedgerUnavailable as error:
        away = error
    for life in lives:
        for each in await asyncio.to_thread(life.sign_heads, now_ms()):
            log.error("rows of the audit are gone or changed that were signed", log=each.log, row=each.number)
    if away is not None:
        raise away
    await kept.keep()


class Place(msgspec.Struct, frozen=True):
    """Where a part of the audit is: ``state`` is ``written``, ``rotated``, ``compressed``, ``exported`` or
    ``archived``. ``first``
    and ``last`` are Unix ms, and None where only a reading of the file would tell."""

    state: str
    file: str
    origin: str
    first: Moment | None
    last: Moment | None
    bytes: int


async def places(lives: Sequence[Life]) -> list[Place]:
    """All files of this log and all daily exports, and all that the archive has, oldest first. Raises
    ``ArchiveUnavailable``."""
    found: list[Place] = []
    written: list[Place] = []
    for life in lives:
        found += [_archived_place(file) for file in await life.archived()]
        for file in life.files.rotated():
            state = "exported" if life.files.exports else "compressed" if file.compressed else "rotated"
            found.append(Place(state, file.path.name, "", None, file.rotated_at, file.size))
        paths = life.files.written()
        written += [Place("written", path.name, "", None, None, path.stat().st_size) for path in paths]
    found.sort(key=lambda place: (place.last or 0, place.file))
    return found + written


def _archived_place(file: ArchivedFile) -> Place:
    return Place("archived", file.key, file.origin, file.first, file.last, file.size)


async def drop_chained_rows(
    ledger: AuditRetention,
    links: AuditChain,
    statements: Statements,
    before: int,
    *,
    on_dropped: Callable[[int], None],
    exports: AuditExports | None,
) -> DroppedAudit:
    """As ``AuditRetention.drop_audit_before``, and what remains of the chains of the rows begins with a signed start.
    ``exports``: where rows are exported daily; then only those go that are. Raises ``LedgerUnavailable`` and
    ``OSError``."""
    if exports is not None:
        before = min(before, await exported_until(exports))
    drop = partial(ledger.drop_audit_before, before, on_dropped, exported=exports is not None)
    dropped: DroppedAudit = await drop_links(links, statements, before, drop)
    return dropped
