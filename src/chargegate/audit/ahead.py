"""Reads pages of a database ahead of whoever uses them."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

PAGE: Final = 5000
_LEAST: Final = -(2**63)
"""Below every number that a database has."""


class Ahead(Generic[T]):
    """Pages one after the other, each of which is fetched while the one before is used. ``at`` is the place of the
    first of ``items`` that was not used yet; whoever uses it counts ``at`` up."""

    def __init__(
        self,
        fetch: Callable[[int, int], Coroutine[Any, Any, Sequence[T]]],
        number_of: Callable[[T], int],
        text_of: Callable[[Sequence[T]], list[str]] | None = None,
    ) -> None:
        """``fetch(after, limit)`` gives the items whose numbers are above ``after``. ``text_of`` makes ``texts`` of a
        page, in another thread."""
        self._fetch = fetch
        self._number_of = number_of
        self._text_of = text_of
        self._after = _LEAST
        self._next = self._fetching()
        self.items: Sequence[T] = ()
        self.texts: list[str] = []
        self.at = 0
        self.ended = False

    def _fetching(self) -> asyncio.Task[Sequence[T]]:
        return asyncio.create_task(self._fetch(self._after, PAGE))

    @property
    def first(self) -> T | None:
        """None where the page is used up."""
        return self.items[self.at] if self.at < len(self.items) else None

    async def more(self) -> bool:
        """Whether there is one, after which ``first`` is that. It has ended only where nothing was there after this was
        called."""
        if self.at < len(self.items):
            return True
        page = await self._next or await self._fetch(self._after, PAGE)
        self.items, self.at, self.ended = page, 0, not page
        if page:
            self._after = self._number_of(page[-1])
            self._next = self._fetching()
            if self._text_of is not None:
                self.texts = await asyncio.to_thread(self._text_of, page)
        return bool(page)

    async def close(self) -> None:
        self._next.cancel()
        await asyncio.gather(self._next, return_exceptions=True)
