"""What only the queue on RabbitMQ does: limits that the server keeps, and connections that end in many ways."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aio_pika
import pytest

from chargegate.engines.rabbitmq import declaration
from chargegate.engines.rabbitmq.queue import RabbitQueue
from chargegate.keys import Keyring
from chargegate.model import ChargingRequest, new_request_id, now_ms
from chargegate.queues.base import Delivery, Message, Queue, QueueFull, QueueUnavailable
from chargegate.queues.envelope import examine, unwrap, wrap
from scenario import run
from servers.server import Server

MakeMessage = Callable[..., Message]


class Place:
    """A queue on the server that no other test uses."""

    def __init__(self, url: str) -> None:
        self.name = f"q{uuid4().hex[:12]}"
        self.url = url
        self.queue_url = f"{url}?queue={self.name}"

    @asynccontextmanager
    async def opened(self, url: str = "", max_size: int = 1000, **options: int) -> AsyncIterator[RabbitQueue]:
        queue = await RabbitQueue.open(f"{url or self.url}?queue={self.name}", max_size=max_size, **options)
        try:
            yield queue
        finally:
            await queue.close()

    @asynccontextmanager
    async def other_client(self) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
        connection = await aio_pika.connect(self.url)
        async with connection, connection.channel() as channel:
            yield channel

    async def waiting(self, name: str) -> int:
        async with self.other_client() as channel:
            return (await channel.declare_queue(name, passive=True)).declaration_result.message_count or 0


@pytest.fixture
def place(rabbitmq_server: Server) -> Place:
    return Place(rabbitmq_server.url)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.02)


async def put_when_possible(queue: Queue, message: Message) -> None:
    async def put() -> bool:
        return await outcome_of(queue.put(message)) is None

    await until(put)


async def outcome_of(doing: Awaitable[None]) -> BaseException | None:
    (outcome,) = await asyncio.gather(doing, return_exceptions=True)
    return outcome


async def refused(queue: Queue, make_message: MakeMessage) -> None:
    """Put until a put fails."""

    async def fails() -> bool:
        return isinstance(await outcome_of(queue.put(make_message())), QueueUnavailable)

    await until(fails)


async def receive(queue: Queue, count: int) -> list[Delivery]:
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        deliveries += await queue.receive(count - len(deliveries))
    return deliveries


def ids(items: list[Delivery] | list[Message]) -> set[str]:
    return {item.message.request_id if isinstance(item, Delivery) else item.request_id for item in items}


def test_what_came_back_too_often_is_a_dead_letter(
    place: Place, make_message: MakeMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declaration, "DELIVERY_LIMIT", 2)

    async def scenario() -> None:
        message = make_message()
        for attempt in range(3):
            async with place.opened() as queue:
                if not attempt:
                    await queue.put(message)
                (delivery,) = await queue.receive(1)
                assert delivery.message == message
                assert delivery.fresh == (attempt == 0)

        async def dead() -> bool:
            return await place.waiting(f"{place.name}.dead") == 1

        await until(dead)
        assert await place.waiting(place.name) == 0

    run(scenario())


@pytest.mark.parametrize("headers", [{}, {"schema": 1}, {"schema": 99, "station_id": "s", "accepted_at": 1}])
def test_what_is_no_message_is_a_dead_letter(place: Place, make_message: MakeMessage, headers: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with place.opened() as queue, place.other_client() as channel:
            foreign = aio_pika.Message(b"?", headers=headers, correlation_id="someone")
            await channel.default_exchange.publish(foreign, place.name)
            message = make_message()
            await queue.put(message)
            assert ids(await queue.receive(10)) == {message.request_id}

            async def dead() -> bool:
                return await place.waiting(f"{place.name}.dead") == 1

            await until(dead)

    run(scenario())


def test_what_can_be_parsed_and_breaks_the_rules_is_handed_out_for_the_worker_to_refuse(place: Place) -> None:
    keyring = Keyring([os.urandom(32)], os.urandom(32))
    broken = wrap(keyring, ChargingRequest(new_request_id(), "no station", "short", "ftp://nobody", now_ms()))

    async def scenario() -> None:
        async with place.opened() as queue, place.other_client() as channel:
            headers: dict[str, Any] = {"schema": 1, "station_id": broken.station_id, "accepted_at": broken.accepted_at}
            foreign = aio_pika.Message(broken.body, headers=headers, correlation_id=broken.request_id)
            await channel.default_exchange.publish(foreign, place.name)
            (delivery,) = await queue.receive(10)
            request, _ = unwrap(keyring, delivery.message)
            assert examine(request)[1].keys() == {"station_id", "driver_token", "callback_url"}
        assert await place.waiting(f"{place.name}.dead") == 0

    run(scenario())


def test_trace_and_station_are_headers(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        plain = make_message()
        message = Message(plain.request_id, plain.station_id, 1, b"sealed", "00-" + "a" * 32 + "-" + "b" * 16 + "-01")
        async with place.opened() as queue, place.other_client() as channel:
            await queue.put(message)
            raw = await (await channel.get_queue(place.name)).get()
            assert raw.headers["traceparent"] == message.traceparent
            assert raw.headers["station_id"] == message.station_id
            assert raw.headers["schema"] == 1
            assert raw.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
            await raw.reject(requeue=True)
            (delivery,) = await queue.receive(1)
            assert delivery.message == message

    run(scenario())


def test_a_queue_that_vanished_is_refused_and_declared_again(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.opened() as queue, place.other_client() as channel:
            receiving = asyncio.ensure_future(queue.receive(10))
            await queue.put(lost := make_message())
            assert ids(await receiving) == {lost.request_id}
            await channel.queue_delete(place.name)
            await refused(queue, make_message)
            await put_when_possible(queue, message := make_message())
            assert message.request_id in ids(await queue.receive(10))

    run(scenario())


def test_the_server_refuses_when_it_is_full(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.opened(max_size=3), place.opened(max_size=1000) as other:
            outcomes = [await outcome_of(other.put(make_message())) for _ in range(20)]
            assert outcomes[:3] == [None] * 3
            assert isinstance(outcomes[-1], QueueFull)
            await other.check()

    run(scenario())


def test_several_processes_share_one_limit(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.opened(max_size=5) as first, place.opened(max_size=5) as second:
            for _ in range(5):
                await first.put(make_message())

            async def full() -> bool:
                return isinstance(await outcome_of(second.put(make_message())), QueueFull)

            await until(full)
            await receive(first, 5)

            async def room_again() -> bool:
                return await outcome_of(second.put(make_message())) is None

            await until(room_again)

    run(scenario())


def test_what_is_parked_does_not_stop_the_rest(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        put = [make_message() for _ in range(12)]
        async with place.opened(prefetch=2) as queue:
            for message in put:
                await queue.put(message)
            held = await receive(queue, 12)
            assert ids(held) == ids(put)
            for delivery in held[::2]:
                await queue.ack(delivery)
        async with place.opened() as queue:
            assert ids(await receive(queue, 6)) == ids(held[1::2])

    run(scenario())


def test_a_server_that_keeps_its_messages_to_itself_is_asked_anew(
    place: Place, make_message: MakeMessage, logged: Callable[[], list[dict[str, Any]]]
) -> None:
    async def scenario() -> None:
        async with place.opened(prefetch=2) as queue:
            held = [make_message(), make_message()]
            for message in held:
                await queue.put(message)
            await receive(queue, 2)
            # As if both had been acked and the acks been lost: the server waits for them, and we for the server.
            assert queue._consumer is not None
            queue._consumer._unacked = 0
            await queue.put(message := make_message())
            assert ids(await receive(queue, 3)) == ids([*held, message])

    run(scenario())
    assert any("to itself" in line.get("why", "") for line in logged())


def test_acks_are_sent_before_it_closes(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.opened() as queue:
            await asyncio.gather(*(queue.put(make_message()) for _ in range(200)))
            for delivery in await receive(queue, 200):
                await queue.ack(delivery)
        assert await place.waiting(place.name) == 0

    run(scenario())


def test_a_second_ack_touches_nothing(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.opened() as queue:
            for _ in range(3):
                await queue.put(make_message())
            first, second, third = await receive(queue, 3)
            for delivery in (second, second, third):
                await queue.ack(delivery)
            await queue.depth()
            await queue.ack(third)
        async with place.opened() as queue:
            assert ids(await queue.receive(10)) == ids([first])

    run(scenario())


def test_an_ack_after_the_connection_was_lost_is_no_error(
    rabbitmq_server: Server, place: Place, make_message: MakeMessage
) -> None:
    async def scenario() -> None:
        with rabbitmq_server.proxied() as proxy:
            async with place.opened(proxy.url) as queue:
                await queue.put(message := make_message())
                (delivery,) = await queue.receive(1)
                proxy.reset()
                await refused(queue, make_message)
                await queue.ack(delivery)
                proxy.heal()
                (again,) = await queue.receive(1)
                assert again.message == message
                assert not again.fresh
                await queue.ack(delivery)
                await queue.ack(again)
        assert await place.waiting(place.name) == 0

    run(scenario())


def test_a_lost_confirm_is_not_a_success(rabbitmq_server: Server, place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        with rabbitmq_server.proxied() as proxy:
            async with place.opened(proxy.url) as queue:
                await queue.put(make_message())
                proxy.drop()
                outcomes = await asyncio.gather(*(queue.put(make_message()) for _ in range(50)), return_exceptions=True)
                assert all(isinstance(outcome, QueueUnavailable) for outcome in outcomes)
                with pytest.raises(QueueUnavailable):
                    await queue.check()
                proxy.heal()
                await put_when_possible(queue, message := make_message())
                while message.request_id not in ids(await queue.receive(100)):
                    pass

    run(scenario())


def test_a_silent_connection_is_noticed_without_a_put(
    rabbitmq_server: Server, place: Place, make_message: MakeMessage, logged: Callable[[], list[dict[str, Any]]]
) -> None:
    async def scenario() -> None:
        with rabbitmq_server.proxied() as proxy:
            async with place.opened(proxy.url) as queue:
                await queue.put(make_message())
                await queue.receive(1)
                proxy.drop()

                async def noticed() -> bool:
                    return any(line.get("to") == "receive" and "no sign" in line.get("why", "") for line in logged())

                await until(noticed)
                async with place.opened() as direct:
                    await direct.put(message := make_message())
                proxy.heal()
                while message.request_id not in ids(await queue.receive(10)):
                    pass

    run(scenario())


def test_it_receives_again_after_its_connections_were_closed(
    rabbitmq_server: Server, place: Place, make_message: MakeMessage
) -> None:
    async def scenario() -> None:
        with rabbitmq_server.proxied() as proxy:
            async with place.opened(proxy.url) as queue:
                for _ in range(5):
                    receiving = asyncio.ensure_future(queue.receive(10))
                    proxy.reset()
                    proxy.heal()
                    await put_when_possible(queue, message := make_message())
                    got = await receiving
                    while message.request_id not in ids(got):  # others' acks may have been lost
                        got += await queue.receive(10)
                    for delivery in got:
                        await queue.ack(delivery)

    run(scenario())


def test_it_may_be_opened_before_its_server_is_there(
    rabbitmq_server: Server, place: Place, make_message: MakeMessage
) -> None:
    async def scenario() -> None:
        with rabbitmq_server.proxied() as proxy:
            proxy.reset()
            async with place.opened(proxy.url) as queue:
                with pytest.raises(QueueUnavailable):
                    await queue.put(make_message())
                proxy.heal()
                await put_when_possible(queue, make_message())

    run(scenario())


def test_a_cancelled_question_breaks_nothing(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.opened() as queue:
            channel = queue._putting.channel  # the same afterwards: no other way to see that it was not rebuilt
            for question in (queue.depth, queue.check, lambda: queue.put(make_message())):
                asking = asyncio.ensure_future(question())
                await asyncio.sleep(0)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
            await queue.put(make_message())
            assert queue._putting.channel is channel

    run(scenario())


def test_another_kind_of_queue_by_that_name_is_refused(place: Place, make_message: MakeMessage) -> None:
    async def scenario() -> None:
        async with place.other_client() as channel:
            await channel.declare_queue(place.name, durable=True)
            async with place.opened() as queue:
                with pytest.raises(QueueUnavailable):
                    await queue.put(make_message())

    run(scenario())


@pytest.mark.parametrize("url", ["amqp://", "amqp://host/?queue="])
def test_a_url_that_names_nothing_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="host"):
        run(_open(url))


async def _open(url: str) -> None:
    await RabbitQueue.open(url, max_size=1)


def test_no_password_is_logged(
    rabbitmq_server: Server, place: Place, logged: Callable[[], list[dict[str, Any]]]
) -> None:
    async def scenario() -> None:
        async with place.opened(place.url.replace("guest@", "hidden-word@")) as queue:
            with pytest.raises(QueueUnavailable):
                await queue.check()

    run(scenario())
    assert logged()
    assert "hidden-word" not in str(logged())
