"""What only the queue on Kafka does: partitions that move, offsets that are committed only in a row, and a broker that
goes away, with and without its data.

Run as a script, this file is a consumer that acks every other message and is then killed: ``test_kafka.py URL COUNT``.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import uvloop
from confluent_kafka import Consumer, ConsumerGroupState, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from chargegate.engines.kafka import KafkaQueue, messages_from
from chargegate.engines.kafka import consumer as consumer_module
from chargegate.engines.kafka.address import KafkaAddress, parse
from chargegate.engines.kafka.consumer import BUFFER
from chargegate.engines.kafka.topic import Topic
from chargegate.keys import Keyring
from chargegate.model import ChargingRequest, new_request_id, now_ms
from chargegate.queues.base import Delivery, Message, QueueUnavailable
from chargegate.queues.envelope import examine, unwrap, wrap
from scenario import run
from servers.proxy import Proxy
from servers.server import Server

LEASE_MS = 10_000
SCHEMA = [("schema", b"1")]

MakeMessage = Callable[..., Message]


@pytest.fixture
def url(kafka_server: Server) -> str:
    """A topic of the test's own; whoever opens it first makes it."""
    return f"{kafka_server.url}/t{uuid4().hex[:12]}?partitions=4"


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[KafkaQueue]:
    queue = await KafkaQueue.open(url, **{"max_size": 100_000, "lease_ms": LEASE_MS} | options)
    try:
        yield queue
    finally:
        await queue.close()


def messages(count: int) -> list[Message]:
    """Messages as from many stations, so that every partition has some."""
    return [Message(new_request_id(), str(uuid4()), now_ms(), str(number).encode()) for number in range(count)]


def ids(items: list[Message] | list[Delivery]) -> list[str]:
    return [item.request_id if isinstance(item, Message) else item.message.request_id for item in items]


async def receive(queue: KafkaQueue, count: int, limit: int = 64) -> list[Delivery]:
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        deliveries += await queue.receive(min(limit, count - len(deliveries)))
    return deliveries


async def eventually(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.05)


async def committed_waiting(url: str) -> int:
    """How many messages would come to a consumer that starts now, as the broker has it."""
    topic = Topic(parse(url))
    measured = await topic.measure()
    await topic.close()
    return sum(measured.done[number].waiting(end) for number, end in measured.ends.items())


async def stored(queue: KafkaQueue, message: Message) -> None:
    """Put a message again until the broker takes it."""
    while True:
        try:
            return await queue.put(message)
        except QueueUnavailable:
            await asyncio.sleep(0.05)


# The URL


def test_the_url_names_brokers_topic_group_and_any_option_of_the_library() -> None:
    address = parse("kafka://a:9092,b:9093/my.topic?group=g&create=1&partitions=3&session.timeout.ms=7000&sasl_oauth=x")
    assert address.options["bootstrap.servers"] == "a:9092,b:9093"
    assert (address.topic, address.dead_topic, address.group) == ("my.topic", "my.topic.dead", "g")
    assert (address.create, address.partitions, address.replication) == (True, 3, -1)
    assert address.options["session.timeout.ms"] == "7000"
    assert address.options["sasl.oauth"] == "x"
    plain = parse("kafka://a:9092")
    assert (plain.topic, plain.group, plain.create) == ("charging-requests", "charging-requests", True)
    assert not parse("kafka://a:9092?create=0").create


def test_a_user_goes_over_tls_and_the_password_is_shown_nowhere() -> None:
    address = parse("kafka://ann:p%40ss:word@a:9092/t?sasl_mechanism=PLAIN")
    assert address.options["sasl.username"] == "ann"
    assert address.options["sasl.password"] == "p@ss:word"
    assert address.options["security.protocol"] == "sasl_ssl"
    assert "p@ss" not in repr(address)
    open_line = parse("kafka://ann:secret@a:9092/t?sasl_mechanism=PLAIN&security_protocol=sasl_plaintext")
    assert open_line.options["security.protocol"] == "sasl_plaintext"


@pytest.mark.parametrize(
    "url",
    [
        "kafka:///topic",
        "redis://a:1/t",
        "kafka://a:1/t?partitions=many",
        "kafka://a:1/t?create=yes",
        "kafka://ann:secret@a:9092/t",
    ],
)
def test_a_wrong_url_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|needs") as caught:
        parse(url)
    assert "secret" not in str(caught.value)


def test_an_option_that_the_library_refuses_is_a_wrong_url() -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match=r"no\.such\.option"):
            await KafkaQueue.open("kafka://127.0.0.1:9/t?no.such.option=1", 10)

    run(scenario())


