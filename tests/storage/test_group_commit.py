import asyncio
from typing import Any

import pytest

from chargegate.storage.group_commit import GroupCommit
from chargegate.storage.unavailable import Unavailable
from scenario import run


def test_what_is_submitted_while_a_commit_is_under_way_goes_together() -> None:
    async def scenario() -> None:
        batches: list[list[int]] = []
        first_is_over = asyncio.Event()

        async def double(numbers: list[int]) -> list[int]:
            batches.append(numbers)
            await first_is_over.wait()
            return [2 * number for number in numbers]

        commits: GroupCommit[int, int] = GroupCommit(double, max_items=3)
        answers = [commits.submit(number) for number in (1, 2)]
        while not batches:
            await asyncio.sleep(0)
        answers += [commits.submit(number) for number in (3, 4, 5, 6)]
        await asyncio.sleep(0)
        answers[3].cancel()
        first_is_over.set()
        done = await asyncio.gather(*answers, return_exceptions=True)
        assert isinstance(done.pop(3), asyncio.CancelledError)
        assert done == [2, 4, 6, 10, 12]
        assert batches == [[1, 2], [3, 4, 5], [6]]

    run(scenario())


def test_an_unavailable_store_fails_those_who_wait_and_none_after() -> None:
    async def scenario() -> None:
        failing = True
        tried: list[Any] = []

        async def fail(numbers: list[int]) -> list[int]:
            tried.append(numbers)
            await asyncio.sleep(0)
            if failing:
                raise Unavailable("gone")
            return numbers

        commits: GroupCommit[int, int] = GroupCommit(fail, max_items=1)
        outcomes = await asyncio.gather(*map(commits.submit, range(5)), return_exceptions=True)
        assert {str(outcome) for outcome in outcomes} == {"gone"}
        assert tried == [[0]]
        failing = False
        assert await commits.submit(7) == 7

    run(scenario())


def test_what_nobody_waits_for_lingers_for_what_somebody_waits_for_and_not_for_ever() -> None:
    async def scenario() -> None:
        batches: list[list[int]] = []

        async def keep(numbers: list[int]) -> None:
            batches.append(numbers)

        alone = asyncio.Event()
        lingers: GroupCommit[int, None] = GroupCommit(keep, linger_s=0.02)
        lingers.post(1)
        await lingers.submit(2)
        assert batches == [[1, 2]]
        lingers.post(3, alone.set)
        await alone.wait()
        assert batches == [[1, 2], [3]]
        lingers.post(4)
        await lingers.flush()
        lingers.post(5)
        await lingers.close()
        assert batches == [[1, 2], [3], [4], [5]]

    run(scenario())


def test_what_is_posted_is_told_once_it_is_committed_after_all() -> None:
    async def scenario() -> None:
        failing = True
        told: list[int] = []
        committed = asyncio.Event()

        async def fail(numbers: list[int]) -> None:
            if failing:
                raise Unavailable("gone")
            told.extend(numbers)

        commits: GroupCommit[int, None] = GroupCommit(fail)
        commits.post(1, committed.set)
        commits.post(2)
        outcomes = await asyncio.gather(commits.submit(3), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["gone"]
        assert not committed.is_set()
        failing = False
        await committed.wait()
        assert told == [1, 2]

    run(scenario())


def test_who_is_no_coroutine_is_told_the_answer_or_the_failure_and_one_defect_keeps_nobody() -> None:
    async def scenario() -> None:
        async def halve(numbers: list[int]) -> list[Any]:
            return [ValueError("odd") if number % 2 else number // 2 for number in numbers]

        told: list[Any] = []

        def broken(_answer: Any) -> None:
            raise RuntimeError

        commits: GroupCommit[int, int] = GroupCommit(halve)
        for number, done in ((4, told.append), (6, broken), (7, told.append)):
            commits.notify(number, done)
        assert await commits.submit(8) == 4
        assert told[0] == 2
        assert isinstance(told[1], ValueError)
        await commits.close()
        with pytest.raises(Unavailable):
            commits.notify(2, told.append)

    run(scenario())
