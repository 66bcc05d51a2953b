"""Exports the database's audit rows, one file for each day: CSV as in the log, compressed, with a chain of its own.

A file is written as a draft, synced and read back. Then the database notes in one commit that it counts and what is
exported since, and only then the draft gets its name. Whoever runs next gives a draft its name that counts, and deletes
any other. So a kill loses no row and exports none twice, whichever process goes on.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import IO, Any, Final, TypeVar

import msgspec

from chargegate.audit.chain import BEGINNING, Chain, Link, link_of
from chargegate.audit.csv_lines import CHAINED_HEADER, HEADER, as_lines
from chargegate.audit.life.compressing import Damaged, Stopped, content_of, packing
from chargegate.audit.life.files import COMPRESSED, DAY_MS, EXPORTS, ExportFiles, name_of_day, remove, sync_folder
from chargegate.audit.life.heads import Heads, Statement
from chargegate.audit.life.links import holds
from chargegate.ledger.base import AuditHistory
from chargegate.ledger.exports import AuditExports, ExportedFile, positions_of
from chargegate.ledger.records import AuditRow
from chargegate.observe import log

T = TypeVar("T")

_PAGE: Final = 2000
_WINDOW: Final = 50_000
_PAUSE_S: Final = 0.005
_ONLY_WRITER: Final = "embedded"
"""How positions name the writer of the embedded database, whose rows name none."""


class Day(msgspec.Struct, frozen=True):
    """What the next file is to hold: rows that were decided from ``since`` on and before ``until`` (Unix ms), and any
    from before that are in no file yet. ``file`` is its name."""

    file: str
    since: int
    until: int


class Exporter:
    """Makes the files. Who calls ``settle`` and ``export`` holds ``files.locked()``."""

    def __init__(
        self,
        history: AuditHistory,
        exports: AuditExports,
        files: ExportFiles,
        origin: str,
        *,
        after_ms: int,
        heads: Heads | None = None,
        turns: Heads | None = None,
    ) -> None:
        """``origin``: what this service is called, see ``life.origin``. ``after_ms``: how long after its end a day is
        exported. ``heads``: with the chain, where its head is signed. ``turns``: where it is signed since when
        the files have a chain, which is ``heads`` where that is given."""
        self.files = files
        self._history = history
        self._exports = exports
        self.origin = origin
        self._after_ms = after_ms
        self._heads = heads
        self._turns = heads or turns
        self._chain: Chain | None = heads.chain if heads else None
        self._stop = threading.Event()

    def stop(self) -> None:
        """End what is under way: it raises ``Stopped``."""
        self._stop.set()

    async def settle(self) -> None:
        """Bring to its end what a killed process left. Raises ``LedgerUnavailable`` and ``OSError``."""
        drafts = await asyncio.to_thread(self.files.drafts)
        counting = await self._exports.held(self.origin, drafts) if drafts else {}
        for name in drafts:
            if name in counting:
                await asyncio.to_thread(self._name, name)
            else:
                await asyncio.to_thread(remove, self.files.draft_of(name))
        await self._sign()

    async def next_day(self, now: int, *, every: bool = False, after: Day | None = None) -> Day | None:
        """The oldest day that ended long enough before ``now`` (Unix ms) and of which rows are not exported; with
        ``every`` also what there is of the day under way. ``after``: as if that was exported. Raises
        ``LedgerUnavailable``."""
        state = await self._exports.newest()
        exported = after.until if after else state.until if state else 0
        upto = now if every else (now - self._after_ms) // DAY_MS * DAY_MS
        rows = await self._history.audit_between("", exported, upto, None, 1) if exported < upto else []
        if not rows:
            return None
        start = rows[0].decision.timestamp // DAY_MS * DAY_MS
        number = (state.number if state else 0) + 1
        part = f"-{number}" if start < exported else ""
        name = f"{EXPORTS}.{name_of_day(start)}{part}.csv{COMPRESSED}"
        return Day(name, max(start, exported), min(start + DAY_MS, upto))

    async def export(self, day: Day, now: int) -> ExportedFile | None:
        """Make the file of a day that ``next_day`` gave. None where another process was faster. Raises ``Damaged``,
        ``LedgerUnavailable``, ``OSError`` and ``Stopped``."""
        state = await self._exports.newest()
        if state is not None and state.until > day.since:
            return None
        before = positions_of(state.positions) if state else {}
        upto = await self._exports.positions()
        draft = self.files.draft_of(day.file)
        last = await self._exports.newest(self.origin)
        link = _link_of(last.link) if last else BEGINNING
        await asyncio.to_thread(self._turn, link, now)
        try:
            rows, link = await self._write(day, state.until if state else 0, before, upto, link)
            content = await asyncio.to_thread(content_of, draft, self._stop)
            if content.rows != rows:
                raise Damaged(f"{draft}: does not hold what was exported")
            await asyncio.to_thread(sync_folder, self.files.folder)
        except BaseException:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(remove, draft)
            raise
        file = ExportedFile(
            number=(state.number if state else 0) + 1,
            file=day.file,
            origin=self.origin,
            until=day.until,
            positions=msgspec.json.encode(before | upto).decode(),
            rows=rows,
            bytes=(await asyncio.to_thread(draft.stat)).st_size,
            sha256=content.sha256,
            link=f"{link.number}-{link.mac}" if link.number else "",
            at=now,
        )
        # If the answer is lost, settle() finds out whether the draft counts.
        if not await self._exports.add(file):
            await asyncio.to_thread(remove, draft)
            return None
        await asyncio.to_thread(self._name, day.file)
        await self._sign()
        return file

    async def _write(
        self, day: Day, exported: int, before: dict[str, int], upto: dict[str, int], link: Link
    ) -> tuple[int, Link]:
        """The number of the rows, and the last one's link."""
        rows = 0

        def fresh(row: AuditRow) -> bool:
            """Rows that are committed while this runs are in the next file."""
            writer = row.writer or _ONLY_WRITER
            new = row.decision.timestamp >= exported or row.sequence > before.get(writer, 0)
            return new and row.sequence <= upto.get(writer, 0)

        with packing(self.files.draft_of(day.file)) as packed:
            packed.write((CHAINED_HEADER if self._chain else HEADER).encode())
            async for page in self._pages(day, exported, before, upto):
                wanted = [row for row in page if fresh(row)]
                if wanted:
                    link = await _ended(asyncio.to_thread(self._append, packed, wanted, link, first=not rows))
                    rows += len(wanted)
                if self._stop.is_set():
                    raise Stopped
                await asyncio.sleep(_PAUSE_S)
        return rows, link

    async def _pages(
        self, day: Day, exported: int, before: dict[str, int], upto: dict[str, int]
    ) -> AsyncIterator[list[AuditRow]]:
        """First rows that came late, then those of the day. None stands in both."""
        for writer, newest in sorted(upto.items()) if exported else []:
            start = before.get(writer, 0)
            while start < newest:
                end = min(start + _WINDOW, newest)
                while page := list(await self._exports.late_rows(writer, start, end, exported, _PAGE)):
                    yield page
                    start = page[-1].sequence
                start = end
        after: tuple[int, str] | None = None
        while page := await self._history.audit_between("", exported, day.until, after, _PAGE):
            yield page
            after = (page[-1].decision.timestamp, page[-1].decision.request_id)

    def _append(self, packed: IO[bytes], rows: list[AuditRow], link: Link, *, first: bool) -> Link:
        lines = as_lines(rows)
        if self._chain is not None:
            lines, link = self._chain.chained(lines, link, first_of_file=first)
        packed.write(lines.encode())
        return link

    def _name(self, name: str) -> None:
        os.chmod(self.files.draft_of(name), 0o640)  # noqa: PTH101 - beside the call below
        self.files.draft_of(name).rename(self.files.folder / name)
        sync_folder(self.files.folder)

    async def _sign(self) -> None:
        """How far the chain has come."""
        if self._heads is None:
            return
        last = await self._exports.newest(self.origin)
        if last is not None and last.link:
            await asyncio.to_thread(self._sign_head, self._heads, _link_of(last.link), last.at)

    def _sign_head(self, heads: Heads, last: Link, at: int) -> None:
        def contains(earlier: Statement) -> bool | None:
            link = Link(earlier.number, earlier.mac)
            return link.number <= last.number and holds([file.path for file in self.files.rotated()], link)

        for lost in heads.head(EXPORTS, lambda: last, contains, at):
            log.error("rows of the daily exports are gone or changed that were signed", row=lost.number)

    def _turn(self, last: Link, now: int) -> None:
        """Sign whether the files have a chain from now on."""
        if self._turns is not None:
            first = not self.files.rotated()
            self._turns.turned(EXPORTS, on=self._chain is not None, link=last, at=0 if first else now)


async def _ended(work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. Where the caller is cancelled it ends all the same: it writes to a file that is closed
    next."""
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        raise


def _link_of(text: str) -> Link:
    found = link_of(f",{text}")
    return found[1] if found else BEGINNING


async def exported_until(exports: AuditExports) -> int:
    """Rows that were decided before this time (Unix ms) are exported, but for those that came late."""
    newest = await exports.newest()
    return newest.until if newest else 0
