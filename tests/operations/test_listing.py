"""Lists are read page by page, without gaps and repeats."""

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from chargegate.ledger.records import AccessEntry, DeadLetter
from chargegate.operations.listing import Listing, Place


def letter(time: int) -> DeadLetter:
    return DeadLetter(f"id-{time}", "station", "hash", "allowed", "", 0, time, 3, None, None, b"sealed")


def listed(times: list[int]) -> Listing[DeadLetter]:
    """As a ledger lists them: newest first."""

    async def fetch(limit: int, after: Place | None) -> Sequence[DeadLetter]:
        newest_first = sorted(times, reverse=True)
        return [letter(time) for time in newest_first if after is None or time < after[0]][:limit]

    return Listing(DeadLetter, ("failed_at", "request_id"), fetch)


TIMES = st.lists(st.integers(0, 10**6), unique=True, max_size=30)


@given(TIMES, st.integers(1, 7))
def test_pages_cover_a_list_once(times: list[int], limit: int) -> None:
    async def read() -> list[int]:
        seen: list[int] = []
        after = None
        while True:
            items, after = await listed(times).page(limit, after)
            assert len(items) <= limit
            seen += [item.failed_at for item in items]
            if after is None:
                return seen
            assert after == (items[-1].failed_at, items[-1].request_id)

    assert asyncio.run(read()) == sorted(times, reverse=True)


@given(TIMES, st.integers(1, 7), st.none() | st.integers(0, 40))
def test_as_many_as_asked_for(times: list[int], size: int, limit: int | None) -> None:
    async def read() -> list[list[int]]:
        return [[item.failed_at for item in page] async for page in listed(times).pages(limit, size)]

    pages = asyncio.run(read())
    assert [time for page in pages for time in page] == sorted(times, reverse=True)[:limit]
    assert all(0 < len(page) <= size for page in pages)


def test_a_list_that_is_ordered_by_ids_alone() -> None:
    async def fetch(limit: int, after: Place | None) -> Sequence[AccessEntry]:
        return [AccessEntry(name) for name in "abc" if after is None or name > after[1]][:limit]

    listing = Listing(AccessEntry, ("driver_token_hash",), fetch)
    assert asyncio.run(listing.page(2, None)) == ([AccessEntry("a"), AccessEntry("b")], (0, "b"))
    assert asyncio.run(listing.page(2, (0, "b"))) == ([AccessEntry("c")], None)


def test_the_fields_of_the_order_are_the_first_columns_and_what_is_sealed_is_none() -> None:
    assert listed([]).columns == (
        *("failed_at", "request_id", "station_id", "driver_token_hash", "status", "reason", "created_at"),
        *("attempts", "last_status_code", "last_error", "client"),
    )
