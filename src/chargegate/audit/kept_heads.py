"""A copy of the signed statements in the database, so that nobody makes one away by deleting a file."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from chargegate.audit.chain import Chain
from chargegate.audit.life.heads import Heads, Statement, Version, decoded, lacking_in, lost_in
from chargegate.audit.life.joining import Problem
from chargegate.ledger.base import NamedValues
from chargegate.observe import log

_HEADS: Final = "audit.heads"
_DATABASE: Final = "database"


class _Copy(msgspec.Struct, frozen=True):
    """What was last said of one log: the newest head, and all else. It is signed as a whole."""

    statements: list[Statement]
    signature: str = ""

    def signed(self, name: str, chain: Chain) -> "_Copy":
        text = "\x00".join([name, *(each.signature for each in self.statements)])
        return msgspec.structs.replace(self, signature=chain.signature(f"copy\x00{text}"))


class KeptHeads:
    """The statements about files in ``data_dir``, and their copy in the database, a value for each log."""

    def __init__(self, heads: Heads, values: NamedValues, service: str) -> None:
        """``service``: who keeps them, where several services share the database."""
        self.heads = heads
        self._values = values
        self._prefix = f"audit statements {service} "
        self._put: dict[str, str] = {}
        self._version: Version | None = None  # of the file, when `lost` read it last
        self._lost = False

    async def restore(self) -> None:
        """Take up again what the database has and the file does not. Raises ``LedgerUnavailable`` and ``OSError``."""
        kept, damaged = await self._kept()
        for name in damaged:
            log.error("the copy of what was signed about the audit was changed in the database", log=name)
        lacking = await asyncio.to_thread(self.heads.merge, kept)
        for each in lacking:
            log.error("a signed statement about the audit was made away; the database has it", **_said(each))

    async def lost(self) -> bool:
        """Whether a row is gone that should be there. The file is read again only where it is another one, because this
        is asked every few seconds, and each line has a signature. Raises ``OSError``."""
        version = self.heads.version()
        if version is None or version != self._version:
            self._lost = bool(lost_in(await asyncio.to_thread(self.heads.statements)))
            self._version = version
        return self._lost

    async def keep(self) -> None:
        """Bring the copy up to date. Raises ``LedgerUnavailable`` and ``OSError``."""
        told = await asyncio.to_thread(self.heads.statements)
        for name, statements in _by_log(told).items():
            text = msgspec.json.encode(_Copy(statements).signed(name, self.heads.chain)).decode()
            if self._put.get(name) != text:
                await self._values.put_value(self._prefix + name, text)
                self._put[name] = text

    async def read(self) -> tuple[list[Statement], list[Problem]]:
        """What the database has, and which statements are missing or are not as they were signed, there or in the
        file. Raises ``LedgerUnavailable`` and ``OSError``."""
        kept, damaged = await self._kept()
        told = await asyncio.to_thread(self.heads.statements)
        problems = [
            Problem("statement_changed", _DATABASE, None, None, "", f"the copy of what was signed about {name}")
            for name in damaged
        ]
        for line in await asyncio.to_thread(self.heads.damaged):
            detail = line[:100].decode("utf-8", "replace")
            problems.append(
                Problem("statement_changed", _HEADS, None, None, "", f"not signed by this service: {detail}")
            )
        for each in lacking_in(told, kept):
            detail = f"{each.kind} of {each.log}, which the database has"
            problems.append(Problem("statement_missing", _HEADS, None, each.number, "", detail))
        copied = {each.log for each in kept} | set(damaged)
        bare = sorted(_by_log(told).keys() - copied)
        lacking = [Problem("statement_missing", _DATABASE, None, None, "", f"those about {name}") for name in bare]
        return kept, problems + lacking

    async def _kept(self) -> tuple[list[Statement], list[str]]:
        """The statements, and the logs of which the copy is not as it was signed."""
        found: list[Statement] = []
        damaged = []
        for full, text in (await self._values.values_of(self._prefix)).items():
            name = full.removeprefix(self._prefix)
            copy = self._decoded(name, text)
            if copy is None:
                damaged.append(name)
            else:
                found += copy.statements
        return found, damaged

    def _decoded(self, name: str, text: str) -> _Copy | None:
        try:
            copy = msgspec.json.decode(text, type=_Copy)
        except msgspec.DecodeError:
            return None
        intact = copy == copy.signed(name, self.heads.chain) and all(
            decoded(msgspec.json.encode(each), self.heads.chain) for each in copy.statements
        )
        return copy if intact else None


def _by_log(told: Sequence[Statement]) -> dict[str, list[Statement]]:
    """Those about logs that are files: of each the newest head, and all else."""
    found: dict[str, list[Statement]] = {}
    for each in told:
        if "@" not in each.log:
            found.setdefault(each.log, []).append(each)
    for name, statements in found.items():
        heads = [each for each in statements if each.kind == "head"]
        found[name] = [each for each in statements if each.kind != "head"] + heads[-1:]
    return found


def _said(statement: Statement) -> dict[str, object]:
    return {"kind": statement.kind, "log": statement.log, "row": statement.number}
