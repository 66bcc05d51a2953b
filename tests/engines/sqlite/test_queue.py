"""What is peculiar to the durable queue in SQLite: its window, its order, and other processes."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.queue import SqliteQueue
from chargegate.engines.sqlite.statements import QUEUE_TABLES
from chargegate.queues.base import Delivery, Message, QueueFull, QueueUnavailable

WINDOW = 2048
LIMIT_S = 30

MakeMessage = Callable[..., Message]
Scenario = Callable[[SqliteQueue], Coroutine[Any, Any, None]]


@asynccontextmanager
async def opened(folder: Path, max_size: int, *, exclusive: bool = True) -> AsyncIterator[SqliteQueue]:
    store = await SqliteStore.open(folder / "queue.db", QUEUE_TABLES, exclusive=exclusive)
    queue = await SqliteQueue.open(store, max_size)
    try:
        yield queue
    finally:
        await queue.close()
        await store.close()


def run(folder: Path, scenario: Scenario, max_size: int = 100_000) -> None:
    async def main() -> None:
        async with asyncio.timeout(LIMIT_S), opened(folder, max_size) as queue:
            await scenario(queue)

    uvloop.run(main())


async def receive(queue: SqliteQueue, count: int, limit: int = 64) -> list[Delivery]:
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        deliveries += await queue.receive(min(limit, count - len(deliveries)))
    return deliveries


def ids(items: list[Message] | list[Delivery]) -> list[str]:
    return [item.request_id if isinstance(item, Message) else item.message.request_id for item in items]


def test_messages_come_in_the_order_of_their_puts(tmp_path: Path, make_message: MakeMessage) -> None:
    async def scenario(queue: SqliteQueue) -> None:
        put = [make_message() for _ in range(100)]
        for start in range(0, 100, 10):
            await asyncio.gather(*map(queue.put, put[start : start + 10]))
        assert ids(await receive(queue, 100)) == ids(put)

    run(tmp_path, scenario)


def test_a_backlog_beyond_the_window_is_paged_in_whole_and_in_order(tmp_path: Path, make_message: MakeMessage) -> None:
    async def scenario(queue: SqliteQueue) -> None:
        put = [make_message() for _ in range(WINDOW + 1500)]
        await asyncio.gather(*map(queue.put, put[: WINDOW - 10]))
        await asyncio.gather(*map(queue.put, put[WINDOW - 10 :]))
        assert (await queue.depth()).waiting == len(put)
        assert len(queue._window) <= WINDOW  # looks inside: memory shows nowhere else
        got = await receive(queue, WINDOW + 100)
        late = [make_message() for _ in range(5)]
        await asyncio.gather(*map(queue.put, late))
        got += await receive(queue, len(put) + 5 - len(got))
        assert ids(got) == ids(put) + ids(late)
        assert all(delivery.fresh for delivery in got)
        assert (await queue.depth()).waiting == 0

    run(tmp_path, scenario)


def test_find_and_depth_know_what_is_only_on_disk(tmp_path: Path, make_message: MakeMessage) -> None:
    async def fill(queue: SqliteQueue) -> None:
        await asyncio.gather(*(queue.put(make_message(accepted_at=1_000)) for _ in range(WINDOW + 500)))

    async def look(queue: SqliteQueue) -> None:
        last = make_message()
        await queue.put(last)
        assert (await queue.depth()).oldest_age_ms > 60_000
        got = await receive(queue, 700)
        found = await queue.find(last.request_id)
        assert found is not None
        assert not found.taken
        taken = await queue.find(got[-1].message.request_id)
        assert taken is not None
        assert taken.taken
        assert (await queue.depth()).waiting == WINDOW + 501 - 700

    run(tmp_path, fill)
    run(tmp_path, look)


def test_only_what_was_surely_never_handed_out_is_fresh(tmp_path: Path, make_message: MakeMessage) -> None:
    async def before(queue: SqliteQueue) -> None:
        for _ in range(3):
            await queue.put(make_message())
        first, *_ = await receive(queue, 2)
        await queue.ack(first)

    async def after(queue: SqliteQueue) -> None:
        await queue.put(make_message())
        assert [delivery.fresh for delivery in await receive(queue, 3)] == [False, False, True]

    run(tmp_path, before)
    run(tmp_path, after)


def test_a_row_number_is_never_used_again(tmp_path: Path, make_message: MakeMessage) -> None:
    """Otherwise a new message after a restart could pass for one that was handed out before."""

    async def once(queue: SqliteQueue) -> None:
        await queue.put(make_message())
        (delivery,) = await queue.receive(1)
        assert delivery.fresh
        seen.append(delivery.handle)
        await queue.ack(delivery)

    seen: list[int] = []
    for _ in range(3):
        run(tmp_path, once)
    assert len(set(seen)) == 3


def test_a_full_queue_is_still_full_after_a_reopen(tmp_path: Path, make_message: MakeMessage) -> None:
    async def fill(queue: SqliteQueue) -> None:
        for _ in range(3):
            await queue.put(make_message())
        await receive(queue, 1)

    async def refuse(queue: SqliteQueue) -> None:
        with pytest.raises(QueueFull):
            await queue.put(make_message())

    run(tmp_path, fill, max_size=3)
    run(tmp_path, refuse, max_size=3)


def test_what_another_process_puts_is_noticed(tmp_path: Path, make_message: MakeMessage) -> None:
    async def scenario(queue: SqliteQueue) -> None:
        waiting = asyncio.ensure_future(queue.receive(1))
        async with opened(tmp_path, 10, exclusive=False) as other:
            foreign = make_message()
            await other.put(foreign)
            (delivery,) = await waiting
            assert delivery.message == foreign
            assert (await queue.depth()).waiting == 0

    run(tmp_path, scenario)


def test_puts_of_two_processes_at_once_come_out_once_each(tmp_path: Path, make_message: MakeMessage) -> None:
    async def scenario(queue: SqliteQueue) -> None:
        async with opened(tmp_path, 1000, exclusive=False) as other:
            put = [make_message() for _ in range(200)]
            for start in range(0, 200, 4):
                own, foreign = put[start : start + 2], put[start + 2 : start + 4]
                await asyncio.gather(*map(queue.put, own), *map(other.put, foreign))
            got = await receive(queue, 200)
            assert sorted(ids(got)) == sorted(ids(put))
            assert [delivery.handle for delivery in got] == sorted(delivery.handle for delivery in got)
            assert (await queue.depth()).waiting == 0

    run(tmp_path, scenario)


def test_a_message_that_cannot_be_stored_harms_no_other(tmp_path: Path, make_message: MakeMessage) -> None:
    """An integer that SQLite cannot hold stands for any message that breaks on its way into a row."""

    async def scenario(queue: SqliteQueue) -> None:
        good = [make_message() for _ in range(4)]
        bad = make_message(accepted_at=2**63)
        outcomes = await asyncio.gather(*map(queue.put, [*good[:2], bad, *good[2:], bad]), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes if outcome is not None] == [OverflowError, OverflowError]
        later = make_message()
        await queue.put(later)
        assert (await queue.depth()).waiting == 5
        assert ids(await receive(queue, 5)) == ids([*good, later])

    run(tmp_path, scenario)


def test_a_put_that_failed_takes_no_room(tmp_path: Path, make_message: MakeMessage) -> None:
    async def scenario(queue: SqliteQueue) -> None:
        with pytest.raises(OverflowError):
            await queue.put(make_message(accepted_at=2**63))
        await queue.put(make_message())
        assert (await queue.depth()).waiting == 1

    run(tmp_path, scenario, max_size=1)


def test_a_store_that_is_gone_is_unavailable(tmp_path: Path, make_message: MakeMessage) -> None:
    async def main() -> None:
        store = await SqliteStore.open(tmp_path / "queue.db", QUEUE_TABLES, exclusive=True)
        queue = await SqliteQueue.open(store, 10, on_close=store.close)
        await queue.close()  # as when the process is on its way out
        for attempt in (queue.put(make_message()), queue.check(), queue.find("x")):
            with pytest.raises(QueueUnavailable):
                await attempt

    uvloop.run(main())


def test_an_acked_row_leaves_the_file(tmp_path: Path, make_message: MakeMessage) -> None:
    async def scenario(queue: SqliteQueue) -> None:
        for _ in range(300):
            await queue.put(make_message())
        for delivery in await receive(queue, 300):
            await queue.ack(delivery)

    run(tmp_path, scenario)
    with sqlite3.connect(tmp_path / "queue.db") as connection:
        assert connection.execute("SELECT count(*) FROM queue").fetchone() == (0,)
    connection.close()
