"""Group commit: many callers, one commit."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from chargegate.observe import log
from chargegate.storage.unavailable import Unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_RETRY_S: Final = 1.0


class GroupCommit(Generic[Item, Answer]):
    """What gathers while one commit is under way is the next commit.

    So durability costs one round trip to the disk or the server for many items, and an item costs the same alone or in
    company. ``commit(items)`` makes the items durable and gives an answer for each, or None where there are no
    answers. An answer that is an exception is that one item's failure. If ``commit`` raises ``Unavailable``, everybody
    who waits is told so: those who came meanwhile would wait as long for the same. If it raises anything else, one
    item broke a rule, and each is committed alone. All methods are called from one event loop.
    """

    def __init__(
        self, commit: Callable[[list[Item]], Awaitable[Sequence[Answer | Exception] | None]], *, max_items: int = 1000
    ) -> None:
        """``max_items``: the most that one commit takes."""
        self._commit = commit
        self._max_items = max_items
        self._gathered: list[tuple[Item, asyncio.Future[Answer] | None]] = []
        self._committing = 0
        self._deferred: list[Item] = []
        self._retry: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def waiting(self) -> int:
        """How many items are not committed yet."""
        return len(self._gathered) + self._committing + len(self._deferred)

    def submit(self, item: Item) -> "asyncio.Future[Answer]":
        """The future of the item's answer. It raises ``Unavailable``, or what became of the item. A caller that is
        cancelled leaves its item to be committed all the same."""
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        if self._task is None or self._closed:
            self._start()
        self._gathered.append((item, waiter))
        return waiter

    def post(self, item: Item) -> None:
        """Commit it soon; nobody waits. While the store is unavailable it is tried again every second."""
        if self._retry is not None:
            self._deferred.append(item)
            return
        if self._task is None or self._closed:
            self._start()
        self._gathered.append((item, None))

    def _start(self) -> None:
        if self._closed:
            raise Unavailable("closed")
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        while self._gathered:
            batch, self._gathered = self._gathered, []
            if len(batch) > self._max_items:
                batch, self._gathered = batch[: self._max_items], batch[self._max_items :]
            self._committing = len(batch)
            items = [item for item, _ in batch]
            answers: Sequence[Any] | None
            try:
                answers = await self._commit(items)
            except Unavailable as error:
                batch, self._gathered = batch + self._gathered, []
                answers = [error] * len(batch)
            except Exception as error:  # noqa: BLE001 - it is told to whom it belongs, and to nobody else
                answers = [error] if len(items) == 1 else [await self._alone(item) for item in items]
            self._committing = 0
            self._hand_out(batch, [None] * len(batch) if answers is None else answers)
        self._task = None

    def _hand_out(self, batch: "list[tuple[Item, asyncio.Future[Answer] | None]]", answers: Sequence[Any]) -> None:
        for (item, waiter), answer in zip(batch, answers, strict=True):
            if waiter is None:
                if isinstance(answer, Exception):
                    self._failed(item, answer)
            elif not waiter.done():
                if isinstance(answer, Exception):
                    waiter.set_exception(answer)
                else:
                    waiter.set_result(answer)

    async def _alone(self, item: Item) -> Any:
        try:
            answers = await self._commit([item])
        except Exception as error:  # noqa: BLE001 - as above
            return error
        return None if answers is None else answers[0]

    def _failed(self, item: Item, error: Exception) -> None:
        if not isinstance(error, Unavailable):
            log.error("a write was given up", error=type(error).__name__)
        elif not self._closed:
            self._deferred.append(item)
            if self._retry is None:
                self._retry = self._loop.call_later(_RETRY_S, self._try_again)

    def _try_again(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        deferred, self._deferred = self._deferred, []
        for item in deferred:
            self.post(item)

    async def _end_of_commits(self) -> None:
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def flush(self) -> None:
        """Commit what has gathered, and once more what could not be committed before."""
        self._try_again()
        await self._end_of_commits()

    async def close(self) -> None:
        """Commit what has gathered, and once more what could not be committed before. May be called twice."""
        if not self._closed:
            self._try_again()
        self._closed = True
        await self._end_of_commits()
