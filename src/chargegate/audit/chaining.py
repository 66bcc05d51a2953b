"""Follows the audit rows of this process in the database with a chain, and verifies such chains."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from chargegate.audit.ahead import Ahead
from chargegate.audit.chain import START, Chain
from chargegate.audit.csv_lines import as_lines
from chargegate.audit.life.heads import Statement
from chargegate.audit.row_statements import Statements
from chargegate.ledger.base import AuditSource, LedgerUnavailable
from chargegate.ledger.chain import AuditChain, RowLink
from chargegate.ledger.records import AuditRow
from chargegate.model import to_iso
from chargegate.observe import log

_PAGE: Final = 1000
_FOLLOW_S: Final = 0.5
_PAUSE_S: Final = 0.02
_TURNS_BETWEEN_HEADS: Final = 100
_LAST_S: Final = 3.0
_LOOKS: Final = 4
_BEGINNING: Final = RowLink(0, 0, bytes.fromhex(START))


def links_of(chain: Chain, rows: Sequence[AuditRow], last: RowLink) -> list[RowLink]:
    """The links of rows that follow the one with the link ``last``."""
    number, mac = last.number, last.mac.hex()
    links = []
    for row, text in zip(rows, _texts(rows), strict=True):
        number += 1
        mac = chain.mac(mac, number, text)
        links.append(RowLink(number, row.sequence, bytes.fromhex(mac)))
    return links


def _texts(rows: Sequence[AuditRow]) -> list[str]:
    """What the MACs of rows are over. No field of a line has a line break."""
    lines = as_lines(list(rows)).split("\n")
    return [f"{row.sequence},{line.rstrip()}" for row, line in zip(rows, lines, strict=False)]


class RowChain:
    """A task that gives each audit row of this process its link, half a second after its commit at the latest, but for
    a backlog. After a kill it goes on where it was."""

    def __init__(self, source: AuditSource, links: AuditChain, statements: Statements) -> None:
        self._source = source
        self._links = links
        self._statements = statements
        self._chain = statements.heads.chain
        self._last: RowLink | None = None
        self._begun = self._signed = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        turns = 0
        while True:
            await asyncio.sleep(_FOLLOW_S)
            try:
                await self._catch_up()
                turns += 1
                if turns % _TURNS_BETWEEN_HEADS == 1 or not self._signed:
                    await self._sign()
            except LedgerUnavailable:
                self._last = None  # the commit may have arrived
            except OSError as error:
                log.warning("the chain's head was not signed", error=error.strerror)
            except Exception:  # noqa: BLE001 - whatever it is, the rows are safe, and their links are made later
                log.exception("the chain of the audit rows")
                self._last = None

    async def _catch_up(self) -> None:
        if self._last is None:
            self._last = await self._links.last_link() or _BEGINNING
        if not self._begun:
            await self._statements.begin(self._links.writer, self._last)
            self._begun = True
        while rows := await self._source.audit_after(self._last.sequence, _PAGE):
            links = await asyncio.to_thread(links_of, self._chain, rows, self._last)
            if not await self._links.add(links):  # rows were dropped meanwhile
                self._last = await self._links.last_link() or _BEGINNING
                await asyncio.sleep(_PAUSE_S)
                continue
            self._last = links[-1]
            if not self._signed:  # a verification misses the head of rows that have links
                with contextlib.suppress(OSError):
                    await self._sign()
            if len(rows) < _PAGE:
                return
            await asyncio.sleep(_PAUSE_S)

    async def _sign(self) -> None:
        if self._last is not None and self._last.number:
            await self._statements.head(self._links.writer, self._last, self._holds)
            self._signed = True

    async def _holds(self, earlier: Statement) -> bool:
        """Whether the chain has the row of an earlier head. Of what was deleted as old the last one counts, which is
        signed as well."""
        links = await self._links.links(self._links.writer, earlier.number - 1, 1)
        if links and links[0].number == earlier.number:
            return links[0].mac.hex() == earlier.mac
        told = await self._statements.of(self._links.writer)
        return any(each.kind == "start" and each.number >= earlier.number for each in told)

    async def close(self) -> None:
        """Give the last rows their links, if these are soon made, and sign how many there are."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            self._last = None
            with contextlib.suppress(TimeoutError):  # the rest gets its links after the next start
                async with asyncio.timeout(_LAST_S):
                    await self._catch_up()
            await self._sign()
        except LedgerUnavailable as error:
            log.warning("the newest audit rows have no link yet", error=str(error))
        except OSError as error:
            log.warning("the chain's head was not signed", error=error.strerror)


async def drop_links(links: AuditChain, statements: Statements, at: int, drop_rows: Callable[..., Any]) -> Any:
    """Drop rows by ``drop_rows``, after it was signed where the chains begin then, and the links of the rows.
    ``drop_rows`` is given ``signed``, as for ``AuditRetention``. Returns what it did."""
    old = await links.old_links(at)
    for writer, link in old:
        await statements.start(writer, link)
    dropped = await drop_rows(signed={writer: link.sequence for writer, link in old})
    for writer, link in old:
        await links.drop(writer, link)
    return dropped


class RowProblem(msgspec.Struct, frozen=True):
    """As ``life.verifying.Problem``, for a row of a writer. ``sequence`` is the row's."""

    what: str
    writer: str
    sequence: int | None
    number: int | None
    request_id: str
    detail: str


class VerifiedRows(msgspec.Struct, frozen=True):
    """``waiting``: rows that are so new that they have no link yet."""

    rows: int
    waiting: int
    head: str
    problems: list[RowProblem]


