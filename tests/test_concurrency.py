"""Every step ends when it is told to, also one that ignores its cancellation."""

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


def test_steps_that_are_cancelled_without_a_drain_end() -> None:
    """One of them starts another step while it is cancelled, as a cancelled attempt does at its destination's limit."""

    async def main() -> None:
        async def started(_: object) -> None:
            await asyncio.Event().wait()

        async def starts(_: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                limit.run(started, None)

        async def nothing(_: object) -> None: ...

        limit = concurrency.ConcurrencyLimit(2, lambda: None)
        limit.run(nothing, None)
        limit.run(starts, None)
        await asyncio.sleep(0.01)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        assert len(tasks) == 2
        for task in tasks:
            task.cancel()
        _, running = await asyncio.wait(tasks, timeout=5)
        assert not running

    asyncio.run(main())
