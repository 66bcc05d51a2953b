"""One suite for every queue. None skips a case: one for what a backend claims is run by those that claim it, and
beside it stands one for what the others promise instead."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from chargegate.model import new_request_id, now_ms
from chargegate.queues.base import Capabilities, Delivery, Message, Queue, QueueFull, QueueUnavailable
from scenario import run

LIMIT_S = 20
OUTAGE_LIMIT_S = 120  # with the time that the server takes
REFUSED_S = 2 + 1  # what is promised, and what a busy machine may add
HEALED_S = 40  # with what a busy machine adds, while a client waits longer and longer between its attempts

Scenario = Callable[[Queue], Coroutine[Any, Any, None]]
MakeMessage = Callable[..., Message]


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def open(self) -> Callable[[str, int], AbstractAsyncContextManager[Queue]]: ...


class Bench:
    """A backend at a place of its own. Each ``run`` opens it anew."""

    def __init__(self, backend: Backend, place: str) -> None:
        self.backend = backend
        self.place = place

    def run(self, scenario: Scenario, max_size: int = 1000, limit_s: float = LIMIT_S) -> None:
        async def main() -> None:
            async with self.backend.open(self.place, max_size) as queue:
                await scenario(queue)

        run(main(), limit_s)

    def killed(self, job: str, count: int) -> list[str]:
        """Let another process use the queue, kill it without warning, and return the ids that it named."""
        script = str(Path(__file__).with_name("conftest.py"))
        command = [sys.executable, script, job, self.backend.name, self.place, str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            ids = [child.stdout.readline().strip() for _ in range(count)]
            child.kill()
        assert all(ids)
        return ids


@pytest.fixture
def bench(backend: Backend, place: str) -> Bench:
    return Bench(backend, place)


async def receive(queue: Queue, count: int) -> list[Delivery]:
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        deliveries += await queue.receive(count - len(deliveries))
    return deliveries


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.message.request_id for delivery in deliveries]


def test_it_declares_what_the_suite_assumes(bench: Bench) -> None:
    async def scenario(queue: Queue) -> None:
        assert queue.capabilities == bench.backend.capabilities

    bench.run(scenario)


def test_a_message_comes_out_as_it_went_in(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        message = make_message(body=bytes(range(256)))
        await queue.put(message)
        (delivery,) = await queue.receive(10)
        assert delivery.message == message
        assert delivery.fresh

    bench.run(scenario)


def test_receive_waits_for_a_message(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        waiting = asyncio.ensure_future(queue.receive(1))
        await queue.depth()
        assert not waiting.done()
        message = make_message()
        await queue.put(message)
        assert ids(await waiting) == [message.request_id]

    bench.run(scenario)


def test_receive_takes_no_more_than_its_limit(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        put = [make_message() for _ in range(7)]
        for message in put:
            await queue.put(message)
        got: list[str] = []
        while len(got) < 7:
            batch = ids(await queue.receive(3))
            assert 1 <= len(batch) <= 3
            got += batch
        assert sorted(got) == sorted(message.request_id for message in put)

    bench.run(scenario)


def test_a_cancelled_receive_takes_nothing_away(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        waiting = asyncio.ensure_future(queue.receive(1))
        await queue.depth()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        message = make_message()
        await queue.put(message)
        assert ids(await queue.receive(1)) == [message.request_id]

    bench.run(scenario)


@pytest.mark.declares(durable=True)
def test_what_was_put_survives_a_reopen(bench: Bench, make_message: MakeMessage) -> None:
    put = [make_message() for _ in range(5)]

    async def fill(queue: Queue) -> None:
        await asyncio.gather(*map(queue.put, put))

    async def look(queue: Queue) -> None:
        assert (await queue.depth()).waiting == 5
        got = await receive(queue, 5)
        assert sorted(ids(got)) == sorted(message.request_id for message in put)
        assert {delivery.message.request_id: delivery.message for delivery in got} == {m.request_id: m for m in put}

    bench.run(fill)
    bench.run(look)


@pytest.mark.declares(durable=False)
def test_what_does_not_survive_is_not_counted_either(bench: Bench, make_message: MakeMessage) -> None:
    async def fill(queue: Queue) -> None:
        await queue.put(make_message())

    async def look(queue: Queue) -> None:
        assert (await queue.depth()).waiting == 0
        message = make_message()
        await queue.put(message)
        assert ids(await queue.receive(10)) == [message.request_id]

    bench.run(fill)
    bench.run(look)


@pytest.mark.declares(durable=True)
def test_what_was_put_survives_the_putter_being_killed(bench: Bench) -> None:
    put = bench.killed("put", 20)

    async def look(queue: Queue) -> None:
        assert sorted(ids(await receive(queue, 20))) == sorted(put)

    bench.run(look)


@pytest.mark.declares(durable=True)
def test_unacked_comes_back_after_its_consumer_was_killed(bench: Bench, make_message: MakeMessage) -> None:
    put = [make_message() for _ in range(5)]

    async def fill(queue: Queue) -> None:
        for message in put:
            await queue.put(message)

    async def look(queue: Queue) -> None:
        got = await receive(queue, 5)
        assert sorted(ids(got)) == sorted(message.request_id for message in put)
        assert not any(delivery.fresh for delivery in got if delivery.message.request_id in held)

    bench.run(fill)
    held = bench.killed("hold", 3)
    bench.run(look)


@pytest.mark.declares(durable=True)
def test_acks_out_of_order_never_skip_an_unacked_one(bench: Bench, make_message: MakeMessage) -> None:
    put = [make_message() for _ in range(6)]
    kept = {put[0].request_id, put[2].request_id}

    async def ack_some(queue: Queue) -> None:
        for message in put:
            await queue.put(message)
        for delivery in reversed(await receive(queue, 6)):
            if delivery.message.request_id not in kept:
                await queue.ack(delivery)

    async def look(queue: Queue) -> None:
        assert (await queue.depth()).waiting == 2
        assert set(ids(await receive(queue, 2))) == kept

    bench.run(ack_some)
    bench.run(look)


@pytest.mark.declares(find=True)
def test_an_ack_touches_no_other_delivery(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        for _ in range(4):
            await queue.put(make_message())
        first, second, third, fourth = await receive(queue, 4)
        await queue.ack(fourth)
        await queue.ack(second)
        while await queue.find(second.message.request_id) or await queue.find(fourth.message.request_id):
            await asyncio.sleep(0.01)
        for delivery in (first, third):
            found = await queue.find(delivery.message.request_id)
            assert found is not None
            assert found.taken

    bench.run(scenario)


def test_two_consumers_never_share_a_message(bench: Bench, make_message: MakeMessage) -> None:
    total = 200

    async def scenario(queue: Queue) -> None:
        put = [make_message() for _ in range(total)]
        got: list[str] = []

        async def consume(consumer: Queue) -> None:
            while len(got) < total:
                deliveries = await consumer.receive(3)
                got.extend(ids(deliveries))
                for delivery in deliveries:
                    await consumer.ack(delivery)

        async def consume_all(other: Queue) -> None:
            consumers = [asyncio.ensure_future(consume(each)) for each in (queue, other, queue, other)]
            await asyncio.gather(*map(queue.put, put))
            await asyncio.wait(consumers, return_when=asyncio.FIRST_COMPLETED)
            for consumer in consumers:
                consumer.cancel()
            await asyncio.gather(*consumers, return_exceptions=True)

        if bench.backend.capabilities.shared:
            async with bench.backend.open(bench.place, 1000) as other:
                await consume_all(other)
        else:
            await consume_all(queue)
        assert sorted(got) == sorted(message.request_id for message in put)

    bench.run(scenario)


def test_full_is_refused_and_not_blocked(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        for _ in range(3):
            await queue.put(make_message())
        with pytest.raises(QueueFull):
            await queue.put(make_message())
        assert (await queue.depth()).waiting == 3
        await receive(queue, 1)
        await queue.put(make_message())
        with pytest.raises(QueueFull):
            await queue.put(make_message())

    bench.run(scenario, max_size=3)


def test_a_put_without_a_coroutine_stores_and_says_so(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        told: asyncio.Queue[Exception | None] = asyncio.Queue()
        messages = [make_message() for _ in range(3)]
        for message in messages:
            queue.put_then(message, told.put_nowait)
        assert [await told.get() for _ in messages] == [None] * 3
        queue.put_then(make_message(), told.put_nowait)
        assert isinstance(await told.get(), QueueFull)
        assert sorted(ids(await receive(queue, 3))) == sorted(message.request_id for message in messages)

    bench.run(scenario, max_size=3)


def test_puts_at_once_never_exceed_the_size(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        outcomes = await asyncio.gather(*(queue.put(make_message()) for _ in range(50)), return_exceptions=True)
        assert outcomes.count(None) == 10
        assert sum(isinstance(outcome, QueueFull) for outcome in outcomes) == 40
        assert (await queue.depth()).waiting == 10

    bench.run(scenario, max_size=10)


@pytest.mark.declares(find=True)
def test_find_tells_where_a_message_is(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        first, second = make_message(accepted_at=1_000), make_message(accepted_at=2_000)
        assert await queue.find(first.request_id) is None
        await queue.put(first)
        await queue.put(second)
        for message in (first, second):
            waiting = await queue.find(message.request_id)
            assert waiting is not None
            assert (waiting.station_id, waiting.accepted_at) == (message.station_id, message.accepted_at)
            assert waiting.body == message.body
            assert not waiting.taken
        (delivery,) = await queue.receive(1)
        other = ({first.request_id, second.request_id} - {delivery.message.request_id}).pop()
        taken, still = await queue.find(delivery.message.request_id), await queue.find(other)
        assert taken is not None
        assert taken.taken
        assert taken.body == delivery.message.body
        assert still is not None
        assert not still.taken
        assert await queue.find(new_request_id()) is None

    bench.run(scenario)


@pytest.mark.declares(find=True)
def test_what_is_not_acked_is_listed_newest_first(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        assert await queue.unacked(10, None) == []
        ids = sorted(new_request_id() for _ in range(7))
        messages = [
            msgspec.structs.replace(make_message(accepted_at=number), request_id=each)
            for number, each in enumerate(ids)
        ]
        for message in messages:
            await queue.put(message)
        taken = {delivery.message.request_id for delivery in await queue.receive(2)}
        after, found = None, []
        while page := await queue.unacked(3, after):
            assert len(page) <= 3
            found += page
            after = page[-1].place
        assert [one.request_id for one in found] == ids[::-1]
        by_id = {message.request_id: message for message in messages}
        for one in found:
            message = by_id[one.request_id]
            assert (one.waiting.station_id, one.waiting.accepted_at) == (message.station_id, message.accepted_at)
            assert one.waiting.body == message.body
        assert {one.request_id for one in found if one.waiting.taken} == taken
        for place in ("", "0", "nonsense", "~", "\U0001f50c", "9" * 40 + "-1"):
            assert len(await queue.unacked(3, place)) <= 3

    bench.run(scenario)


@pytest.mark.declares(find=True)
def test_what_is_acked_is_listed_no_more(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        first, second = make_message(), make_message()
        for message in (first, second):
            await queue.put(message)
        (delivery,) = await queue.receive(1)
        await queue.ack(delivery)
        rest = {first.request_id, second.request_id} - {delivery.message.request_id}
        while {one.request_id for one in await queue.unacked(10, None)} != rest:
            await asyncio.sleep(0.02)

    bench.run(scenario)


@pytest.mark.declares(find=False)
def test_what_cannot_find_lists_nothing(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        await queue.put(make_message())
        assert await queue.unacked(10, None) == []

    bench.run(scenario)


@pytest.mark.declares(find=False)
def test_what_cannot_find_says_nothing_of_any_message(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        message = make_message()
        await queue.put(message)
        assert await queue.find(message.request_id) is None
        (delivery,) = await queue.receive(1)
        assert await queue.find(message.request_id) is None
        await queue.ack(delivery)
        assert await queue.find(message.request_id) is None

    bench.run(scenario)


def test_depth_counts_what_nobody_took_and_how_long_it_waited(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        empty = await queue.depth()
        assert (empty.waiting, empty.oldest_age_ms) == (0, 0)
        start = now_ms() - 60_000
        for _ in range(3):
            await queue.put(make_message(accepted_at=start))
        depth = await queue.depth()
        assert depth.waiting == 3
        assert 60_000 <= depth.oldest_age_ms <= now_ms() - start
        await receive(queue, 2)
        assert (await queue.depth()).waiting == 1
        await receive(queue, 1)
        left = await queue.depth()
        assert (left.waiting, left.oldest_age_ms) == (0, 0)

    bench.run(scenario)


def test_a_clock_set_back_makes_no_negative_age(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        await queue.put(make_message(accepted_at=now_ms() + 60_000))
        assert (await queue.depth()).oldest_age_ms == 0

    bench.run(scenario)


def test_check_passes_while_it_can_store(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        await queue.check()
        await queue.put(make_message())
        await queue.check()

    bench.run(scenario)


def test_close_twice(bench: Bench, make_message: MakeMessage) -> None:
    async def scenario(queue: Queue) -> None:
        await queue.put(make_message())
        await queue.close()
        await queue.close()

    bench.run(scenario)


async def until(done: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """As often as it is refused."""
    while True:
        try:
            await done()
        except QueueUnavailable:
            await asyncio.sleep(0.05)
        else:
            return


async def refused(doing: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(REFUSED_S):
        with pytest.raises(QueueUnavailable):
            await doing


def outage(begin: Callable[[], None], end: Callable[[], None], make_message: MakeMessage, *, lost: bool) -> Scenario:
    """Messages from before it are taken, one of them waits; during it nothing is; then all goes on."""
    before = [make_message() for _ in range(4)]
    meanwhile, after = make_message(), make_message()
    known = {message.request_id for message in [*before, meanwhile, after]}

    async def scenario(queue: Queue) -> None:
        for message in before:
            await queue.put(message)
        held = await receive(queue, 3)
        got = {delivery.message.request_id: delivery for delivery in held}
        again: set[str] = set()

        async def take() -> None:
            for delivery in await queue.receive(10):
                request_id = delivery.message.request_id
                assert not (delivery.fresh and request_id in got)
                got[request_id] = delivery
                again.add(request_id)

        await asyncio.to_thread(begin)
        await refused(queue.check())
        await refused(queue.put(meanwhile))
        await refused(queue.check())
        await asyncio.to_thread(end)
        async with asyncio.timeout(HEALED_S):
            await until(lambda: queue.put(after))
            await until(queue.check)
            while after.request_id not in again:
                await until(take)
        while not (lost or got.keys() >= known - {meanwhile.request_id}):
            await until(take)
        assert got.keys() <= known  # the one that was refused may have arrived
        for delivery in [*held, *got.values()]:
            await queue.ack(delivery)

    return scenario


@pytest.mark.declares(shared=True)
@pytest.mark.parametrize("how", ["stop", "kill", "wipe"])
def test_while_its_server_is_away_it_refuses_and_then_it_heals_by_itself(
    bench: Bench, server: Any, make_message: MakeMessage, how: str
) -> None:
    begin = getattr(server, how)
    bench.run(outage(begin, server.start, make_message, lost=how == "wipe"), limit_s=OUTAGE_LIMIT_S)


@pytest.mark.declares(shared=True)
@pytest.mark.parametrize("how", ["drop", "reset"])
def test_while_the_network_is_cut_it_refuses_and_then_it_heals_by_itself(
    bench: Bench, server: Any, make_message: MakeMessage, how: str
) -> None:
    with server.proxied() as proxy:
        bench.place = f"{proxy.url}#{bench.place.partition('#')[2]}"
        bench.run(outage(getattr(proxy, how), proxy.heal, make_message, lost=False), limit_s=OUTAGE_LIMIT_S)
