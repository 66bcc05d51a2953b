"""What is cached follows the access list, whatever happens to those who look."""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from chargegate.app import authorization
from chargegate.authorizers.cache import DecisionCache
from chargegate.engines.sqlite.access_list import SqliteAccessList
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.records import AccessEntry


class Changes:
    """Answers one after another; the last again and again."""

    def __init__(self, *answers: tuple[int, frozenset[str] | None] | Exception) -> None:
        self._answers = list(answers)

    async def changes(self, _since: int) -> tuple[int, frozenset[str] | None]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Cache:
    def __init__(self) -> None:
        self.told: list[object] = []

    def forget(self, token_hashes: Iterable[str]) -> None:
        self.told.append(set(token_hashes))

    def forget_all(self) -> None:
        self.told.append("all")


def test_whatever_fails_all_is_forgotten_and_the_following_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorization, "_FOLLOW_S", 0)
    nothing: frozenset[str] = frozenset()
    failing = (LedgerUnavailable("away"), IndexError("a client's defect"))
    changes = Changes((0, nothing), *failing, (1, frozenset({"a"})), (2, None), (2, nothing))
    cache = Cache()

    async def follow() -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(10):
            await authorization.follow_access_list(cast("Any", changes), [cache], stack)
            while len(cache.told) < 4:
                await asyncio.sleep(0)

    asyncio.run(follow())
    assert cache.told == ["all", "all", {"a"}, "all"]


@pytest.mark.parametrize("count", [0, 1, 500, 501, 1300])
def test_the_access_list_is_in_memory_before_its_drivers_come(tmp_path: Path, count: int) -> None:
    async def scenario() -> None:
        store = await SqliteStore.open(tmp_path / "list.db", ALL_TABLES, exclusive=True)
        access_list = SqliteAccessList(store)
        entries = [AccessEntry(f"{number:064x}", blocked=bool(number % 2)) for number in range(count)]
        await access_list.put(entries)
        remembered = DecisionCache(ttl_ms=1000)
        async with AsyncExitStack() as stack, asyncio.timeout(20):
            authorization.remember_access_list(access_list, remembered, stack)
            for entry in entries:
                while remembered.entry(entry.driver_token_hash) is None:
                    await asyncio.sleep(0.005)
                assert remembered.entry(entry.driver_token_hash) == entry
        await store.close()

    asyncio.run(scenario())
