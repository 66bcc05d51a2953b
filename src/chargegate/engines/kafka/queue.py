"""A queue in a topic of Apache Kafka, shared by any number of processes."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Self

from confluent_kafka import KafkaException

from chargegate.engines import KAFKA
from chargegate.engines.kafka.address import KafkaAddress, parse
from chargegate.engines.kafka.assignments import Assignments
from chargegate.engines.kafka.backlog import Backlog
from chargegate.engines.kafka.consumer import GroupConsumer
from chargegate.engines.kafka.dead_letters import DeadLetterTopic
from chargegate.engines.kafka.producer import ConfirmingProducer
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
    put_in_task,
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
        self._refuse_closed()
        if self._backlog.waiting + self._unconfirmed >= self._max_size:
            raise QueueFull
        value, key, headers = pack(message)
        await self._store(value, key, headers, message.accepted_at)

    async def _store(self, value: bytes | None, key: bytes | None, headers: list[tuple[str, Any]], at: int) -> None:
        self._unconfirmed += 1
        try:
            position = await self._producer.send(self._address.topic, value, key, headers, max(0, at))
        except QueueUnavailable:
            self._last_put_failed = True
            raise
        finally:
            self._unconfirmed -= 1
        self._last_put_failed = False
        self._backlog.stored(position)

    def put_then(self, message: Message, done: Stored) -> None:
        put_in_task(self.put(message), done)

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
            await self._store(None, None, PROBE, now_ms())
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
