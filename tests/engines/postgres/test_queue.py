"""Tests of the queue in PostgreSQL: leases, locks, and servers that come and go."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from chargegate.engines.postgres.queue import PostgresQueue
from chargegate.engines.postgres.statements import queue_statements
from chargegate.queues.base import Delivery, Message, Queue, QueueFull, QueueUnavailable
from chargegate.storage.unavailable import Unusable
from lost_answer import losing_answers
from pooler import pooled
from scenario import run
from servers.server import Server

MakeMessage = Callable[..., Message]


class Place:
    """A table of its own on the server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.table = f"q{uuid4().hex[:12]}"

    @asynccontextmanager
    async def opened(
        self, url: str = "", max_size: int = 1000, lease_ms: int = 30_000, more: str = ""
    ) -> AsyncIterator[PostgresQueue]:
        queue = await PostgresQueue.open(f"{url or self.url}?table={self.table}{more}", max_size, lease_ms)
        try:
            yield queue
        finally:
            await queue.close()

    async def rows(self, query: str) -> list[Any]:
        connection = await asyncpg.connect(self.url)
        try:
            return [tuple(row) for row in await connection.fetch(query.replace("QUEUE", self.table))]
        finally:
            await connection.close()


@pytest.fixture
def place(postgres_server: Server) -> Place:
    return Place(postgres_server.url)


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    while not await condition():
        await asyncio.sleep(0.02)


async def receive(queue: Queue, count: int) -> list[Delivery]:
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        try:
            deliveries += await queue.receive(count - len(deliveries))
        except QueueUnavailable:
            await asyncio.sleep(0.02)
    return deliveries


def ids(items: list[Message] | list[Delivery]) -> list[str]:
    return sorted(item.request_id if isinstance(item, Message) else item.message.request_id for item in items)


def test_a_lease_that_is_not_renewed_runs_out_and_a_late_ack_touches_nothing(
    place: Place, make_message: MakeMessage
) -> None:
    async def scenario() -> None:
        async with place.opened(lease_ms=300) as stalled, place.opened() as other:
            stalled._renewing.cancel()  # as in a process that hangs
            message = make_message()
            await stalled.put(message)
            (first,) = await stalled.receive(1)
            (second,) = await other.receive(1)
            assert (first.fresh, second.fresh, second.message) == (True, False, message)
            await stalled.ack(first)
            await stalled._acks.close()
            found = await other.find(message.request_id)
            assert found is not None
            assert found.taken
            await other.ack(second)
            await other._acks.close()
            assert await other.find(message.request_id) is None

    run(scenario())


