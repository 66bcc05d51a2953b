"""Group commit on PostgreSQL: many waiters, one transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from chargegate.engines.postgres.connection import Connection, PostgresStore, PostgresUnavailable
from chargegate.observe import log

I = TypeVar("I")  # noqa: E741 - an item, as R is its result
R = TypeVar("R")

_MAX_ITEMS: Final = 1000  # of one transaction
_RETRY_S: Final = 1.0


class Gatherer(Generic[I, R]):
    """Group commit of items of one kind: what gathers while a batch is under way is the next batch, one transaction.

    ``apply(connection, items, again)`` gives a result for each item, where an exception is that item's failure; or
    None for no results. ``committed`` runs after the commit and before any waiter is woken. Batches of different
    gatherers run side by side; those of one gatherer one after another, so that they never lock each other out.
    """

    def __init__(
        self,
        store: PostgresStore,
        apply: Callable[[Connection, list[I], bool], Awaitable[Sequence[R | Exception] | None]],
        *,
        committed: Callable[[], Awaitable[None]] | None = None,
        read_only: bool = False,
        lazy: bool = False,
    ) -> None:
        self._store = store
        self._apply = apply
        self._committed = committed
        self._read_only = read_only
        self._lazy = lazy
        self._gathered: list[tuple[I, asyncio.Future[R] | None]] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def submit(self, item: I) -> "asyncio.Future[R]":
        """The future of the item's result. It raises ``PostgresUnavailable``, or what became of the item."""
        waiter: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._add(item, waiter)
        return waiter

    def post(self, item: I) -> None:
        """Do it soon. While the database is away it is tried again."""
        self._add(item, None)

    def _add(self, item: I, waiter: "asyncio.Future[R] | None") -> None:
        if self._closed:
            raise PostgresUnavailable("closed")
        self._gathered.append((item, waiter))
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._gathered:
            batch, self._gathered = self._gathered[:_MAX_ITEMS], self._gathered[_MAX_ITEMS:]
            try:
                answers = await self._answers([item for item, _ in batch])
            except PostgresUnavailable as error:
                # those who came meanwhile have waited as long for the same database
                batch, self._gathered = batch + self._gathered, []
                answers = [error] * len(batch)
            for (item, waiter), answer in zip(batch, answers, strict=True):
                if waiter is None:
                    if isinstance(answer, PostgresUnavailable) and not self._closed:
                        asyncio.get_running_loop().call_later(_RETRY_S, self._post_again, item)
                elif not waiter.done():
                    if isinstance(answer, Exception):
                        waiter.set_exception(answer)
                    else:
                        waiter.set_result(answer)
        self._task = None

    async def _answers(self, items: list[I]) -> Sequence[Any]:
        async def work(connection: Connection, again: bool) -> Sequence[Any] | None:
            return await self._apply(connection, items, again)

        try:
            answers = await self._store.transaction(work, read_only=self._read_only, lazy=self._lazy)
        except PostgresUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - one item broke a rule; its company shall not suffer for it
            return [error] if len(items) == 1 else [(await self._answers([item]))[0] for item in items]
        if self._committed is not None:
            try:
                await self._committed()
            except Exception:  # noqa: BLE001 - committed is committed
                log.exception("after a commit")
        return [None] * len(items) if answers is None else answers

    def _post_again(self, item: I) -> None:
        if not self._closed:
            self.post(item)

    async def close(self) -> None:
        """Commit what has gathered. May be called twice."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait((self._task,))
