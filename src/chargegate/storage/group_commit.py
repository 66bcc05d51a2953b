"""Group commit: many callers, one commit."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from chargegate.observe import log
from chargegate.storage.unavailable import Unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")

Then = Callable[[], None]
Done = Callable[[Any], None]
"""Is given the answer, or the exception that a future of it would raise."""
_Gathered = tuple[Item, asyncio.Future[Answer] | Done | None, Then | None]

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
        self,
        commit: Callable[[list[Item]], Awaitable[Sequence[Answer | Exception] | None]],
        *,
        max_items: int = 1000,
        linger_s: float = 0.0,
    ) -> None:
        """``max_items``: the most that one commit takes. ``linger_s``: how long items that nobody waits for may wait
        for others, with whom they share a commit."""
        self._commit = commit
        self._max_items = max_items
        self._linger_s = linger_s
        self._gathered: list[_Gathered[Item, Answer]] = []
        self._urgent = False  # whether anybody waits for what has gathered
        self._lingering: asyncio.TimerHandle | None = None
        self._committing = 0
        self._deferred: list[tuple[Item, Then | None]] = []
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
        self._urgent = True
        if self._task is None or self._closed:
            self._start()
        self._gathered.append((item, waiter, None))
        return waiter

    def notify(self, item: Item, done: Done) -> None:
        """As ``submit``, for one that is no coroutine: ``done`` is called with what the future would have."""
        self._urgent = True
        if self._task is None or self._closed:
            self._start()
        self._gathered.append((item, done, None))

    def post(self, item: Item, then: Then | None = None) -> None:
        """Commit it soon; nobody waits. While the store is unavailable it is tried again every second. ``then`` is
        called once it is committed."""
        if self._retry is not None:
            self._deferred.append((item, then))
            return
        if self._task is None or self._closed:
            self._start_soon()
        self._gathered.append((item, None, then))

    def _start_soon(self) -> None:
        if not self._linger_s or self._closed:
            self._start()
        elif self._lingering is None:
            self._lingering = self._loop.call_later(self._linger_s, self._has_lingered)

    def _has_lingered(self) -> None:
        self._lingering = None
        self._hurry()

    def _hurry(self) -> None:
        """Let nothing that has gathered linger."""
        if self._gathered:
            self._urgent = True
            if self._task is None:
                self._start()

    def _start(self) -> None:
        if self._closed:
            raise Unavailable("closed")
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        while self._gathered and (self._urgent or not self._linger_s):
            batch, self._gathered = self._gathered, []
            self._urgent = len(batch) > self._max_items
            if self._urgent:
                batch, self._gathered = batch[: self._max_items], batch[self._max_items :]
            self._committing = len(batch)
            items = [item for item, _, _ in batch]
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
        if self._gathered:
            self._start_soon()

    def _hand_out(self, batch: "list[_Gathered[Item, Answer]]", answers: Sequence[Any]) -> None:
        for (item, waiter, then), answer in zip(batch, answers, strict=True):
            if waiter is None:
                if isinstance(answer, Exception):
                    self._failed(item, then, answer)
                elif then is not None:
                    then()
            elif not isinstance(waiter, asyncio.Future):
                try:
                    waiter(answer)
                except Exception:  # noqa: BLE001 - one caller's defect must not keep the others' answers
                    log.exception("after a commit")
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

    def _failed(self, item: Item, then: Then | None, error: Exception) -> None:
        if not isinstance(error, Unavailable):
            log.error("a write was given up", error=type(error).__name__)
        elif not self._closed:
            self._deferred.append((item, then))
            if self._retry is None:
                self._retry = self._loop.call_later(_RETRY_S, self._try_again)

    def _try_again(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        deferred, self._deferred = self._deferred, []
        for item, then in deferred:
            self.post(item, then)

    async def _end_of_commits(self) -> None:
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def flush(self) -> None:
        """Commit what has gathered, and once more what could not be committed before."""
        self._try_again()
        self._hurry()
        await self._end_of_commits()

    async def close(self) -> None:
        """Commit what has gathered, and once more what could not be committed before. May be called twice."""
        if not self._closed:
            self._try_again()
            self._hurry()
        self._closed = True
        if self._lingering is not None:
            self._lingering.cancel()
        await self._end_of_commits()
