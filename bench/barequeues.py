"""The floor of each engine: a bare producer and a bare consumer on the client library that the service uses.

Usage: barequeues.py kafka|postgresql|rabbitmq|redis URL NAME SECONDS; prints messages per second.

The producer and the consumer are two processes, like ``chargegate api`` and ``chargegate worker``. They pass on
messages of the service, which are encrypted and packed before the time starts. The durability is the same: the server
confirms each message, and the consumer acknowledges each. At most ``WINDOW`` messages are unconfirmed at once. Messages
go in the largest groups that the client offers: a batch of librdkafka, a pipeline of Redis commands, a multi-row INSERT
with its commit, concurrent publishes on one channel. The time runs from the first put to the last acknowledgement.

They do nothing else: no HTTP, no encryption, no decision, no ledger, no callback, no limit on the backlog, no lease or
heartbeat, no index by request id, no reconnecting, and no decoding.
"""

import asyncio
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, cast

import aiormq
import asyncpg  # type: ignore[import-untyped]  # it ships no types
import msgspec
import uvloop
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka import Message as Record
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # not declared as exported
from pamqp.commands import Basic
from redis.asyncio import Redis

import load
from chargegate.engines.kafka.record import pack
from chargegate.keys import Keyring
from chargegate.model import ChargingRequest, new_request_id, now_ms
from chargegate.queues.base import Message
from chargegate.queues.envelope import wrap

WINDOW: Final = 256
DIFFERENT: Final = 2_000
PARTITIONS: Final = 4
LIMIT_S: Final = 60
WAIT_S: Final = 0.1


