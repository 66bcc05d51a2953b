"""Long lists of records, read page by page."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

import msgspec

from chargegate.operations.views import columns

Item = TypeVar("Item", bound=msgspec.Struct)
Place = tuple[int, str]
"""Where an item stands: its time (Unix ms) and its id, or 0 and its id in a list that is ordered by ids alone."""

PAGE: Final = 500


class Listing(Generic[Item]):
    """A list of records.

    ``order`` names the fields that it is ordered by: a time and an id, or an id alone. ``fetch`` gives at most so many
    items, from the first on or after a place.
    """

    def __init__(
        self, record: type[Item], order: Sequence[str], fetch: Callable[[int, Place | None], Awaitable[Sequence[Item]]]
    ) -> None:
        visible = columns(record)
        self.columns = tuple(dict.fromkeys((*(name for name in order if name in visible), *visible)))
        """The names of a record's fields that are shown, those of the order first."""
        self._order = order
        self._fetch = fetch

    async def page(self, limit: int, after: Place | None) -> tuple[Sequence[Item], Place | None]:
        """Up to ``limit`` items, and the place after which the next page begins, if there is one."""
        found = await self._fetch(limit + 1, after)
        if len(found) <= limit:
            return found, None
        *time, name = (getattr(found[limit - 1], field) for field in self._order)
        return found[:limit], (time[0] if time else 0, name)

    async def pages(self, limit: int | None = None, size: int = PAGE) -> AsyncIterator[Sequence[Item]]:
        """The items in pages of at most ``size``, up to ``limit`` items in all."""
        after = None
        while limit is None or limit > 0:
            items, after = await self.page(size if limit is None else min(size, limit), after)
            if items:
                yield items
            if after is None:
                return
            limit = None if limit is None else limit - len(items)
