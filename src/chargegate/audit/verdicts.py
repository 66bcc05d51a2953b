"""What the last verifications of the chains found, for whoever watches the service.

That of the files is kept in ``data_dir``, because each host has files of its own; that of the rows in the database.
"""

import asyncio
import os
from pathlib import Path
from typing import Final

import msgspec

from chargegate.audit.chain import Chain
from chargegate.ledger.base import NamedValues

FILE: Final = "audit.verified"
_NAME: Final = "audit chain verified"


class Verdict(msgspec.Struct, frozen=True):
    """``part`` is ``files`` or ``rows``; ``at`` is in Unix ms."""

    part: str
    intact: bool
    at: int
    signature: str = ""

    def signed(self, chain: Chain) -> "Verdict":
        text = f"verdict\x00{self.part}\x00{self.intact}\x00{self.at}"
        return msgspec.structs.replace(self, signature=chain.signature(text))


class Verdicts:
    """Signed, so that nobody without the keys makes one up."""

    def __init__(self, folder: Path, chain: Chain, values: NamedValues) -> None:
        """``folder`` is ``data_dir``."""
        self._path = folder / FILE
        self._chain = chain
        self._values = values

    async def keep(self, at: int, *, files: bool | None, rows: bool | None) -> None:
        """Whether each was intact; None where it was not verified. Raises ``OSError`` and ``LedgerUnavailable``."""
        if files is not None:
            await asyncio.to_thread(self._write, self._encoded(Verdict("files", files, at)))
        if rows is not None:
            await self._values.put_value(_NAME, self._encoded(Verdict("rows", rows, at)).decode())

    async def intact(self) -> bool | None:
        """False where a part was not intact when it was last verified; None where none was verified. Raises
        ``LedgerUnavailable``."""
        text = await self._values.value(_NAME)
        told = [
            verdict.intact
            for part, found in (("files", await asyncio.to_thread(self._read)), ("rows", (text or "").encode()))
            if (verdict := self._decoded(found)) is not None and verdict.part == part
        ]
        return all(told) if told else None

    def _encoded(self, verdict: Verdict) -> bytes:
        return msgspec.json.encode(verdict.signed(self._chain))

    def _decoded(self, text: bytes) -> Verdict | None:
        try:
            verdict = msgspec.json.decode(text, type=Verdict)
        except msgspec.DecodeError:
            return None
        return verdict if verdict == verdict.signed(self._chain) else None

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError:
            return b""

    def _write(self, text: bytes) -> None:
        draft = self._path.with_name(f".{FILE}.{os.getpid()}")
        with open(draft, "wb", opener=_private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
