"""Long lists, read page by page."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import click

from chargegate.cli.options import Command

Item = TypeVar("Item")
Place = TypeVar("Place")

PAGE = 500


def paging(command: Command) -> Command:
    """The options ``--limit`` and ``--all``, as ``limit`` and ``everything``."""
    everything = click.option("--all", "everything", is_flag=True, help="All of them, however many.")
    limit = click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
    return limit(everything(command))


async def pages(
    fetch: Callable[[int, Place | None], Awaitable[Sequence[Item]]],
    place: Callable[[Item], Place],
    limit: int | None = None,
) -> AsyncIterator[Sequence[Item]]:
    """What ``fetch(size, after)`` gives, page by page, up to ``limit`` items; ``place`` is where an item stands."""
    after = None
    while limit is None or limit > 0:
        size = PAGE if limit is None else min(PAGE, limit)
        page = await fetch(size, after)
        if page:
            yield page
        if len(page) < size:
            return
        after = place(page[-1])
        limit = None if limit is None else limit - size