# Topics and records


def test_a_url_that_names_only_brokers_is_enough(kafka_server: Server) -> None:
    async def scenario() -> None:
        async with opened(kafka_server.url) as queue:
            await queue.check()

    run(scenario())
    topics = AdminClient(parse(kafka_server.url).options).list_topics(timeout=10).topics
    assert len(topics["charging-requests"].partitions) == 12
    assert len(topics["charging-requests.dead"].partitions) == 1


def test_a_missing_topic_is_told_by_its_name_and_not_made_if_so_asked(kafka_server: Server) -> None:
    async def scenario() -> None:
        for _ in range(2):
            with pytest.raises(QueueUnavailable, match=r"nobody-made-this and nobody-made-this\.dead.*create=0"):
                await KafkaQueue.open(f"{kafka_server.url}/nobody-made-this?create=0", 10)

    run(scenario())


def test_the_topic_is_made_as_asked_and_found_by_the_next(url: str) -> None:
    async def scenario() -> None:
        for again in (url, url, url.replace("partitions=4", "create=0")):
            async with opened(again) as queue:
                await queue.check()

    run(scenario())
    topics = AdminClient(parse(url).options).list_topics(timeout=10).topics
    assert len(topics[parse(url).topic].partitions) == 4
    assert len(topics[parse(url).dead_topic].partitions) == 1


def raw(address: KafkaAddress, topic: str, count: int) -> list[Any]:
    """The records of a topic, as any client sees them."""
    reader = Consumer(address.options | {"group.id": "onlooker", "auto.offset.reset": "earliest"})
    numbers = reader.list_topics(topic, timeout=10).topics[topic].partitions
    reader.assign([TopicPartition(topic, number, 0) for number in numbers])
    records: list[Any] = []
    deadline = time.monotonic() + 20
    while len(records) < count and time.monotonic() < deadline:
        records += [record for record in reader.consume(count, 0.2) if record.error() is None]
    reader.close()
    return records


def test_records_are_keyed_by_station_in_lower_case_and_carry_schema_and_trace(url: str) -> None:
    station = "123E4567-E89B-12D3-A456-426614174000"
    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    put = [Message(new_request_id(), spelled, now_ms(), b"sealed", trace) for spelled in (station, station.lower())]

    async def scenario() -> None:
        async with opened(url) as queue:
            for message in put:
                await queue.put(message)
            got = await receive(queue, 2)
            assert [delivery.message for delivery in got] == put

    run(scenario())
    records = raw(parse(url), parse(url).topic, 2)
    assert [record.key() for record in records] == [station.lower().encode()] * 2
    assert len({record.partition() for record in records}) == 1
    assert dict(records[0].headers()) == {"schema": b"1", "traceparent": trace.encode()}
    assert records[0].timestamp()[1] == put[0].accepted_at


@pytest.mark.parametrize(
    ("value", "headers"),
    [(b"driver-token-0123456789~A", None), (b"\xc1", SCHEMA), (None, SCHEMA), (b"x", [("schema", b"2")])],
)
def test_what_cannot_be_parsed_goes_to_the_dead_letter_topic_and_holds_nothing_up(
    url: str, value: bytes | None, headers: list[tuple[str, bytes]] | None, logged: Callable[[], list[dict[str, Any]]]
) -> None:
    address = parse(url)

    async def scenario() -> None:
        async with opened(url) as queue:
            foreign = Producer(address.options)
            foreign.produce(address.topic, value, b"key", partition=0, headers=headers)
            assert foreign.flush(10) == 0
            good = messages(20)
            await asyncio.gather(*map(queue.put, good))
            got = await receive(queue, 20)
            assert sorted(ids(got)) == sorted(ids(good))
            for delivery in got:
                await queue.ack(delivery)
            await eventually(lambda: nothing_left(url))

    run(scenario())
    (dead,) = raw(address, address.dead_topic, 1)
    assert (dead.value(), dead.key()) == (value, b"key")
    assert dict(dead.headers())["origin"] == f"{address.topic}/0/0".encode()
    lines = logged()
    assert sum("malformed" in line["event"] for line in lines) == 1
    assert not any("driver-token" in str(line) for line in lines)


def test_what_cannot_be_parsed_and_is_too_large_for_us_to_pass_on_holds_nothing_up_either(url: str) -> None:
    address = parse(url)

    async def scenario() -> None:
        async with opened(url) as queue:
            foreign = Producer(address.options | {"message.max.bytes": 1_048_000})
            foreign.produce(address.topic, b"x" * 1_040_000, b"key", partition=0)
            assert foreign.flush(10) == 0
            (good,) = messages(1)
            await queue.put(good)
            (delivery,) = await receive(queue, 1)
            await queue.ack(delivery)
            await eventually(lambda: nothing_left(url))

    run(scenario())
    (dead,) = raw(address, address.dead_topic, 1)
    assert (dead.value(), dead.key()) == (None, b"key")
    assert dict(dead.headers()) == {"origin": f"{address.topic}/0/0".encode(), "omitted": b"too large"}