def test_a_lease_is_renewed_while_its_holder_lives(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.opened(lease_ms=400) as holder, place.opened() as other:
            await holder.put(make_message())
            await holder.receive(1)
            waiting = asyncio.ensure_future(other.receive(1))
            ((taken_at,),) = await place.rows("SELECT lease_until FROM QUEUE")
            await until(lambda: place.rows(f"SELECT 1 FROM QUEUE WHERE lease_until > '{taken_at}'::timestamptz + '2s'"))
            assert not waiting.done()
            waiting.cancel()

    run(scenario())


def test_what_comes_back_comes_before_the_backlog(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.opened() as queue:
            late, *backlog = [make_message() for _ in range(5)]
            await queue.put(late)
            await queue.receive(1)
            await asyncio.gather(*map(queue.put, backlog))
            await place.rows("UPDATE QUEUE SET lease_until = now() - interval '1s' WHERE lease_until IS NOT NULL")
            (delivery,) = await queue.receive(1)
            assert delivery.message == late

    run(scenario())


def test_closing_gives_back_at_once_and_what_nobody_was_handed_is_still_fresh(
    place: Place, make_message: MakeMessage
) -> None:
    async def scenario() -> None:
        async with place.opened() as queue:
            for _ in range(3):
                await queue.put(make_message())
            await queue.receive(1)
            cancelled = asyncio.ensure_future(queue.receive(2))
            await asyncio.sleep(0)
            cancelled.cancel()
        async with place.opened() as queue:
            assert (await queue.depth()).waiting == 3
            assert sorted(delivery.fresh for delivery in await receive(queue, 3)) == [False, True, True]

    run(scenario())


def test_a_locked_row_is_passed_over(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        connection = await asyncpg.connect(place.url)
        async with place.opened() as queue:
            locked, free = make_message(), make_message()
            await queue.put(locked)
            await queue.put(free)
            async with connection.transaction():
                await connection.execute(
                    f"SELECT FROM {place.table} WHERE request_id = $1 FOR UPDATE", locked.request_id
                )
                assert ids(await queue.receive(2)) == [free.request_id]
            assert ids(await queue.receive(2)) == [locked.request_id]
        await connection.close()

    run(scenario())


def test_tables_on_one_database_do_not_mix(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        other = Place(place.url)
        async with place.opened() as here, other.opened() as there:
            first, second = make_message(), make_message()
            await here.put(first)
            await there.put(second)
            assert ids(await here.receive(10)) == [first.request_id]
            assert ids(await there.receive(10)) == [second.request_id]

    run(scenario())


@pytest.mark.parametrize("table", ["", "Queue", "q;drop", "1q", "q" * 41])
def test_a_table_by_another_name_is_refused(place: Place, table: str) -> None:
    with pytest.raises(Unusable, match="table"):
        run(PostgresQueue.open(f"{place.url}?table={table}", 10, 30_000))  # type: ignore[arg-type]  # raises


def test_what_others_put_counts_for_the_size(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.opened(max_size=3) as queue, place.opened(max_size=100) as other:
            await queue.put(make_message())
            for _ in range(3):
                await other.put(make_message())

            async def refused() -> bool:
                try:
                    await other.receive(1)
                    await queue.put(make_message())
                except QueueFull:
                    return True
                return False

            await until(refused)
            assert (await queue.depth()).waiting >= 3
            await receive(other, (await queue.depth()).waiting)

            async def put() -> bool:
                try:
                    await queue.put(make_message())
                except QueueFull:
                    return False
                return True

            await until(put)

    run(scenario())


def test_a_message_is_stored_once_and_its_replay_beside_it(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.opened() as queue:
            message = make_message(accepted_at=1_000)
            replay = Message(message.request_id, message.station_id, 2_000, message.body)
            for each in (message, message, replay):
                await queue.put(each)
            deliveries = await receive(queue, 2)
            assert [delivery.message for delivery in deliveries] == [message, replay]
            assert (await queue.depth()).waiting == 0

    run(scenario())


def test_a_put_whose_answer_was_lost_is_stored_once(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with (
            losing_answers(place.url) as proxy,
            place.opened(proxy.url, more=f"&listen_url={place.url}") as queue,
        ):
            put = [make_message() for _ in range(20)]
            proxy.to_lose = 1
            await asyncio.gather(*map(queue.put, put))
            assert ids(await receive(queue, 20)) == ids(put)
            assert (await queue.depth()).waiting == 0

    run(scenario())


def test_a_take_whose_answer_was_lost_is_made_again(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with (
            losing_answers(place.url) as proxy,
            place.opened(proxy.url, more=f"&listen_url={place.url}") as queue,
        ):
            put = [make_message() for _ in range(20)]
            await asyncio.gather(*map(queue.put, put))
            await queue._notices.close()
            first = await queue.receive(5)
            proxy.to_lose = 1
            second = await queue.receive(15)
            assert proxy.to_lose == 0
            assert ids(first + second) == ids(put)
            assert all(delivery.fresh for delivery in second)

    run(scenario())


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_it_refuses_while_the_server_is_away_and_heals_by_itself(
    place: Place, postgres_server: Server, make_message: MakeMessage, end: str
) -> None:
    async def scenario() -> None:
        async with place.opened() as queue, place.opened() as other:
            put = [make_message() for _ in range(10)]
            await asyncio.gather(*map(queue.put, put[:9]))
            held = await queue.receive(4)
            await asyncio.to_thread(getattr(postgres_server, end))
            refused = make_message()
            for attempt in (queue.put(refused), queue.check(), queue.depth(), queue.find("x"), other.receive(1)):
                with pytest.raises(QueueUnavailable):
                    await attempt
            await queue.ack(held[0])
            await asyncio.to_thread(postgres_server.start)
            await queue.check()
            await queue.put(put[9])
            assert ids(held + await receive(other, 6)) == ids(put)

            async def acked() -> bool:
                return await queue.find(held[0].message.request_id) is None

            await until(acked)

    run(scenario())


def test_what_the_living_held_through_an_outage_stays_theirs(
    place: Place, postgres_server: Server, make_message: MakeMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chargegate.storage.group_commit._RETRY_S", 0.1)

    async def scenario() -> None:
        async with place.opened(lease_ms=1600) as holder, place.opened(lease_ms=1600) as other:
            await holder.put(make_message())
            (held,) = await holder.receive(1)
            ((until_then,),) = await place.rows("SELECT lease_until FROM QUEUE")
            taking = [asyncio.create_task(receive(each, 1)) for each in (holder, other)]
            await asyncio.to_thread(postgres_server.stop)
            while datetime.now(UTC) <= until_then:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(postgres_server.start)
            await until(
                lambda: place.rows(f"SELECT 1 FROM QUEUE WHERE lease_until > '{until_then}'::timestamptz + '4s'")
            )
            assert await place.rows("SELECT seq, lease FROM QUEUE") == [held.handle]
            for task in taking:
                assert not task.done()
                task.cancel()

    run(scenario())


def test_a_message_in_a_long_queue_is_looked_up_whatever_the_planner_knows(place: Place) -> None:
    async def scenario() -> None:
        async with place.opened():
            await place.rows(
                "INSERT INTO QUEUE (request_id, station_id, accepted_at, body, deliveries)"
                " SELECT gen_random_uuid(), '', n, '', 0 FROM generate_series(1, 20000) AS n"
            )
            for knows in ("SELECT", "ANALYZE QUEUE"):  # nothing, and how many there are
                await place.rows(knows)
                plan = await place.rows("EXPLAIN " + queue_statements("QUEUE")["find"].replace("$1", "'x'"))
                assert "Index Cond: (request_id = 'x'::text)" in str(plan).replace("\\", "")

    run(scenario())


def test_it_goes_on_after_the_server_lost_its_data(
    place: Place, postgres_server: Server, make_message: MakeMessage
) -> None:
    async def scenario() -> None:
        async with place.opened() as queue:
            await queue.put(make_message())
            (held,) = await receive(queue, 1)
            waiting = asyncio.ensure_future(receive(queue, 1))
            await asyncio.to_thread(postgres_server.wipe)
            await asyncio.to_thread(postgres_server.start)
            message = make_message()
            await queue.put(message)
            assert ids(await waiting) == [message.request_id]
            await queue.ack(held)  # of a row whose number may be another's now
            await queue._acks.close()
            found = await queue.find(message.request_id)
            assert found is not None
            assert found.taken

    run(scenario())


def test_connections_cut_under_load_lose_no_message_that_was_put(
    place: Place, postgres_server: Server, make_message: MakeMessage
) -> None:
    async def scenario() -> None:
        async with place.opened(max_size=10_000) as queue, place.opened() as consumer:
            stored: set[str] = set()
            seen: set[str] = set()

            async def produce() -> None:
                for _ in range(60):
                    message = make_message()
                    try:
                        await queue.put(message)
                    except QueueUnavailable:
                        continue
                    stored.add(message.request_id)

            async def consume() -> None:
                while True:
                    for delivery in await receive(consumer, 1):
                        seen.add(delivery.message.request_id)
                        await consumer.ack(delivery)

            producers = [asyncio.create_task(produce()) for _ in range(5)]
            consuming = asyncio.create_task(consume())
            while not all(task.done() for task in producers):
                await place.rows(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chargegate'"
                )
                await asyncio.sleep(0.01)
            await asyncio.gather(*producers)
            assert stored
            while not stored <= seen:
                await asyncio.sleep(0.02)
            consuming.cancel()
            await asyncio.gather(consuming, return_exceptions=True)

    run(scenario())


@pytest.mark.parametrize("listen", [True, False])
def test_it_works_behind_a_transaction_mode_pooler(
    place: Place, postgres_server: Server, make_message: MakeMessage, listen: bool
) -> None:
    async def scenario() -> None:
        with pooled(postgres_server) as url:
            more = f"&listen_url={place.url}" if listen else ""
            async with place.opened(url, more=more) as queue, place.opened(url, more=more) as other:
                put = [make_message() for _ in range(300)]
                got: list[Delivery] = []

                async def consume(consumer: Queue) -> None:
                    while len(got) < len(put):
                        deliveries = await consumer.receive(7)
                        got.extend(deliveries)
                        for delivery in deliveries:
                            await consumer.ack(delivery)

                consumers = [asyncio.create_task(consume(each)) for each in (queue, other)]
                await asyncio.gather(*map(queue.put, put[:100]))
                for message in put[100:]:
                    await other.put(message)
                await asyncio.wait(consumers, return_when=asyncio.FIRST_COMPLETED)
                for consumer in consumers:
                    consumer.cancel()
                await asyncio.gather(*consumers, return_exceptions=True)
                assert ids(got) == ids(put)
                assert all(delivery.fresh for delivery in got)
                await queue.check()

    run(scenario())