class Progress:
    """What the two processes share."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.ready = context.Event()
        self._put = context.Value("q", -1)
        self.taken = context.Value("q", 0)
        self.taken_at = context.Value("d", 0.0)

    def put(self, count: int) -> None:
        """Set the number of all messages that were put."""
        self._put.value = count

    def took(self, count: int) -> None:
        """Count messages that were acknowledged just now."""
        self.taken.value += count
        self.taken_at.value = time.monotonic()

    def over(self, more: int = 0) -> bool:
        """Whether all messages will be acknowledged with ``more`` of them. Exits if the producer has died."""
        producer = multiprocessing.parent_process()
        if producer is not None and not producer.is_alive():
            raise SystemExit("the producer is gone")
        return bool(0 <= self._put.value <= self.taken.value + more)


class Bare(Protocol):
    """An engine. ``put`` puts messages until ``end`` (monotonic clock), and returns how many were confirmed."""

    def __init__(self, url: str, name: str) -> None: ...

    async def make(self) -> None: ...

    async def put(self, messages: Iterator[Message], end: float) -> int: ...

    async def take(self, progress: Progress) -> None: ...


class Kafka:
    """An idempotent producer with ``acks=all``, and a group of one consumer that commits twice a second."""

    def __init__(self, url: str, name: str) -> None:
        self._options: dict[str, Any] = {"bootstrap.servers": url.partition("://")[2]}
        self._topic = name

    async def make(self) -> None:
        admin = AdminClient(self._options)
        for made in admin.create_topics([NewTopic(self._topic, PARTITIONS, 1)]).values():
            made.result(LIMIT_S)

    async def put(self, messages: Iterator[Message], end: float) -> int:
        records = itertools.cycle([pack(next(messages)) for _ in range(DIFFERENT)])
        safe = {"enable.idempotence": True, "acks": "all", "linger.ms": 2, "partitioner": "murmur2_random"}
        producer = Producer(self._options | safe)
        sent = confirmed = 0

        def report(error: KafkaError | None, _record: Record) -> None:
            nonlocal confirmed
            if error is not None:
                raise KafkaException(error)
            confirmed += 1

        while time.monotonic() < end:
            value, key, headers = next(records)
            producer.produce(self._topic, value, key, on_delivery=report, headers=headers)  # type: ignore[arg-type]  # the library takes a list of pairs
            sent += 1
            producer.poll(0)
            while sent - confirmed >= WINDOW:
                producer.poll(WAIT_S)
        producer.flush(LIMIT_S)
        return confirmed

    async def take(self, progress: Progress) -> None:
        group = {"group.id": self._topic, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
        consumer = Consumer(self._options | group | {"fetch.queue.backoff.ms": 20})
        consumer.subscribe([self._topic], on_assign=lambda *_: progress.ready.set())
        commit_at, uncommitted = time.monotonic(), 0
        while not progress.over():
            first = consumer.poll(WAIT_S)
            if first is not None:
                for record in (first, *consumer.consume(2 * WINDOW, 0)):
                    if (error := record.error()) is not None:
                        raise KafkaException(error)
                    uncommitted += 1
            if uncommitted and (time.monotonic() >= commit_at or progress.over(uncommitted)):
                consumer.commit(asynchronous=False)
                progress.took(uncommitted)
                commit_at, uncommitted = time.monotonic() + 0.5, 0
        consumer.close()


class Postgresql:
    """Rows of a table. Each commit inserts many, or reads and deletes many."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._table = name

    async def make(self) -> None:
        connection = await asyncpg.connect(self._url)
        await connection.execute(
            f"CREATE TABLE {self._table} (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, request_id text,"
            " station_id text, accepted_at bigint, body bytea)"
            " WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000)"
        )
        await connection.close()

    async def put(self, messages: Iterator[Message], end: float) -> int:
        connection = await asyncpg.connect(self._url)
        insert = f"INSERT INTO {self._table} (request_id, station_id, accepted_at, body) SELECT * FROM unnest("
        insert += "$1::text[], $2::text[], $3::bigint[], $4::bytea[])"
        confirmed = 0
        while time.monotonic() < end:
            batch = [next(messages) for _ in range(WINDOW)]
            await connection.execute(
                insert,
                [message.request_id for message in batch],
                [message.station_id for message in batch],
                [message.accepted_at for message in batch],
                [message.body for message in batch],
            )
            confirmed += WINDOW
        await connection.close()
        return confirmed

    async def take(self, progress: Progress) -> None:
        # Without a statement cache, each statement gets a plan for the table as it is now, not as when it was empty.
        connection = await asyncpg.connect(self._url, statement_cache_size=0)
        delete = (
            f"DELETE FROM {self._table} WHERE seq = ANY(ARRAY(SELECT seq FROM {self._table}"
            " ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED)) RETURNING request_id, station_id, accepted_at, body"
        )
        progress.ready.set()
        while not progress.over():
            if rows := await connection.fetch(delete, WINDOW):
                progress.took(len(rows))
            else:
                await asyncio.sleep(0.002)
        await connection.close()