class RowVerifier:
    """Verifies the chain of one writer's rows."""

    def __init__(self, links: AuditChain, writer: str, chain: Chain, statements: Sequence[Statement]) -> None:
        self._links = links
        self._writer = writer
        self._chain = chain
        self._start = max((s.number for s in statements if s.kind == "start"), default=0)
        self._told = {s.number: s for s in statements if s.kind in ("head", "start", "lost")}
        self._lost = [s for s in statements if s.kind == "lost" and s.number > self._start]
        self._problems: list[RowProblem] = []
        self._count = 0

    def _found(self, what: str, row: AuditRow | None, link: RowLink | None, detail: str = "") -> None:
        sequence = row.sequence if row else link.sequence if link else None
        request_id = row.decision.request_id if row else ""
        number = link.number if link else None
        self._problems.append(RowProblem(what, self._writer, sequence, number, request_id, detail))

    async def verify(self, on_row: Callable[[int], None]) -> VerifiedRows:
        """``on_row`` is told how many rows are done. Raises ``LedgerUnavailable``."""
        rows = Ahead(partial(self._links.rows, self._writer), lambda row: row.sequence, _texts)
        links = Ahead(partial(self._links.links, self._writer), lambda link: link.number)
        last = _BEGINNING
        waiting = 0
        try:
            while await links.more():
                await rows.more()  # after the links, so that the row of each of them is seen
                last = await asyncio.to_thread(self._compare, rows, links, last)
                on_row(self._count)
            self._ended(last)
            while await rows.more():
                self._below(rows)
                waiting += len(rows.items) - rows.at
                rows.at = len(rows.items)
        finally:
            await asyncio.gather(rows.close(), links.close())
        return VerifiedRows(self._count, waiting, f"{last.number}-{last.mac.hex()}", self._problems)

    def _compare(self, rows: Ahead[AuditRow], links: Ahead[RowLink], last: RowLink) -> RowLink:
        """Verify until the page of rows or that of links is used up. ``last`` is the link before, and the last one that
        was used is returned."""
        for link in links.items[links.at :]:
            if link.number < 1:
                self._found("not_in_chain", None, link, "no row has this number")
                links.at += 1
                continue
            while (row := rows.first) is not None and row.sequence < link.sequence:
                self._found("not_in_chain", row, None, "it was put in between")
                rows.at += 1
            if row is None and not rows.ended:
                break
            known = self._follows(last, link)
            if row is None or row.sequence > link.sequence:
                if link.number > self._start:
                    self._found("missing", None, link, "the row was removed")
            else:
                if known and self._chain.mac(last.mac.hex(), link.number, rows.texts[rows.at]) != link.mac.hex():
                    self._found("changed", row, link)
                self._count += 1
                rows.at += 1
            links.at += 1
            last = link
        return last

    def _follows(self, last: RowLink, link: RowLink) -> bool:
        """Whether the link before is at hand, so that this one's MAC can be verified."""
        told = self._told.get(link.number)
        if told is not None and told.mac != link.mac.hex():
            self._found("changed", None, link, "another row was there")
        if link.number == last.number + 1:
            return True
        first = max(last.number, self._start) + 1
        if link.number > first:
            self._found("missing", None, link, f"rows {first} to {link.number - 1} before it were removed")
        return False

    def _below(self, rows: Ahead[AuditRow]) -> None:
        """No row of the service has a number below 1, whether there are links or not."""
        while (row := rows.first) is not None and row.sequence < 1:
            self._found("not_in_chain", row, None, "no row has this number")
            rows.at += 1

    def _ended(self, last: RowLink) -> None:
        for each in {each.number: each for each in self._lost}.values():
            detail = f"it was not there any more at {to_iso(each.at)}"
            self._problems.append(RowProblem("end_missing", self._writer, None, each.number, "", detail))
        most = max(self._told, default=0)
        if most > last.number and most > self._start:
            self._found("end_missing", None, None, f"rows {last.number + 1} to {most} were there")


async def verify_rows(
    links: AuditChain, statements: Statements, on_row: Callable[[int], None]
) -> dict[str, VerifiedRows]:
    """Verify the chains of all writers, by their names: of those that have links, and of those that had. Raises
    ``LedgerUnavailable`` and ``OSError``."""
    found = {}
    for writer in sorted({*await links.writers(), *await statements.writers(links.writer)}):
        verified = await _verified(links, writer, statements, on_row)
        faults = [
            RowProblem(what, writer, None, None, "", f"the {kind} in the database")
            for what, kind in await _lasting_faults(statements, writer, verified.rows)
        ]
        found[writer] = msgspec.structs.replace(verified, problems=[*verified.problems, *faults])
    return found


async def _lasting_faults(statements: Statements, writer: str, rows: int) -> list[tuple[str, str]]:
    """A service that signs just now has done so a moment later."""
    for _ in range(_LOOKS):
        faults = await statements.faults(writer, rows)
        if not faults:
            break
        await asyncio.sleep(_FOLLOW_S)
    return faults


async def _verified(
    links: AuditChain, writer: str, statements: Statements, on_row: Callable[[int], None]
) -> VerifiedRows:
    """Again where rows that are old were perhaps dropped meanwhile."""
    before: list[Statement] | None = None
    while True:
        told = await statements.of(writer)
        verified = await RowVerifier(links, writer, statements.heads.chain, told).verify(on_row)
        starts = [each for each in await statements.of(writer) if each.kind == "start"]
        if not verified.problems or not starts or starts == before:
            return verified
        before = starts
