"""A queue in a topic of Apache Kafka, shared by any number of processes."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Self

from confluent_kafka import KafkaException

from chargegate.engines import KAFKA
from chargegate.engines.kafka.address import KafkaAddress, parse
from chargegate.engines.kafka.assignments import Assignments
from chargegate.engines.kafka.backlog import Backlog
from chargegate.engines.kafka.consumer import GroupConsumer
from chargegate.engines.kafka.dead_letters import DeadLetterTopic
from chargegate.engines.kafka.producer import ConfirmingProducer, Content, Position
from chargegate.engines.kafka.record import PROBE, pack
from chargegate.engines.kafka.topic import Topic
from chargegate.model import now_ms
from chargegate.queues.base import (
    Delivery,
    Depth,
    Listed,
    Message,
    QueueFull,
    QueueUnavailable,
    Stored,
    Waiting,
)

_START_S: Final = 10.0
_CLOSE_S: Final = 5.0


class KafkaQueue:
    """Keeps the promises of ``Queue`` as far as the cluster keeps what it confirmed to ``acks=all``.

    A process joins the consumer group with its first ``receive``, so that one that only puts is given no partition.
    What waits is exact for the partitions that are this process's, and as of the last second for the others: of
    those, what another process has in flight counts as waiting.
    """

    capabilities = KAFKA.capabilities

    def __init__(self, address: KafkaAddress, *, max_size: int, lease_ms: int) -> None:
        self._address = address
        self._max_size = max_size
        self._lease_ms = lease_ms
        self._topic = Topic(address)
        self._producer = ConfirmingProducer(address.options)
        self._assignments = Assignments()
        self._consumer: GroupConsumer | None = None
        self._backlog = Backlog(self._topic, self._producer, self._assignments, self._renew)
        self._dead_letters = DeadLetterTopic(address.dead_topic, self._producer, self._assignments)
        self._unconfirmed = 0
        self._last_put_failed = False
        self._closed = False

    @classmethod
    async def open(cls, url: str, max_size: int, *, lease_ms: int = 10_000) -> Self:
        """``url`` as ``address.parse`` says. ``lease_ms``: within this, what a dead consumer held goes to others; six
        tenths of it are the group's session time-out.

        Raises ``ValueError`` for a wrong URL, and ``QueueUnavailable`` where Kafka does not answer within ten seconds,
        or refuses what is needed (the text says what).
        """
        address = parse(url)
        try:
            queue = cls(address, max_size=max_size, lease_ms=lease_ms)
        except KafkaException as error:
            raise ValueError(error.args[0].str()) from None
        backlog = queue._backlog
        try:
            async with asyncio.timeout(_START_S):
                await backlog.measure()
                while backlog.trouble:
                    if backlog.refused:
                        raise QueueUnavailable(backlog.trouble)
                    await asyncio.sleep(0.1)
                    await backlog.measure()
        except BaseException as error:
            await queue.close()
            if isinstance(error, QueueUnavailable | TimeoutError):
                raise QueueUnavailable(backlog.trouble or "Kafka does not answer") from None
            raise
        backlog.start()
        return queue

    async def put(self, message: Message) -> None:
        await self._told(partial(self.put_then, message))

    async def _told(self, put_then: Callable[[Stored], None]) -> None:
        """Wait until it is done. Raises what it is told then."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(fault: Exception | None) -> None:
            if told.done():
                return
            if fault is None:
                told.set_result(None)
            else:
                told.set_exception(fault)

        put_then(done)
        await told

    def put_then(self, message: Message, done: Stored) -> None:
        if self._closed:
            done(QueueUnavailable("closed"))
        elif self._backlog.waiting + self._unconfirmed >= self._max_size:
            done(QueueFull())
        else:
            self._send(pack(message), message.accepted_at, done)

    def _send(self, content: Content, at: int, done: Stored) -> None:
        self._unconfirmed += 1
        self._producer.send_then(self._address.topic, content, max(0, at), partial(self._sent, done))

    def _sent(self, done: Stored, outcome: Position | QueueUnavailable) -> None:
        self._unconfirmed -= 1
        self._last_put_failed = isinstance(outcome, QueueUnavailable)
        if isinstance(outcome, QueueUnavailable):
            done(outcome)
        else:
            self._backlog.stored(outcome)
            done(None)

    async def receive(self, limit: int) -> list[Delivery]:
        self._refuse_closed()
        if self._consumer is None:
            self._consumer = GroupConsumer(
                self._address, self._assignments, lease_ms=self._lease_ms, on_malformed=self._dead_letters.move
            )
        taken = await self._consumer.receive(limit)
        self._backlog.waiting -= len(taken)
        return taken

    async def ack(self, delivery: Delivery) -> None:
        self._assignments.ack(delivery.handle)

    async def find(self, request_id: str) -> Waiting | None:  # noqa: ARG002 - a topic has no index
        return None

    async def unacked(self, limit: int, after: str | None) -> Sequence[Listed]:  # noqa: ARG002 - a topic has no index
        return []

    async def depth(self) -> Depth:
        """Raises ``QueueUnavailable`` while Kafka does not answer."""
        self._refuse_trouble()
        return await self._backlog.depth()

    async def check(self) -> None:
        """After a put that failed, only one that succeeds is proof: a record that consumers pass over."""
        self._refuse_trouble()
        if self._last_put_failed:
            await self._told(partial(self._send, (None, None, PROBE), now_ms()))
            return
        try:
            await self._topic.answers()
        except KafkaException as error:
            raise QueueUnavailable(self._backlog.reason(error)) from None

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(self._dead_letters.close(), self._backlog.close())
        if self._consumer is not None:
            await self._consumer.close(_CLOSE_S)
        await self._producer.close()
        await self._topic.close()

    def _renew(self) -> None:
        self._producer.renew()
        if self._consumer is not None:
            self._consumer.renew()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise QueueUnavailable("closed")

    def _refuse_trouble(self) -> None:
        self._refuse_closed()
        if self._backlog.trouble:
            raise QueueUnavailable(self._backlog.trouble)