class Rabbitmq:
    """A quorum queue with confirms. The consumer acknowledges all deliveries of one turn of the event loop together."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name

    async def make(self) -> None:
        connection = await aiormq.connect(self._url)
        channel = await connection.channel()
        await channel.queue_declare(self._name, durable=True, arguments={"x-queue-type": "quorum"})
        await connection.close()

    async def put(self, messages: Iterator[Message], end: float) -> int:
        connection = await aiormq.connect(self._url)
        channel = cast(Channel, await connection.channel(publisher_confirms=True))
        confirmed = 0

        async def publish() -> None:
            nonlocal confirmed
            while time.monotonic() < end:
                message = next(messages)
                headers: dict[str, Any] = {"schema": 1, "station_id": message.station_id, "traceparent": ""}
                headers["accepted_at"] = message.accepted_at
                properties = Basic.Properties(delivery_mode=2, correlation_id=message.request_id, headers=headers)
                await channel.basic_publish(
                    message.body, routing_key=self._name, properties=properties, mandatory=True, wait=False
                )
                confirmed += 1

        await asyncio.gather(*[publish() for _ in range(WINDOW)])
        await connection.close()
        return confirmed

    async def take(self, progress: Progress) -> None:
        connection = await aiormq.connect(self._url)
        channel = await connection.channel()
        await channel.basic_qos(prefetch_count=WINDOW)
        tags: list[int] = []
        arrival = asyncio.Event()

        async def arrived(delivered: DeliveredMessage) -> None:
            tags.append(delivered.delivery_tag or 0)
            arrival.set()

        await channel.basic_consume(self._name, arrived)
        progress.ready.set()
        while not progress.over():
            try:
                await asyncio.wait_for(arrival.wait(), WAIT_S)
            except TimeoutError:
                continue
            arrival.clear()
            taken, tags[:] = tags[:], []
            await channel.basic_ack(taken[-1], multiple=True, wait=False)
            progress.took(len(taken))
        await connection.close()


class RedisStreams:
    """A stream and a group: pipelines of XADD, and XREADGROUP followed by XACK and XDEL together."""

    def __init__(self, url: str, name: str) -> None:
        self._client: Any = Redis.from_url(url, protocol=2)
        self._stream = name

    async def make(self) -> None:
        await self._client.xgroup_create(self._stream, "bare", "0", mkstream=True)
        await self._client.aclose()

    async def put(self, messages: Iterator[Message], end: float) -> int:
        confirmed = 0
        while time.monotonic() < end:
            pipeline = self._client.pipeline(transaction=False)
            for message in itertools.islice(messages, WINDOW):
                fields: dict[str, Any] = {"request_id": message.request_id, "station_id": message.station_id}
                fields |= {"accepted_at": message.accepted_at, "body": message.body, "traceparent": ""}
                pipeline.xadd(self._stream, fields)
            await pipeline.execute()
            confirmed += WINDOW
        await self._client.aclose()
        return confirmed

    async def take(self, progress: Progress) -> None:
        progress.ready.set()
        while not progress.over():
            answer = await self._client.xreadgroup(
                "bare", "one", {self._stream: ">"}, count=WINDOW, block=round(WAIT_S * 1000)
            )
            for _, entries in answer or ():
                taken = [entry for entry, _ in entries]
                pipeline = self._client.pipeline(transaction=False)
                pipeline.xack(self._stream, "bare", *taken)
                pipeline.xdel(self._stream, *taken)
                await pipeline.execute()
                progress.took(len(taken))
        await self._client.aclose()


ENGINES: Final[dict[str, Callable[[str, str], Bare]]] = {
    "kafka": Kafka,
    "postgresql": Postgresql,
    "rabbitmq": Rabbitmq,
    "redis": RedisStreams,
}


def new_messages() -> list[Message]:
    """Messages like those of the service."""
    keyring = Keyring([bytes(32)], bytes(32))
    bodies = load.bodies("http://127.0.0.1:50000/callback", load.tokens(DIFFERENT))
    return [
        wrap(keyring, ChargingRequest(new_request_id(), **msgspec.json.decode(next(bodies)), accepted_at=now_ms()))
        for _ in range(DIFFERENT)
    ]


def consume(engine: str, url: str, name: str, progress: Progress) -> None:
    """Run the consumer. It has its own process."""
    uvloop.run(ENGINES[engine](url, name).take(progress))


def measure(engine: str, url: str, name: str, seconds: float) -> float:
    """Measure messages per second, from the first put to the last acknowledgement."""
    uvloop.run(ENGINES[engine](url, name).make())
    progress = Progress()
    messages = itertools.cycle(new_messages())
    consumer = multiprocessing.get_context("spawn").Process(target=consume, args=(engine, url, name, progress))
    consumer.daemon = True
    consumer.start()
    if not progress.ready.wait(LIMIT_S):
        raise SystemExit("the consumer did not start")
    started = time.monotonic()
    progress.put(count := uvloop.run(ENGINES[engine](url, name).put(messages, started + seconds)))
    consumer.join(LIMIT_S)
    if consumer.exitcode != 0 or progress.taken.value != count:
        raise SystemExit(f"{count} messages were put, {progress.taken.value} taken")
    return float(count / (progress.taken_at.value - started))


if __name__ == "__main__":
    print(measure(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])))
