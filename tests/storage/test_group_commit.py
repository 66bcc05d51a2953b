import asyncio
from typing import Any

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
