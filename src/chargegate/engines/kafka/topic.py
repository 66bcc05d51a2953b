"""Questions to the cluster about the topic: how far it is written and done, and what it holds."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # all there; two are not declared as exported
    AdminClient,
    NewTopic,
    OffsetSpec,
)

from chargegate.engines.kafka.address import KafkaAddress
from chargegate.engines.kafka.record import Malformed, unpack
from chargegate.engines.kafka.watermark import Watermark
from chargegate.queues.base import Message, QueueUnavailable
from chargegate.storage.budget import EXCHANGE_S
from chargegate.storage.tasks import observed

T = TypeVar("T")

_REFUSALS: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_EXCEPTION,
}
_EARLIEST: Final = OffsetSpec.earliest()  # type: ignore[no-untyped-call]  # a part of the library without types
_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # as above


class Measured(msgspec.Struct, frozen=True):
    """The topic at one moment. ``topic_id`` tells a topic from an earlier one of the same name; ``ends`` are the
    offsets after the last message, by partition; ``done`` is what the group has committed."""

    topic_id: str
    ends: dict[int, int]
    done: dict[int, Watermark]


class TopicMissing(QueueUnavailable):
    """The topic, or that of its dead letters, does not exist; it may be about to."""


class Refused(QueueUnavailable):
    """The cluster answers, and will not do what is asked until somebody changes its configuration or the URL."""


class Topic:
    """Asks the cluster. Every method raises ``KafkaException`` without an answer."""

    def __init__(self, address: KafkaAddress) -> None:
        self._address = address
        self._admin = AdminClient(address.options)
        self._reader = Consumer(reading(address) | {"queued.min.messages": 1, "fetch.message.max.bytes": 65536})
        # One thread, so that no two questions use the reader at once, not even after a caller stopped waiting.
        self._thread = ThreadPoolExecutor(1, "kafka-reader")

    async def answers(self) -> None:
        """Raises ``TopicMissing`` where the topic does not exist."""
        name = self._address.topic
        if (await self._describe([name]))[name] is None:
            raise TopicMissing(f"Kafka has no topic {name}")

    async def measure(self) -> Measured:
        """Measure the topic. Where one of the topics is missing it is made, if the address says so. Raises
        ``TopicMissing`` and ``Refused``."""
        address = self._address
        try:
            described = await self._describe([address.topic, address.dead_topic])
            if missing := [name for name, topic in described.items() if topic is None]:
                await self._make(missing)
            return await self._measured(described[address.topic])
        except KafkaException as error:
            if error.args[0].code() not in _REFUSALS:
                raise
            raise Refused(
                f"Kafka refuses ({error.args[0].str()}): who uses this URL needs Describe, Read and Write"
                f" on the topics {address.topic} and {address.dead_topic}, and Read on the group {address.group}"
            ) from None

    async def _describe(self, names: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        asked = self._admin.describe_topics(TopicCollection(names), request_timeout=EXCHANGE_S)
        for name, future in asked.items():
            try:
                found[name] = await _answer(future)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
                found[name] = None
        return found

    async def _make(self, missing: list[str]) -> NoReturn:
        address, names = self._address, " and ".join(missing)
        if not address.create:
            raise Refused(f"Kafka has no topic {names}: make it, or take create=0 out of the URL")
        topics = [
            NewTopic(name, address.partitions if name == address.topic else 1, address.replication) for name in missing
        ]
        for made in self._admin.create_topics(topics, request_timeout=EXCHANGE_S * 4).values():
            try:
                await _answer(made)
            except KafkaException as error:
                if error.args[0].code() in _REFUSALS:
                    raise Refused(
                        f"Kafka refuses to make the topic {names} ({error.args[0].str()}):"
                        " make it yourself, or let the user of this URL make it"
                    ) from None
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        raise TopicMissing(f"Kafka is making the topic {names}")

    async def _measured(self, described: Any) -> Measured:
        partitions = [TopicPartition(self._address.topic, partition.id) for partition in described.partitions]
        low, high = [
            {
                partition.partition: (await _answer(future)).offset
                for partition, future in self._admin.list_offsets(
                    dict.fromkeys(partitions, which), request_timeout=EXCHANGE_S
                ).items()
            }
            for which in (_EARLIEST, _LATEST)
        ]
        done = {}
        for at in await self._ask(self._committed, partitions):
            if at.error:
                raise KafkaException(at.error)
            number = at.partition
            known = low[number] <= at.offset <= high[number]
            done[number] = (
                Watermark.restored(at.offset, at.metadata or "", high[number]) if known else Watermark(low[number])
            )
        return Measured(str(described.topic_id), high, done)

    async def first(self, heads: dict[int, int]) -> list[Message]:
        """The message at each partition's offset, as far as they come within ``EXCHANGE_S``."""
        return await self._ask(self._first, heads)

    async def close(self) -> None:
        await self._ask(Consumer.close)
        self._thread.shutdown()
        await asyncio.to_thread(self._admin.__exit__, None, None, None)  # it has no other way to be closed

    async def _ask(self, question: Callable[..., T], *arguments: Any) -> T:
        return await observed(
            asyncio.get_running_loop().run_in_executor(self._thread, question, self._reader, *arguments)
        )

    def _committed(self, reader: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        # Not asked of the admin client: that never finds the coordinator again once it was killed.
        try:
            return reader.committed(partitions, timeout=EXCHANGE_S)
        except KafkaException:
            for told in reversed(reader.consume(100, 0)):  # why there was no answer in time, such as a missing right
                if error := told.error():
                    raise KafkaException(error) from None
            raise

    def _first(self, reader: Consumer, heads: dict[int, int]) -> list[Message]:
        topic = self._address.topic
        reader.assign([TopicPartition(topic, number, offset) for number, offset in heads.items()])
        found: dict[int, Message | None] = {}
        end = time.monotonic() + EXCHANGE_S
        while len(found) < len(heads) and (record := reader.poll(max(0, end - time.monotonic()))):
            number = record.partition()
            if record.error() is None and number is not None and number not in found:
                reader.pause([TopicPartition(topic, number)])
                try:
                    found[number] = unpack(record)
                except Malformed:
                    found[number] = None
        reader.unassign()
        return [message for message in found.values() if message]


def reading(address: KafkaAddress) -> dict[str, Any]:
    """The options of a consumer that commits nothing by itself."""
    return address.options | {
        "group.id": address.group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "allow.auto.create.topics": False,
    }


async def _answer(future: "Future[Any]") -> Any:
    # Shielded: the library's thread must not find its future cancelled.
    return await asyncio.shield(observed(asyncio.wrap_future(future)))
