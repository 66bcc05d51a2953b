"""Signed statements about the chains of the database's rows: in the database, and in a file of who signed them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from chargegate.audit.chain import Link
from chargegate.audit.life.heads import Heads, Kind, Statement, decoded, started_at
from chargegate.ledger.base import NamedValues
from chargegate.ledger.chain import RowLink
from chargegate.model import now_ms
from chargegate.observe import log

_KINDS: Final[tuple[Kind, ...]] = ("on", "start", "lost", "head")
_DAY_MS: Final = 86_400_000

Holds = Callable[[Statement], Awaitable[bool]]


def log_of(writer: str) -> str:
    """What statements call the chain of a writer's rows."""
    return f"authorization_audit@{writer}"


class Statements:
    """The newest of each kind is in the database, where every process finds it, and what this process signed is in its
    ``data_dir`` as well. The first of each kind is put into the database before the file: so nothing is missing there
    after a kill between the two, also where the chain is switched off then and nobody signs again. Every method raises
    ``LedgerUnavailable`` and ``OSError``."""

    def __init__(self, heads: Heads, values: NamedValues) -> None:
        self.heads = heads
        self._values = values

    async def begin(self, writer: str, link: RowLink) -> None:
        """Sign once that the rows after this one are a chain."""
        name = log_of(writer)
        if await self._kept("on", name) is None:
            await self._put(Statement("on", name, link.number, link.mac.hex(), now_ms()))
        await asyncio.to_thread(self.heads.turned, name, on=True, link=_link(link), at=now_ms())

    async def start(self, writer: str, link: RowLink) -> None:
        """Sign that the rows up to this one go because they are old, but for those that stay."""
        name = log_of(writer)
        known = await self._kept("start", name)
        if known is None or known.number < link.number:
            await self._put(Statement("start", name, link.number, link.mac.hex(), now_ms()))
        await asyncio.to_thread(self.heads.started, name, _link(link), now_ms())

    async def head(self, writer: str, link: RowLink, holds: Holds) -> None:
        """Sign the end of a chain. ``holds`` says whether the chain has the row of an earlier head. Where it has not,
        that is signed as well, and logged."""
        name = log_of(writer)
        newest = Statement("head", name, link.number, link.mac.hex(), now_ms())
        text = await self._values.value(_named("head", name))
        there = None if text is None else decoded(text, self.heads.chain)
        if text is None:
            await self._put(newest)
        told = await asyncio.to_thread(self.heads.statements)
        here = [each for each in told if (each.kind, each.log) == ("head", name)]
        recent = {*here[-1:], *(each for each in here if each.at // _DAY_MS == now_ms() // _DAY_MS)}
        held = {each: await self._held(each, link, holds) for each in recent | ({there} if there else set())}
        lost = await asyncio.to_thread(self.heads.head, name, lambda: _link(link), held.get, now_ms())
        if there is not None and not held[there] and not lost:
            lost = [msgspec.structs.replace(there, kind="lost", at=now_ms())]
        if there is None and text is not None:
            lost.append(msgspec.structs.replace(newest, kind="lost"))
        for each in lost:
            log.error("rows of the audit are gone or changed that were signed", log=name, row=each.number)
            if await self._kept("lost", name) is None:
                await self._put(each)
        if text is not None and (there is None or (there.number, there.mac) != (newest.number, newest.mac)):
            await self._put(newest)

    @staticmethod
    async def _held(earlier: Statement, link: RowLink, holds: Holds) -> bool:
        return earlier.number <= link.number and await holds(earlier)

    async def lost(self) -> bool:
        """Whether a row is gone that should be there, of any process."""
        values = await self._values.values_of(_named("lost", ""))
        found = [each for text in values.values() if (each := decoded(text, self.heads.chain)) is not None]
        starts = [start for each in found if (start := await self._kept("start", each.log)) is not None]
        return any(each.number > started_at(starts, each.log) for each in found)

    async def of(self, writer: str) -> list[Statement]:
        name = log_of(writer)
        here = [each for each in await asyncio.to_thread(self.heads.statements) if each.log == name]
        return here + [kept for kind in _KINDS if (kept := await self._kept(kind, name)) is not None]

    async def writers(self, own: str) -> set[str]:
        """Those about whose chains something was signed: in this database, or here about the embedded one where ``own``
        names it."""
        here = {each.log for each in await asyncio.to_thread(self.heads.statements) if each.log == log_of(own)}
        there = set()
        for kind in _KINDS:
            beginning = _named(kind, log_of(""))
            there |= {log_of(name.removeprefix(beginning)) for name in await self._values.values_of(beginning)}
        return {log.removeprefix(log_of("")) for log in here | there}

    async def faults(self, writer: str, last: int) -> list[tuple[str, str]]:
        """Which statements about a chain of so many rows are missing in the database, or are not as they were signed:
        what is wrong, and of which kind."""
        name = log_of(writer)
        faults: list[tuple[str, str]] = []
        here = {each.kind for each in await self.of(writer)}
        for kind in _KINDS:
            text = await self._values.value(_named(kind, name))
            if text is not None and decoded(text, self.heads.chain) is None:
                faults.append(("statement_changed", kind))
            elif text is None and (kind in here or (kind in ("on", "head") and last)):
                faults.append(("statement_missing", kind))
        return faults

    async def _put(self, statement: Statement) -> None:
        signed = statement.signed(self.heads.chain)
        text = msgspec.json.encode(signed).decode()
        await self._values.put_value(_named(statement.kind, statement.log), text)

    async def _kept(self, kind: Kind, name: str) -> Statement | None:
        text = await self._values.value(_named(kind, name))
        return None if text is None else decoded(text, self.heads.chain)


def _link(link: RowLink) -> Link:
    return Link(link.number, link.mac.hex())


def _named(kind: Any, name: str) -> str:
    return f"audit chain {kind} {name}"
