"""What only the queue on Redis Streams does, on a real server."""

import asyncio
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from chargegate.engines.redis import reader as module
from chargegate.engines.redis.connection import RedisServer
from chargegate.engines.redis.queue import RedisQueue
from chargegate.model import new_request_id
from chargegate.queues.base import Delivery, Message, Queue, QueueFull, QueueUnavailable
from chargegate.storage.unavailable import Unavailable
from ports import free_port
from scenario import run
from servers.server import Server

LEASE_MS = 4000

MakeMessage = Callable[..., Message]


class Place:
    """A server, the name of a queue there, and what the server itself says of that queue."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"q{uuid4().hex[:12]}"
        self.stream, self.ids = f"{{{self.name}}}:queue", f"{{{self.name}}}:queue:ids"
        self.dead = f"{{{self.name}}}:queue:dead"

    @asynccontextmanager
    async def open(
        self, consumer: str = "first", *, max_size: int = 1000, lease_ms: int = LEASE_MS, url: str = ""
    ) -> AsyncIterator[RedisQueue]:
        queue = await RedisQueue.open(
            url or self.server.url, max_size=max_size, consumer=consumer, lease_ms=lease_ms, name=self.name
        )
        try:
            yield queue
        finally:
            await queue.close()

    async def ask(self, *words: str | int) -> Any:
        client = RedisServer(self.server.url, timeout_s=5, at_once=1)
        try:
            return await client.command(*words)
        finally:
            await client.close()

    async def pending(self) -> dict[str, tuple[str, int]]:
        """Who holds each entry, and for how many ms it has been idle."""
        script = (
            "return redis.call('XPENDING', KEYS[1], 'workers', '-', '+', 1000)"  # raw, whatever redis-py makes of it
        )
        entries = await self.ask("EVAL", script, 1, self.stream)
        return {entry.decode(): (consumer.decode(), idle) for entry, consumer, idle, _ in entries}

    def killed(self, count: int) -> list[str]:
        """Let another process, consumer "first", take messages; kill it, and return what it took."""
        script = str(Path(__file__).parents[2] / "queues" / "conftest.py")
        command = [sys.executable, script, "hold", "redis", f"{self.server.url}#{self.name}", str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            taken = [child.stdout.readline().strip() for _ in range(count)]
            child.kill()
        assert all(taken)
        return taken


@pytest.fixture
def place(redis_server: Server) -> Place:
    return Place(redis_server)


async def put(queue: Queue, message: Message) -> None:
    """Put as a client does that tries again when the queue is unavailable."""
    while True:
        try:
            return await queue.put(message)
        except QueueUnavailable:
            await asyncio.sleep(0.05)


async def receive(queue: Queue, count: int) -> list[Delivery]:
    """Receive as the worker does, which tries again when the queue is unavailable."""
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        try:
            deliveries += await queue.receive(count - len(deliveries))
        except QueueUnavailable:
            await asyncio.sleep(0.05)
    return deliveries


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.message.request_id for delivery in deliveries]


async def receive_for_ever(queue: Queue) -> None:
    while True:
        await queue.receive(1)


def ids_of(messages: list[Message]) -> list[str]:
    return [message.request_id for message in messages]


def test_another_takes_over_from_the_dead_and_nobody_from_the_living(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open("living") as living, place.open("heir") as heir:
            held = make_message()
            await living.put(held)
            (delivery,) = await living.receive(1)
            for _ in range(3):
                await living.put(make_message())
            left = await asyncio.to_thread(place.killed, 3)
            taken = await receive(heir, 3)
            assert sorted(ids(taken)) == sorted(left)
            assert not any(each.fresh for each in taken)
            # Held for longer than those of the dead, and still where it was.
            assert (await place.pending())[delivery.handle][0] == "living"
            await living.ack(delivery)
            while await living.find(held.request_id):
                await asyncio.sleep(0.01)

    run(scenario())


def test_a_claim_that_was_lost_is_not_taken_back(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open("slow", lease_ms=400) as slow:
            await slow.put(make_message())
            (delivery,) = await slow.receive(1)
            await place.ask("XCLAIM", place.stream, "workers", "other", 0, delivery.handle)
            while slow._leases.held:  # what it does not hold it will not renew
                await asyncio.sleep(0.01)
            assert (await place.pending())[delivery.handle][0] == "other"

    run(scenario())


def test_a_restarted_consumer_takes_up_what_it_held(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open("filler") as filler:
            for _ in range(600):  # more than one page of them
                await filler.put(make_message())
        left = await asyncio.to_thread(place.killed, 600)
        async with place.open("first", lease_ms=600_000) as again:
            assert (await again.depth()).waiting == 600
            assert sorted(ids(await receive(again, 600))) == sorted(left)

    run(scenario())


def test_closing_frees_what_is_held_for_others(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open("leaving", lease_ms=600_000) as leaving:
            await leaving.put(make_message())
            (delivery,) = await leaving.receive(1)
        assert (await place.pending())[delivery.handle][1] >= 600_000

    run(scenario())


def test_acked_is_gone_from_the_stream_the_group_and_the_ids(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open() as queue:
            await asyncio.gather(*(queue.put(make_message()) for _ in range(50)))
            for delivery in await receive(queue, 50):
                await queue.ack(delivery)
        assert await place.ask("XLEN", place.stream) == 0
        assert await place.pending() == {}
        assert await place.ask("EXISTS", place.ids) == 0

    run(scenario())


def test_a_request_put_twice_is_found_until_both_are_acked(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open() as queue:
            message = make_message()
            await queue.put(message)
            await queue.put(message)
            first, second = await receive(queue, 2)
            await queue.ack(first)
            while await place.ask("XLEN", place.stream) > 1:
                await asyncio.sleep(0.01)
            assert await queue.find(message.request_id)
            await queue.ack(second)
            while await queue.find(message.request_id):
                await asyncio.sleep(0.01)

    run(scenario())


def test_several_putters_never_exceed_the_size(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open("a", max_size=25) as first, place.open("b", max_size=25) as second:
            puts = (queue.put(make_message()) for queue in (first, second) for _ in range(40))
            outcomes = await asyncio.gather(*puts, return_exceptions=True)
            assert outcomes.count(None) == 25
            assert sum(isinstance(outcome, QueueFull) for outcome in outcomes) == 55

    run(scenario())


def test_work_goes_on_after_the_server_was_emptied_under_a_waiting_receive(
    place: Place, make_message: MakeMessage
) -> None:
    async def scenario() -> None:
        async with place.open() as queue:
            await queue.put(make_message())
            await queue.receive(1)
            waiting = asyncio.ensure_future(queue.receive(1))
            await place.ask("DEL", place.stream, place.ids)
            while not await place.ask("EXISTS", place.stream):  # the receiver makes the group again
                await asyncio.sleep(0.01)
            message = make_message()
            await queue.put(message)
            assert ids(await waiting) == [message.request_id]
            assert (await queue.depth()).waiting == 0

    run(scenario())


@pytest.mark.parametrize("keeps_data", [True, False])
def test_it_heals_by_itself_after_a_restart(place: Place, make_message: MakeMessage, *, keeps_data: bool) -> None:
    async def scenario() -> None:
        async with place.open() as queue:
            messages = [make_message() for _ in range(3)]
            for message in messages:
                await queue.put(message)
            (held,) = await queue.receive(1)
            place.server.kill()
            if not keeps_data:
                place.server.wipe()
            async with asyncio.timeout(2):
                with pytest.raises(QueueUnavailable):
                    await queue.put(make_message())
                with pytest.raises(QueueUnavailable):
                    await queue.check()
            await queue.ack(held)
            place.server.start()
            later = make_message()
            await put(queue, later)
            expected = {later.request_id} | ({m.request_id for m in messages[1:]} if keeps_data else set())
            taken = await receive(queue, len(expected))
            assert set(ids(taken)) == expected
            for delivery in taken:
                await queue.ack(delivery)
            while await place.ask("XLEN", place.stream):
                await asyncio.sleep(0.01)
            await queue.check()

    run(scenario())


def test_what_is_held_over_a_restart_is_not_handed_out_again(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open(lease_ms=600_000) as queue:
            await queue.put(make_message())
            (held,) = await queue.receive(1)
            place.server.kill()
            place.server.start()
            for _ in range(2):  # by the second it has asked the server what it holds
                later = make_message()
                await put(queue, later)
                assert ids(await receive(queue, 1)) == [later.request_id]
            assert (await place.pending()).keys() > {held.handle}

    run(scenario())


def test_what_waited_before_a_consumer_came_may_have_been_handed_out(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open("putter") as putter, place.open("worker") as early:
            message = make_message()
            await putter.put(message)
            async with place.open("late") as late:
                (delivery,) = await late.receive(1)
                assert not delivery.fresh
            await putter.put(make_message())
            assert (await early.receive(1))[0].fresh

    run(scenario())


def test_what_was_waiting_before_a_restart_may_have_been_handed_out(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open() as queue:
            await queue.put(make_message())
            place.server.stop()
            place.server.start()
            (delivery,) = await receive(queue, 1)
            assert not delivery.fresh
            while not delivery.fresh:  # as soon as it knows where the new server begins
                await put(queue, make_message())
                (delivery,) = await receive(queue, 1)

    run(scenario())


def test_a_server_that_falls_silent_is_noticed(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        with place.server.proxied() as proxy:
            async with place.open(url=proxy.url) as queue:
                await queue.put(make_message())
                await queue.receive(1)
                proxy.drop()
                async with asyncio.timeout(2):
                    outcomes = await asyncio.gather(
                        *(queue.put(make_message()) for _ in range(600)), return_exceptions=True
                    )
                assert {type(outcome) for outcome in outcomes} == {QueueUnavailable}
                with pytest.raises(QueueUnavailable):
                    await queue.receive(1)
                proxy.heal()
                message = make_message()
                await put(queue, message)
                while message.request_id not in ids(await receive(queue, 1)):
                    pass  # those refused may have been stored all the same

    run(scenario())


def test_it_opens_without_its_server_and_waits_for_it(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        place.server.stop()
        async with place.open() as queue:
            with pytest.raises(QueueUnavailable):
                await queue.receive(1)
            place.server.start()
            message = make_message()
            await put(queue, message)
            assert ids(await receive(queue, 1)) == [message.request_id]

    run(scenario())


def test_a_server_that_takes_no_writes_fails_the_check(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open() as queue:
            await queue.check()
            await place.ask("CONFIG", "SET", "min-replicas-to-write", "1")
            try:
                with pytest.raises(QueueUnavailable, match="NOREPLICAS"):
                    await queue.check()
                with pytest.raises(QueueUnavailable, match="NOREPLICAS"):
                    await queue.put(make_message())
            finally:
                await place.ask("CONFIG", "SET", "min-replicas-to-write", "0")

    run(scenario())


SOUND = {"request_id": new_request_id(), "station_id": "s", "accepted_at": "1", "body": "sealed", "traceparent": ""}


@pytest.mark.parametrize(
    "fields",
    [
        {"greeting": "secret"},
        {name: value for name, value in SOUND.items() if name != "body"},
        SOUND | {"request_id": "secret\0"},
        SOUND | {"request_id": new_request_id() + "\n"},
        SOUND | {"station_id": "secret" * 1000},
        SOUND | {"accepted_at": "soon"},
        SOUND | {"accepted_at": str(2**63)},
        SOUND | {"accepted_at": "-1"},
        {f"secret-{number}": "" for number in range(5000)},
    ],
)
def test_an_entry_that_is_no_message_goes_to_the_dead_stream(
    place: Place, make_message: MakeMessage, logged: Callable[[], list[dict[str, Any]]], fields: dict[str, str]
) -> None:
    async def scenario() -> None:
        async with place.open() as queue:
            malformed = await place.ask("XADD", place.stream, "*", *itertools.chain(*fields.items()))
            message = make_message()
            await queue.put(message)
            await queue.depth()
            assert ids(await receive(queue, 1)) == [message.request_id]
            waiting = asyncio.ensure_future(queue.receive(1))
            while not await place.ask("EXISTS", place.dead):
                await asyncio.sleep(0.01)
            waiting.cancel()
            assert len(await place.pending()) == await place.ask("XLEN", place.stream) == 1
            ((_, kept),) = await place.ask("XRANGE", place.dead, "-", "+")
            assert kept == {k.encode(): v.encode() for k, v in list(fields.items())[:500]}
            assert malformed.decode() in [event.get("entry") for event in logged()]
            assert "secret" not in str(logged())

    run(scenario())


def test_the_dead_stream_is_bounded_and_what_is_gone_leaves_no_claim(
    place: Place, make_message: MakeMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DEAD_LETTERS_KEPT", 100)

    async def scenario() -> None:
        async with place.open("first", lease_ms=600_000) as queue:
            await queue.put(make_message())
            (gone,) = await queue.receive(1)
        await place.ask("XDEL", place.stream, gone.handle)
        fill = "for i = 1, 1000 do redis.call('XADD', KEYS[1], '*', 'number', i) end"
        await place.ask("EVAL", fill, 1, place.stream)
        async with place.open("first", lease_ms=600_000) as queue:
            message = make_message()
            await queue.put(message)
            assert ids(await receive(queue, 1)) == [message.request_id]
            waiting = asyncio.ensure_future(queue.receive(1))
            while len(await place.pending()) > 1:
                await asyncio.sleep(0.01)
            waiting.cancel()
            assert 100 <= await place.ask("XLEN", place.dead) < 300

    run(scenario())


def test_without_memory_nothing_is_taken_in_and_all_is_worked_off(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open() as queue:
            await place.ask("XADD", place.stream, "*", "greeting", "hello")
            messages = [make_message() for _ in range(3)]
            for message in messages:
                await queue.put(message)
            await place.ask("CONFIG", "SET", "maxmemory", "1")
            try:
                with pytest.raises(QueueUnavailable, match="memory"):
                    await queue.put(make_message())
                with pytest.raises(QueueUnavailable, match="memory"):
                    await queue.check()
                deliveries = await receive(queue, 3)
                assert ids(deliveries) == ids_of(messages)
                for delivery in deliveries:
                    await queue.ack(delivery)
                while await queue.find(messages[-1].request_id):
                    await asyncio.sleep(0.01)
            finally:
                await place.ask("CONFIG", "SET", "maxmemory", "0")
            await queue.check()
            await queue.put(make_message())

    run(scenario())


def test_a_server_that_is_no_master_now_is_unavailable_and_knows_of_nothing_less(
    place: Place, make_message: MakeMessage
) -> None:
    async def scenario() -> None:
        async with place.open(lease_ms=800) as queue:
            await queue.put(make_message())
            (held,) = await queue.receive(1)
            waiting = make_message()
            await queue.put(waiting)
            await place.ask("CONFIG", "SET", "replica-serve-stale-data", "no")
            await place.ask("REPLICAOF", "127.0.0.1", free_port())
            try:
                questions = (queue.put(make_message()), queue.check(), queue.depth())
                for question in (*questions, queue.find(waiting.request_id)):
                    with pytest.raises(QueueUnavailable):
                        await question
                with pytest.raises(Unavailable):
                    await queue._leases.renew([held.handle], idle_ms=0)
                with pytest.raises(QueueUnavailable):
                    await receive_for_ever(queue)
            finally:
                await place.ask("REPLICAOF", "NO", "ONE")
                await place.ask("CONFIG", "SET", "replica-serve-stale-data", "yes")
            assert list(queue._leases.held) == [held.handle]
            assert ids(await receive(queue, 1)) == [waiting.request_id]

    run(scenario())


def test_consumers_that_left_nothing_are_forgotten_in_time(
    place: Place, make_message: MakeMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with place.open("holds") as holds, place.open("idle") as idle:
            await holds.put(make_message())
            await holds.receive(1)
            await idle.put(make_message())
            await idle.ack(*await idle.receive(1))
        monkeypatch.setattr(module, "_DROP_CONSUMER_MS", -1)
        async with place.open("new", lease_ms=600_000):
            script = "return redis.call('XINFO', 'CONSUMERS', KEYS[1], 'workers')"
            consumers = await place.ask("EVAL", script, 1, place.stream)
            assert {consumer[1] for consumer in consumers} == {b"holds", b"new"}

    run(scenario())


def test_a_closed_queue_takes_and_gives_nothing(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.open() as queue:
            waiting = asyncio.ensure_future(queue.receive(1))
            await queue.depth()
            await queue.close()
            with pytest.raises(QueueUnavailable):
                await waiting
            with pytest.raises(QueueUnavailable):
                await queue.put(make_message())
            with pytest.raises(QueueUnavailable):
                await queue.receive(1)

    run(scenario())
