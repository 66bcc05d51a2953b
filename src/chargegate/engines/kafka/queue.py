"""A queue in a topic of Apache Kafka, shared by any number of processes."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final, Self

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as Record

from chargegate.engines.kafka.address import KafkaAddress, parse
from chargegate.engines.kafka.consumer import GroupConsumer, Handle
from chargegate.engines.kafka.producer import ConfirmingProducer, TooLarge
from chargegate.engines.kafka.record import pack
from chargegate.engines.kafka.topic import Refused, Topic
from chargegate.engines.kafka.watermark import Watermark
from chargegate.model import now_ms
from chargegate.observe import log
from chargegate.queues.base import Capabilities, Delivery, Depth, Message, QueueFull, QueueUnavailable, Waiting

_MEASURE_S: Final = 1.0
_START_S: Final = 10.0
_CLOSE_S: Final = 5.0
_PROBE: Final = [("schema", b"probe")]


class KafkaQueue:
    """Keeps the promises of ``Queue`` as far as the cluster keeps what it confirmed to ``acks=all``.

    A process joins the consumer group with its first ``receive``, so that one that only puts is given no partition.
    What waits is exact for the partitions that are this process's, and as of the last second for the others: of
    those, what another process has under way counts as waiting.
    """

    capabilities = Capabilities(durable=True, shared=True, find=False)

    def __init__(
        self,
        address: KafkaAddress,
        *,
        max_size: int,
        lease_ms: int,
        drain_ms: int,
        on_malformed: Callable[[], None],
    ) -> None:
        self._address = address
        self._max_size = max_size
        self._lease_ms, self._drain_ms = lease_ms, drain_ms
        self._on_malformed = on_malformed
        self._topic = Topic(address)
        self._producer = ConfirmingProducer(address.options)
        self._consumer: GroupConsumer | None = None
        self._topic_id = ""
        self._ends: dict[int, int] = {}
        self._done: dict[int, Watermark] = {}
        self._reported: dict[int, int] = {}
        self._waiting = 0
        self._unconfirmed = 0
        self._trouble = ""
        self._refused = False
        self._doubt = False
        self._oldest: tuple[dict[int, int], int] = ({}, 0)
        self._burying: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        max_size: int,
        *,
        lease_ms: int = 10_000,
        drain_ms: int = 1_000,
        on_malformed: Callable[[], None] = lambda: None,
    ) -> Self:
        """``url`` as ``address.parse`` says. ``lease_ms``: within this, what a dead consumer held goes to others; six
        tenths of it are the group's session time-out. ``drain_ms``: how long a partition that moves on waits for what
        is under way. ``on_malformed`` is called for each message that went into the dead-letter topic.

        Raises ``ValueError`` for a wrong URL, and ``QueueUnavailable`` where Kafka does not answer within ten seconds,
        or refuses what is needed (the text says what).
        """
        address = parse(url)
        try:
            queue = cls(address, max_size=max_size, lease_ms=lease_ms, drain_ms=drain_ms, on_malformed=on_malformed)
        except KafkaException as error:
            raise ValueError(error.args[0].str()) from None
        try:
            async with asyncio.timeout(_START_S):
                await queue._measure()
                while queue._trouble:
                    if queue._refused:
                        raise QueueUnavailable(queue._trouble)
                    await asyncio.sleep(0.1)
                    await queue._measure()
        except BaseException as error:
            await queue.close()
            if isinstance(error, QueueUnavailable | TimeoutError):
                raise QueueUnavailable(queue._trouble or "Kafka does not answer") from None
            raise
        queue._watcher = asyncio.create_task(queue._watch())
        return queue

    async def put(self, message: Message) -> None:
        self._refuse_closed()
        if self._waiting + self._unconfirmed >= self._max_size:
            raise QueueFull
        value, key, headers = pack(message)
        await self._store(value, key, headers, message.accepted_at)

    async def _store(self, value: bytes | None, key: bytes | None, headers: list[tuple[str, Any]], at: int) -> None:
        self._unconfirmed += 1
        try:
            partition, offset = await self._producer.send(self._address.topic, value, key, headers, max(0, at))
        except QueueUnavailable:
            self._doubt = True
            raise
        finally:
            self._unconfirmed -= 1
        self._doubt = False
        self._waiting += 1
        for ends in (self._ends, self._reported):
            ends[partition] = max(ends.get(partition, 0), offset + 1)

    async def receive(self, limit: int) -> list[Delivery]:
        self._refuse_closed()
        if self._consumer is None:
            self._consumer = GroupConsumer(
                self._address, lease_ms=self._lease_ms, drain_ms=self._drain_ms, on_malformed=self._malformed
            )
        taken = await self._consumer.receive(limit)
        self._waiting -= len(taken)
        return taken

    async def ack(self, delivery: Delivery) -> None:
        if self._consumer is not None:
            self._consumer.ack(delivery.handle)

    async def find(self, request_id: str) -> Waiting | None:  # noqa: ARG002 - a topic has no index
        return None

    async def depth(self) -> Depth:
        """Raises ``QueueUnavailable`` while Kafka does not answer."""
        self._refuse_trouble()
        waiting = self._count()
        self._waiting = sum(number for number, _ in waiting.values())
        heads = {partition: head for partition, (number, head) in waiting.items() if number}
        ready = self._consumer.buffered() if self._consumer else {}
        times = [at for partition, at in ready.items() if partition in heads]
        unseen = {partition: head for partition, head in heads.items() if partition not in ready}
        if unseen:
            if self._oldest[0] != unseen:
                messages = await self._topic.first(dict(unseen))
                self._oldest = (unseen, min((message.accepted_at for message in messages), default=now_ms()))
            times.append(self._oldest[1])
        return Depth(self._waiting, max(0, now_ms() - min(times)) if times else 0)

    async def check(self) -> None:
        """After a put that failed, only one that succeeds is proof: a record that consumers pass over."""
        self._refuse_trouble()
        if self._doubt:
            await self._store(None, None, _PROBE, now_ms())
            return
        try:
            await self._topic.answers()
        except KafkaException as error:
            raise QueueUnavailable(self._in_words(error)) from None

    async def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        for task in self._burying:
            task.cancel()
        await asyncio.gather(*self._burying, *([self._watcher] if self._watcher else []), return_exceptions=True)
        if self._consumer is not None:
            await self._consumer.close(_CLOSE_S)
        await self._producer.close()
        await self._topic.close()

    def _refuse_closed(self) -> None:
        if self._closed.is_set():
            raise QueueUnavailable("closed")

    def _refuse_trouble(self) -> None:
        self._refuse_closed()
        if self._trouble:
            raise QueueUnavailable(self._trouble)

    def _count(self) -> dict[int, tuple[int, int]]:
        """By partition: how many wait, and the offset of the first."""
        ours = self._consumer.heads(self._ends) if self._consumer else {}
        done = {number: self._done.get(number) or Watermark(0) for number in self._ends}
        others = {number: (done[number].waiting(end), done[number].head) for number, end in self._ends.items()}
        return others | ours

    async def _watch(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), _MEASURE_S)
                return
            trouble = self._trouble
            try:
                await self._measure()
            except Exception:  # noqa: BLE001 - an end of this task would leave what it knows as it was for ever
                log.exception("kafka could not be measured")
            if self._trouble and not trouble:
                log.warning("kafka is in trouble", error=self._trouble)
            elif trouble and not self._trouble:
                log.info("kafka is back")

    async def _measure(self) -> None:
        self._reported = {}
        try:
            measured = await self._topic.measure()
        except QueueUnavailable as error:
            self._trouble, self._refused = str(error), isinstance(error, Refused)
            return
        except KafkaException as error:
            fault = self._producer.fault
            self._refused = fault is not None and fault.code() == KafkaError._AUTHENTICATION  # noqa: SLF001 - so named
            self._trouble = self._in_words(error)
            return
        if self._topic_id not in ("", measured.topic_id):
            log.warning("kafka topic was made anew: what it held is lost")
            self._producer.renew()
            if self._consumer is not None:
                self._consumer.renew()
        self._topic_id, self._done = measured.topic_id, measured.done
        # Confirmed while it was being measured: the measurement may be from before.
        self._ends = {number: max(end, self._reported.get(number, 0)) for number, end in measured.ends.items()}
        self._waiting = sum(number for number, _ in self._count().values())
        self._trouble = ""

    def _in_words(self, error: KafkaException) -> str:
        fault: KafkaError = self._producer.fault or error.args[0]
        return f"Kafka: {fault.str()}"

    def _malformed(self, record: Record, handle: Handle) -> None:
        if self._closed.is_set():
            return  # not acked: the next owner sees to it
        task = asyncio.create_task(self._bury(record, handle))
        self._burying.add(task)
        task.add_done_callback(self._burying.discard)

    async def _bury(self, record: Record, handle: Handle) -> None:
        """Into the dead-letter topic as it came, and only then past it."""
        consumer = self._consumer
        assert consumer is not None  # noqa: S101 - it handed out the record
        headers = record.headers() or []
        if headers != _PROBE:
            origin = f"{record.topic()}/{record.partition()}/{record.offset()}"
            headers = [*headers, ("origin", origin)]
            value = record.value()
            while True:
                try:
                    await self._producer.send(self._address.dead_topic, value, record.key(), headers)
                    break
                except TooLarge:
                    value, headers = None, [("origin", origin), ("omitted", b"too large")]
                except QueueUnavailable:
                    await asyncio.sleep(_MEASURE_S)
                    if not consumer.owns(handle):
                        return
            log.warning("kafka message is malformed: put into the dead-letter topic", origin=origin)
            self._on_malformed()
        consumer.ack(handle)
