"""Slots end when they are told to."""

import asyncio

import pytest

from chargegate import slots


def test_a_step_that_does_not_heed_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_HEEDED_S", 0.01)
    cancelled = []

    async def stubborn(_: object) -> None:
        while len(cancelled) < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
        raise asyncio.CancelledError

    async def end() -> None:
        few = slots.Slots(1, lambda: None)
        few.begin(stubborn, None)
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await few.end(0)

    asyncio.run(end())
    assert len(cancelled) == 2
