"""Statements that are a transaction by themselves, each in one exchange with the server.

They run on sessions that are ours alone, which keep their settings and their statements. Behind a pooler each
transaction may get another session, so nothing runs here. What is sent in one exchange cannot be taken back: it may
happen although its connection was given up, at any later time.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import asyncpg  # type: ignore[import-untyped]  # it ships no types

from chargegate.engines.postgres.pool import Pool
from chargegate.storage.budget import STORE_S

T = TypeVar("T")

_CONNECTIONS: Final = 3  # as many as there are kinds of such statements
_NOT_OURS: Final = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
"""What a session says to a statement that was prepared in another one; nothing was done."""

_LIMIT_MS: Final = int(STORE_S * 1000)
_SETTINGS: Final = (
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED, NOT DEFERRABLE"
    f"; SET statement_timeout = {_LIMIT_MS}; SET lock_timeout = 0; SET jit = off"
    "; SET max_parallel_workers_per_gather = 0"
    # A plan is kept. It must be right for a large table, also where the table was empty when it was made.
    "; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off"
    "; SET enable_mergejoin = off"
)


class OwnSession(asyncpg.Connection):  # type: ignore[misc]  # it ships no types
    """A connection whose session keeps what is set and prepared there, once it is settled."""

    _settled = False
    _prepared: dict[str, Any]

    async def settle(self) -> bool:
        """Prepare the session. False where it is not ours alone: then nothing is changed in it."""
        if self._settled:
            return True
        await self.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = {_LIMIT_MS}")
        number = await self.fetchval("SELECT pg_backend_pid()")
        await self.execute("COMMIT")
        # A pooler tells its clients numbers of its own, because a cancel request with them goes to the pooler.
        if number != self.get_server_pid():
            return False
        newer = "; SET transaction_timeout = 0" if self.get_server_version().major >= 17 else ""
        await self.execute(_SETTINGS + newer)
        self._settled, self._prepared = True, {}
        return True

    async def run(self, statement: str, *values: Any) -> list[Any]:
        """The statement's rows, after its commit. It is prepared once."""
        prepared = self._prepared.get(statement)
        if prepared is None:
            prepared = await self.prepare(statement, name=f"chargegate_{len(self._prepared)}")
            self._prepared[statement] = prepared
        rows: list[Any] = await prepared.fetch(*values)
        return rows


Alone = Callable[[OwnSession], Awaitable[T | None]]


class OwnSessions:
    """The sessions of one database. ``possible`` is False once a pooler was seen."""

    def __init__(self, url: str) -> None:
        self._pool = Pool(url, _CONNECTIONS, OwnSession)
        self.possible = True

    async def use(self, alone: Alone[T], deadline: float) -> T | None:
        """What ``alone`` gives on a session that nobody else uses meanwhile; None where there can be none. Raises as
        ``Pool.use`` does."""

        async def work(session: OwnSession) -> T | None:
            if await session.settle():
                return await alone(session)
            self.possible = False
            return None

        try:
            return await self._pool.use(work, deadline)
        except _NOT_OURS:
            self.possible = False
            return None
        finally:
            if not self.possible:
                self._pool.close_idle()

    async def close(self) -> None:
        """May be called twice."""
        await self._pool.close()
