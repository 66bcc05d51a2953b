import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargegate.ledger.base import AccessList, Ledger, LedgerUnavailable
from chargegate.ledger.records import AccessEntry


class Database(Protocol):
    ledger: Callable[..., Ledger]
    access_list: Callable[[], AccessList]

    async def execute(self, statement: str) -> list[tuple[Any, ...]]: ...

    async def close(self) -> None: ...


Run = Callable[[Callable[[Database], Coroutine[Any, Any, None]]], None]

HERE = "123e4567-e89b-12d3-a456-426614174000"
THERE = "00000000-0000-4000-8000-00000000000b"
hashes = st.integers(0, 20).map(lambda n: f"{n:064x}")
stations = st.frozensets(st.sampled_from([HERE, THERE]))
moments = st.none() | st.integers(0, 2**40)
# PostgreSQL holds no NUL
entries = st.builds(
    AccessEntry,
    hashes,
    st.booleans(),
    moments,
    moments,
    stations,
    stations,
    st.text(st.characters(codec="utf-8", exclude_characters="\0")),
)


def entry(number: int, **fields: Any) -> AccessEntry:
    return AccessEntry(f"{number:064x}", **fields)


def hashes_of(*numbers: int) -> frozenset[str]:
    return frozenset(entry(number).driver_token_hash for number in numbers)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(entries, max_size=20), st.integers(1, 6))
def test_the_last_entry_of_a_hash_stands_and_lists_are_whole(run: Run, put: list[AccessEntry], limit: int) -> None:
    async def scenario(database: Database) -> None:
        access_list = database.access_list()
        for old in await access_list.entries(1_000, None):
            assert await access_list.remove(old.driver_token_hash)
        await access_list.put(put)
        standing = {each.driver_token_hash: each for each in put}
        seen: list[AccessEntry] = []
        while page := await access_list.entries(limit, seen[-1].driver_token_hash if seen else None):
            assert len(page) <= limit
            seen += page
        assert seen == [standing[key] for key in sorted(standing)]
        for key, expected in standing.items():
            assert await access_list.entry(key) == expected

    run(scenario)


def test_entries_looked_up_at_once_are_not_mixed_up(run: Run) -> None:
    async def scenario(database: Database) -> None:
        access_list = database.access_list()
        await access_list.put([entry(n, note=str(n)) for n in range(0, 400, 2)])
        found = await asyncio.gather(*(access_list.entry(f"{n:064x}") for n in range(400)))
        assert [each.note if each else None for each in found] == [None if n % 2 else str(n) for n in range(400)]

    run(scenario)


def test_removing_tells_whether_there_was_one(run: Run) -> None:
    async def scenario(database: Database) -> None:
        access_list = database.access_list()
        await access_list.put([entry(1)])
        assert await access_list.remove(entry(1).driver_token_hash) is True
        assert await access_list.remove(entry(1).driver_token_hash) is False
        assert await access_list.entry(entry(1).driver_token_hash) is None

    run(scenario)


def test_every_change_is_numbered_and_named(run: Run) -> None:
    async def scenario(database: Database) -> None:
        access_list = database.access_list()
        assert await access_list.changes(0) == (0, frozenset())
        await access_list.put([entry(1), entry(2)])
        newest, changed = await access_list.changes(0)
        assert changed == hashes_of(1, 2)
        await access_list.remove(entry(1).driver_token_hash)
        after, changed = await access_list.changes(newest)
        assert after > newest
        assert changed == hashes_of(1)
        await access_list.remove(entry(1).driver_token_hash)
        assert await access_list.changes(after) == (after, frozenset())

    run(scenario)


def test_another_process_sees_the_change(run: Run) -> None:
    async def change(database: Database) -> None:
        await database.access_list().put([entry(1, blocked=True)])

    async def look(database: Database) -> None:
        newest, changed = await database.access_list().changes(0)
        assert (newest > 0, changed) == (True, hashes_of(1))

    run(change)
    run(look)


def test_too_many_changes_are_everything(run: Run) -> None:
    async def scenario(database: Database) -> None:
        access_list = database.access_list()
        await access_list.put([entry(n) for n in range(5_000)])
        newest, changed = await access_list.changes(0)
        assert changed is None
        assert newest > 0
        assert await access_list.changes(newest) == (newest, frozenset())

    run(scenario)


def test_changes_no_longer_known_are_everything(run: Run) -> None:
    async def scenario(database: Database) -> None:
        access_list = database.access_list()
        for start in range(0, 102_000, 1_000):
            await access_list.put([entry(n) for n in range(start % 5_000, start % 5_000 + 1_000)])
        newest, changed = await access_list.changes(0)
        assert changed is None
        assert (await access_list.changes(newest - 3))[1] == hashes_of(*range(1_997, 2_000))

    run(scenario)


def test_putting_nothing_is_no_change(run: Run) -> None:
    async def scenario(database: Database) -> None:
        access_list = database.access_list()
        await access_list.put([])
        assert await access_list.changes(0) == (0, frozenset())

    run(scenario)


def test_one_faulty_entry_leaves_the_list_as_it_was(run: Run) -> None:
    async def scenario(database: Database) -> None:
        access_list = database.access_list()
        with pytest.raises((OverflowError, ValueError)):
            await access_list.put([entry(1), entry(2, valid_from=2**63)])
        assert await access_list.entries(10, None) == []
        assert await access_list.changes(0) == (0, frozenset())

    run(scenario)


def test_a_database_that_is_gone_is_unavailable(run: Run) -> None:
    async def scenario(database: Database) -> None:
        access_list = database.access_list()
        await database.close()
        for attempt in (access_list.entry("x"), access_list.put([]), access_list.remove("x"), access_list.changes(0)):
            with pytest.raises(LedgerUnavailable):
                await attempt

    run(scenario)
