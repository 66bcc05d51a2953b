"""Work that goes on beside the traffic."""

import asyncio
from collections.abc import Callable
from typing import Any

from chargegate.storage.recurring import Recurring
from chargegate.storage.unavailable import Unavailable
from scenario import run


def test_a_turn_that_fails_is_logged_and_the_next_is_tried(logged: Callable[[], list[dict[str, Any]]]) -> None:
    outcomes: list[Exception | None] = [None, RuntimeError("no disk"), Unavailable("away"), None]
    turns = 0

    async def turn() -> float:
        nonlocal turns
        turns += 1
        if outcome := outcomes[turns - 1] if turns <= len(outcomes) else None:
            raise outcome
        return 0.001

    async def scenario() -> None:
        recurring = Recurring(turn, 0.001, "it cannot be done")
        while turns < 6:
            await asyncio.sleep(0.001)
        await recurring.close()
        ended = turns
        await asyncio.sleep(0.01)
        assert turns == ended

    run(scenario())
    assert [event["event"] for event in logged()] == ["it cannot be done"]


def test_a_turn_that_is_under_way_is_cut_off() -> None:
    cut_off = asyncio.Event()

    async def turn() -> float:
        try:
            await asyncio.Event().wait()
        finally:
            cut_off.set()
        return 0

    async def scenario() -> None:
        recurring = Recurring(turn, 0, "it cannot be done")
        await asyncio.sleep(0.01)
        await recurring.close()
        assert cut_off.is_set()

    run(scenario())


def test_a_turn_that_fails_at_once_is_not_tried_without_a_pause() -> None:
    turns = 0

    async def turn() -> float:
        nonlocal turns
        turns += 1
        raise Unavailable("away")

    async def scenario() -> None:
        recurring = Recurring(turn, 0, "it cannot be done")
        await asyncio.sleep(0.2)
        await recurring.close()
        assert turns == 1

    run(scenario())