def test_what_can_be_parsed_and_breaks_the_rules_is_handed_out_for_the_worker_to_refuse(url: str) -> None:
    address, keyring = parse(url), Keyring([os.urandom(32)], os.urandom(32))
    broken = wrap(keyring, ChargingRequest(new_request_id(), "no station", "short", "ftp://nobody", now_ms()))
    fields = (broken.request_id, broken.station_id, broken.accepted_at, broken.body)

    async def scenario() -> None:
        async with opened(url) as queue:
            foreign = Producer(address.options)
            foreign.produce(address.topic, msgspec.msgpack.encode(fields), headers=SCHEMA)
            assert foreign.flush(10) == 0
            (delivery,) = await receive(queue, 1)
            request, _ = unwrap(keyring, delivery.message)
            assert examine(request)[1].keys() == {"station_id", "driver_token", "callback_url"}

    run(scenario())
    assert raw(address, address.dead_topic, 0) == []


async def fill(queue: KafkaQueue, put: list[Message]) -> None:
    for start in range(0, len(put), 500):  # all at once would be more than a busy machine confirms in time
        await asyncio.gather(*map(queue.put, put[start : start + 500]))


async def nothing_left(url: str) -> bool:
    return await committed_waiting(url) == 0


# Offsets


def test_acks_out_of_order_and_a_kill_skip_nothing_and_repeat_nothing_committed(url: str) -> None:
    put = messages(60)

    async def fill() -> None:
        async with opened(url) as queue:
            await asyncio.gather(*map(queue.put, put))

    async def look() -> None:
        async with opened(url) as queue:
            got = await receive(queue, 30)
            assert sorted(ids(got)) == sorted(held)
            assert not any(delivery.fresh for delivery in got)
            late = messages(1)
            await queue.put(late[0])
            assert ids(await receive(queue, 1)) == ids(late)  # nothing else was waiting

    run(fill())
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, url, "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        held = child.stdout.readline().split()
        child.kill()
    assert len(held) == 30
    run(look())


async def ack_every_other(url: str, count: int) -> None:
    async with opened(url) as queue:
        got = await receive(queue, count)
        for delivery in reversed(got[::2]):
            await queue.ack(delivery)

        async def settled() -> bool:
            return await committed_waiting(url) == count // 2

        await eventually(settled)
        print(*ids(got[1::2]), flush=True)
        time.sleep(600)  # noqa: ASYNC251 - held still until the test kills it


def test_an_ack_after_the_partition_moved_on_is_ignored(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "DRAIN_S", 0)
    put = messages(40)

    async def scenario() -> None:
        async with opened(url) as old, opened(url) as new:
            await asyncio.gather(*map(old.put, put))
            held = await receive(old, 40)
            moved = await new.receive(40)
            for delivery in held:
                await old.ack(delivery)

            async def left() -> set[str]:
                there = new._assignments.by_number.keys()  # private: which partitions are assigned to it
                return {delivery.message.request_id for delivery in held if delivery.handle[0].number in there}

            async def settled() -> bool:
                return await committed_waiting(url) == len(await left())

            await eventually(settled)
            unacked = await left()
            assert unacked >= set(ids(moved))
        async with opened(url) as heir:
            assert set(ids(await receive(heir, len(unacked)))) == unacked

    run(scenario())


def test_consumers_that_join_and_leave_lose_nothing_and_repeat_little(url: str) -> None:
    total = 3000
    put = messages(total)
    got: list[str] = []
    done: set[str] = set()

    async def work(queue: KafkaQueue) -> None:
        finishing: set[asyncio.Task[None]] = set()

        async def finish(delivery: Delivery) -> None:
            await asyncio.sleep(0.05)  # what a decision takes
            await queue.ack(delivery)
            done.add(delivery.message.request_id)

        while True:
            for delivery in await queue.receive(64):
                got.append(delivery.message.request_id)
                task = asyncio.ensure_future(finish(delivery))
                finishing.add(task)
                task.add_done_callback(finishing.discard)

    async def come_and_go() -> None:
        while len(done) < total:
            async with opened(url) as guest:
                before = len(got)
                working = asyncio.ensure_future(work(guest))
                while len(got) < min(before + 300, total) and len(done) < total:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.3)
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                await asyncio.sleep(0.2)  # a worker drains before it closes

    async def scenario() -> None:
        async with opened(url) as host:
            working = asyncio.ensure_future(work(host))
            guests = [asyncio.ensure_future(come_and_go()) for _ in range(2)]
            for start in range(0, total, 100):
                await asyncio.gather(*map(host.put, put[start : start + 100]))
                await asyncio.sleep(0.1)
            await asyncio.gather(*guests)
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    run(scenario())
    assert set(got) == set(ids(put))
    print(f"{len(got) - total} repeats of {total}")
    assert len(got) - total < total * 0.05


