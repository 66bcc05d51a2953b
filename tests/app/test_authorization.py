"""What is cached follows the access list, whatever happens to those who look."""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest

from chargegate.app import authorization
from chargegate.ledger.base import LedgerUnavailable


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
