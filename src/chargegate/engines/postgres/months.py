"""The months of the audit in PostgreSQL: partitions, made ahead of their first row and dropped when they are old."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from asyncpg import LockNotAvailableError  # type: ignore[import-untyped]  # it ships no types

from chargegate.engines.postgres.connection import Connection
from chargegate.engines.postgres.statements import CHAIN, EXPORTS, LEDGER
from chargegate.ledger.counts import ROWS_SINCE
from chargegate.ledger.exports import ExportedFile
from chargegate.model import now_ms
from chargegate.storage.unavailable import Unavailable

_DAY_MS: Final = 86_400_000


class Months:
    """It remembers which partitions are there, so that few transactions have to look."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def forget(self) -> None:
        """Look again: a transaction was undone, or another process may have dropped a month."""
        self._known.clear()

    def know(self, times: Iterable[int]) -> bool:
        """Whether the partitions for these times (Unix ms) were provided."""
        return all(_month(day)[0] in self._known for day in _days(times))

    async def provide(self, connection: Connection, times: Iterable[int]) -> None:
        """Make the partitions for these times (Unix ms), and, ahead of its first decision, for the coming month."""
        for day in _days(times):
            name, start, end = _month(day)
            if name in self._known:
                continue
            self._known.add(name)
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('authorization_audit'))")
            if await connection.fetchval("SELECT to_regclass($1) IS NULL", name):
                # The table is attached, not made as a partition: that would wait for every reader, and all writers
                # would wait behind it.
                await connection.execute(
                    f"CREATE TABLE {name} (LIKE authorization_audit INCLUDING DEFAULTS);"
                    f" ALTER TABLE authorization_audit ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end})"
                )

    async def old(self, connection: Connection, at: int, *, exported: bool) -> list[str]:
        """The tables of the months that ended by ``at`` (Unix ms) and by now; with ``exported`` only those of which
        all rows are in files that count."""
        if not exported:
            return [row[0] for row in await connection.fetch(LEDGER["old_months"], limit_of(at))]
        newest = await connection.fetch(EXPORTS["newest"], None)
        if not newest:
            return []
        state = ExportedFile(*newest[0])
        months = [row[0] for row in await connection.fetch(LEDGER["old_months"], limit_of(min(at, state.until)))]
        return [
            name
            for name in months
            if not await connection.fetchval(EXPORTS["not_exported"].replace("{month}", name), state.positions)
        ]

    async def drop(
        self,
        connection: Connection,
        at: int,
        count_rest: Callable[[Connection], Awaitable[None]],
        *,
        exported: bool,
        signed: Mapping[str, int],
    ) -> list[str]:
        """Drop the months that ``old`` names, and return their names. ``count_rest`` is awaited once nobody writes to
        them any more. ``signed``: as for ``AuditRetention``. Raises ``Unavailable`` while someone reads them, and where
        one of their rows got a link that is not signed."""
        dropped = await self.old(connection, at, exported=exported)
        if not dropped:
            return []
        await connection.execute("SET LOCAL lock_timeout = '1s'")  # all writers wait behind it
        try:
            await connection.execute(f"LOCK TABLE {', '.join(dropped)} IN SHARE ROW EXCLUSIVE MODE")
            if exported and dropped != await self.old(connection, at, exported=True):
                raise Unavailable("old audit rows were written meanwhile, and nothing was dropped")
            await connection.execute(CHAIN["lock_alone"])
            links = await connection.fetch(CHAIN["old"], first_kept(at))
            if any(sequence > signed.get(writer, 0) for writer, _, sequence, _ in links):
                raise Unavailable("old audit rows got their links meanwhile, and nothing was dropped")
            await count_rest(connection)
            for name in dropped:
                await connection.execute(f"DROP TABLE IF EXISTS {name}")
        except LockNotAvailableError:
            raise Unavailable("the audit is being read or changed for long, and nothing was dropped") from None
        earlier = int(await connection.fetchval(LEDGER["value"], ROWS_SINCE) or 0)
        await connection.execute(LEDGER["put_value"], ROWS_SINCE, str(max(first_kept(at), earlier)))
        self._known.difference_update(dropped)
        return dropped


def first_kept(at: int) -> int:
    """The first moment (Unix ms) of the first month that has not ended by then, or by now."""
    return _month(min(at, now_ms()) // _DAY_MS)[1]


def limit_of(at: int) -> str:
    """The first month that has not ended by then (Unix ms), or by now."""
    return _month(min(at, now_ms()) // _DAY_MS)[0]


def _days(times: Iterable[int]) -> set[int]:
    """Those of the times, and today, and the first of the coming month."""
    now = now_ms()
    return {at // _DAY_MS for at in (*times, now, _month(now // _DAY_MS)[2])}


@lru_cache(maxsize=100)
def _month(day: int) -> tuple[str, int, int]:
    """The partition of a day since 1970, and its bounds in Unix ms."""
    first = datetime.fromtimestamp(day * 86_400, UTC).replace(day=1)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    start, end = (int(moment.timestamp()) * 1000 for moment in (first, following))
    return f"authorization_audit_{first:%Y_%m}", start, end