def test_a_consumer_that_got_no_partition_leaves_the_group_at_once(kafka_server: Server) -> None:
    group = f"g{uuid4().hex[:12]}"
    url = f"{kafka_server.url}/t{uuid4().hex[:12]}?partitions=1&group={group}"

    async def members(count: int) -> None:
        async def are() -> bool:
            with AdminClient(parse(url).options) as admin:
                told = await asyncio.wrap_future(admin.describe_consumer_groups([group])[group])
            return told.state is ConsumerGroupState.STABLE and len(told.members) == count

        async with asyncio.timeout(10):  # long before the lease is over
            await eventually(are)

    async def scenario() -> None:
        async with opened(url, lease_ms=60_000) as busy:
            await busy.put(messages(1)[0])
            await receive(busy, 1)
            async with opened(url, lease_ms=60_000) as idle:
                waiting = asyncio.ensure_future(idle.receive(1))
                await members(2)
                waiting.cancel()
            await members(1)

    run(scenario())


def test_a_backlog_is_not_read_into_memory(url: str) -> None:
    total = BUFFER * 6
    put = messages(total)

    async def scenario() -> None:
        async with opened(url) as queue:
            await fill(queue, put)
            got = await queue.receive(1)
            consumer = queue._consumer  # private: what is held in memory shows nowhere else
            assert consumer is not None

            async def paused() -> bool:
                return len(consumer._paused) == 4

            await eventually(paused)
            most = 0
            while len(got) < total:
                most = max(most, len(consumer._assignments.ready))
                got += await queue.receive(64)
            assert most <= BUFFER + 500
            assert sorted(ids(got)) == sorted(ids(put))

    run(scenario())


def test_partitions_that_were_lost_while_they_were_paused_are_read_on(kafka_server: Server) -> None:
    total = BUFFER * 3
    put = messages(total)

    async def scenario(proxy: Proxy) -> None:
        name = f"t{uuid4().hex[:12]}?partitions=2"
        async with opened(f"{kafka_server.url}/{name}") as filler:
            await fill(filler, put)
        async with opened(f"{proxy.url}/{name}") as queue:
            got = await queue.receive(1)
            consumer = queue._consumer  # private: that it is paused, and has lost them, shows nowhere else
            assert consumer is not None

            async def paused() -> bool:
                return len(consumer._paused) == 2

            async def lost() -> bool:
                return not consumer._assignments.by_number

            await eventually(paused)
            proxy.drop()
            await eventually(lost)
            proxy.heal()
            distinct = set(ids(got))
            while len(distinct) < total:
                distinct |= set(ids(await queue.receive(500)))

    with kafka_server.proxied() as proxy:
        run(scenario(proxy))


# Brokers that go away


async def checked(queue: KafkaQueue) -> None:
    while True:
        try:
            return await queue.check()
        except QueueUnavailable:
            await asyncio.sleep(0.05)


def test_a_broker_that_lost_its_data_is_used_again_by_itself(kafka_server: Server, url: str) -> None:
    async def scenario() -> None:
        async with opened(url) as queue, opened(url) as putter:
            for message in messages(50):
                await queue.put(message)
            for delivery in await receive(queue, 40):
                await queue.ack(delivery)
            await asyncio.to_thread(kafka_server.wipe)
            await asyncio.to_thread(kafka_server.start)
            anew = messages(30)
            await asyncio.gather(*(stored(putter, message) for message in anew))
            await checked(queue)
            got: set[str] = set()

            async def work() -> None:
                while True:
                    for delivery in await queue.receive(64):
                        got.add(delivery.message.request_id)
                        await queue.ack(delivery)

            working = asyncio.ensure_future(work())
            await eventually(lambda: nothing_left(url))
            assert got >= set(ids(anew))
            working.cancel()

    run(scenario())


