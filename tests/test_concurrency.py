"""A drain ends every step, also one that ignores its cancellation."""

import asyncio

import pytest

from chargegate import concurrency


def test_a_step_that_ignores_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "_CANCEL_AGAIN_S", 0.01)
    cancelled = []

    async def stubborn(_: object) -> None:
        while len(cancelled) < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
        raise asyncio.CancelledError

    async def drain() -> None:
        limit = concurrency.ConcurrencyLimit(1, lambda: None)
        limit.run(stubborn, None)
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await limit.drain(0)

    asyncio.run(drain())
    assert len(cancelled) == 2
