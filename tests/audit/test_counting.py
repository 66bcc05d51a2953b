"""The task that counts, beside a ledger that is written."""

import asyncio
from collections.abc import Awaitable, Callable

from chargegate.audit.counting import Counting
from chargegate.ledger.counts import DAY_MS
from chargegate.model import Decision, Status, new_request_id, now_ms
from databases import Database, Run

LIMIT_S = 15


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await condition():
            await asyncio.sleep(0.02)


def decision(at: int) -> Decision:
    return Decision(new_request_id(), "00000000-0000-4000-8000-00000000000a", "0" * 16, Status.ALLOWED, "", 1, at)


def test_decisions_are_counted_and_old_counts_go(run: Run) -> None:
    async def scenario(database: Database) -> None:
        ledger, counts = database.ledger(), database.counts()
        old, new = now_ms() - 100 * DAY_MS, now_ms()
        await asyncio.gather(*(ledger.record(decision(at), 0) for at in (old, old, new)))

        async def done() -> bool:
            kept = await database.execute("SELECT count(*), min(start) FROM station_counts")
            return await counts.uncounted_since() is None and kept[0][0] > 0 and kept[0][1] > old

        counting = Counting(counts, keep_ms=40 * DAY_MS)
        try:
            await eventually(done)
        finally:
            await counting.close()
        assert (await counts.total(None, None)).total == 1
        assert len(await ledger.station_stats(now_ms() - DAY_MS, None)) == 1

    run(scenario)
