"""The daily exports of audit rows to files, as the database knows them: which rows are in which file.

The exported rows are always those of a closed form: decided before ``until``, and with a number up to their writer's
in ``positions``. So an export takes what a later state has beyond an earlier one, and a row that was committed late, or
by a wrong clock, is in the next file.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from chargegate.ledger.records import AuditRow


class ExportedFile(msgspec.Struct, frozen=True):
    """A file of audit rows, and what is exported since it counts. ``number`` counts the files of the database from 1
    on. ``origin`` names the service in whose folder the file is. ``positions`` maps writers to the numbers of their
    newest rows, in JSON. ``sha256`` and ``bytes`` are of the file. ``link`` is the last one in the origin's chain,
    empty where it has none. Times are Unix ms."""

    number: int
    file: str
    origin: str
    until: int
    positions: str
    rows: int
    bytes: int
    sha256: str
    link: str
    at: int


class AuditExports(Protocol):
    """Raises ``LedgerUnavailable``."""

    async def take_turn(self, holder: str, now: int, for_ms: int) -> bool:
        """Whether this process shall export now: one of many does, until ``for_ms`` later, and may go on with it."""
        ...

    async def newest(self, origin: str | None = None) -> ExportedFile | None:
        """Of all, or of an origin."""
        ...

    async def held(self, origin: str, files: Collection[str]) -> Mapping[str, str]:
        """Those of an origin's files that count, with their SHA-256."""
        ...

    async def positions(self) -> dict[str, int]:
        """The number of each writer's newest row. Every row up to it is committed."""
        ...

    async def late_rows(self, writer: str, after: int, upto: int, before: int, limit: int) -> Sequence[AuditRow]:
        """A writer's rows with numbers above ``after`` and up to ``upto`` that were decided before ``before`` (Unix
        ms), in the order of their numbers."""
        ...

    async def add(self, file: ExportedFile) -> bool:
        """Let a file count. False, and nothing changes, where another file has its number."""
        ...


def positions_of(text: str) -> dict[str, int]:
    """``ExportedFile.positions`` as they are meant."""
    return msgspec.json.decode(text, type=dict[str, int])