def test_a_topic_that_was_made_anew_is_used_again_by_itself(url: str) -> None:
    async def scenario() -> None:
        async with opened(url) as queue:
            for message in messages(50):
                await queue.put(message)
            for delivery in await receive(queue, 50):
                await queue.ack(delivery)
            await eventually(lambda: nothing_left(url))
            admin = AdminClient(parse(url).options)
            await asyncio.to_thread(admin.delete_topics([parse(url).topic])[parse(url).topic].result, 10)

            anew = messages(10)
            await asyncio.gather(*(stored(queue, message) for message in anew))
            await checked(queue)
            got: set[str] = set()
            while not got >= set(ids(anew)):
                got |= set(ids(await queue.receive(64)))

    run(scenario())


def test_after_a_put_that_failed_check_proves_that_puts_succeed(url: str) -> None:
    """The record that it writes for this reaches nobody."""

    async def scenario() -> None:
        async with opened(url) as queue:
            queue._last_put_failed = True  # as a put that failed leaves it
            await queue.check()
            assert not queue._last_put_failed
            (message,) = messages(1)
            await queue.put(message)
            (delivery,) = await queue.receive(5)
            assert delivery.message == message
            await queue.ack(delivery)
            await eventually(lambda: nothing_left(url))

    run(scenario())
    assert len(raw(parse(url), parse(url).topic, 2)) == 2


def test_an_open_that_is_given_up_leaves_no_thread(kafka_server: Server) -> None:
    def threads() -> set[int | None]:
        """Those of ours, and the library's own."""
        found = {thread.native_id for thread in threading.enumerate() if thread.name.startswith("kafka-")}
        for path in Path("/proc/self/task").glob("*/comm"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                if path.read_text().startswith("rdk:"):
                    found.add(int(path.parent.name))
        return found

    async def scenario(proxy: Proxy) -> None:
        before = threads()

        async def begun() -> bool:
            return bool(threads() - before)

        async def ended() -> bool:
            return not threads() - before

        proxy.drop()
        opening = asyncio.ensure_future(KafkaQueue.open(proxy.url, 10))
        await eventually(begun)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await eventually(ended)
        proxy.heal()  # it holds on to connections while it drops

    with kafka_server.proxied() as proxy:
        run(scenario(proxy))


def test_questions_that_nobody_waits_for_any_more_meet_no_other(kafka_server: Server) -> None:
    async def scenario(proxy: Proxy) -> None:
        async with opened(f"{proxy.url}/t{uuid4().hex[:12]}?partitions=2") as queue:
            await queue.put(messages(1)[0])
            overlaps: list[bool] = []
            at_work: list[None] = []

            def question(_reader: Consumer) -> None:
                overlaps.append(bool(at_work))
                at_work.append(None)
                time.sleep(0.05)  # what a silent broker takes
                at_work.pop()

            for _ in range(5):
                asking = asyncio.ensure_future(queue._topic._ask(question))  # as depth and the watch ask
                await asyncio.sleep(0.01)
                asking.cancel()
            proxy.drop()
            asking = asyncio.ensure_future(queue.depth())
            await asyncio.sleep(0.01)
            asking.cancel()
            await queue.close()
            proxy.heal()  # it holds on to connections while it drops
            assert overlaps
            assert not any(overlaps)

    with kafka_server.proxied() as proxy:
        run(scenario(proxy))


# Reading without the group


def test_a_topic_is_read_from_an_offset_or_a_time_and_the_group_stays_where_it_is(url: str) -> None:
    old = [Message(new_request_id(), str(uuid4()), now_ms() - 3_600_000, b"") for _ in range(20)]
    new = messages(10)

    async def read(start: int | datetime) -> list[str]:
        return sorted([message.request_id async for message in messages_from(url, start)])

    async def scenario() -> None:
        async with opened(url) as queue:
            await asyncio.gather(*map(queue.put, old))
            await asyncio.gather(*map(queue.put, new))
            assert await read(0) == sorted(ids([*old, *new]))
            assert await read(datetime.fromtimestamp((now_ms() - 1_800_000) / 1000, UTC)) == sorted(ids(new))
            assert await read(10_000) == []
            assert await read(datetime.fromtimestamp(now_ms() / 1000 + 3600, UTC)) == []
            assert await committed_waiting(url) == 30
            assert len(await receive(queue, 30)) == 30

    run(scenario())


def test_reading_a_topic_that_is_not_there_is_told(kafka_server: Server) -> None:
    async def scenario() -> None:
        with pytest.raises(QueueUnavailable):
            async for _ in messages_from(f"{kafka_server.url}/nobody-made-this-either", 0):
                pass

    run(scenario())


if __name__ == "__main__":
    uvloop.run(ack_every_other(sys.argv[1], int(sys.argv[2])))
