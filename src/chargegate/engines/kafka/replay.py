"""Reads the topic again, without the consumer group."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from datetime import datetime
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Record

from chargegate.engines.kafka.address import parse
from chargegate.engines.kafka.record import Malformed, unpack
from chargegate.engines.kafka.topic import reading
from chargegate.queues.base import Message, QueueUnavailable

_ANSWER_S: Final = 10.0


async def messages_from(url: str, start: int | datetime) -> AsyncGenerator[Message, None]:
    """What the topic holds, from an offset in each partition or from a time, up to its end as it is now; in order
    within each station. The consumer group stays where it is. What is malformed is passed over.

    Raises ``QueueUnavailable`` where Kafka does not answer, ``ValueError`` for a wrong URL.
    """
    address = parse(url)
    reader = Consumer(reading(address) | {"enable.partition.eof": True})
    try:
        ends = await asyncio.to_thread(_assign, reader, address.topic, start)
        unread = set(ends)
        while unread:
            records = await asyncio.to_thread(_next_batch, reader)
            if not records:
                raise QueueUnavailable("Kafka fell silent while the topic was read")
            for record in records:
                number, offset = record.partition(), record.offset()
                if number not in ends or offset is None:
                    continue
                if _at_end(record) or offset + 1 >= ends[number]:
                    unread.discard(number)
                if record.error() is None and offset < ends[number]:
                    try:
                        yield unpack(record)
                    except Malformed:
                        continue
    except KafkaException as error:
        raise QueueUnavailable(f"Kafka: {error.args[0].str()}") from None
    finally:
        await asyncio.to_thread(reader.close)


def _assign(reader: Consumer, topic: str, start: int | datetime) -> dict[int, int]:
    """The ends, now, of the partitions that hold something."""
    numbers: Iterable[int] = reader.list_topics(topic, timeout=_ANSWER_S).topics[topic].partitions
    at = int(start.timestamp() * 1000) if isinstance(start, datetime) else start
    places = [TopicPartition(topic, number, at) for number in numbers]
    if not places:
        raise QueueUnavailable(f"the topic {topic} does not exist")
    if isinstance(start, datetime):
        places = reader.offsets_for_times(places, timeout=_ANSWER_S)
    ends = {}
    for place in places:
        first, end = reader.get_watermark_offsets(place, timeout=_ANSWER_S)
        place.offset = max(place.offset, first) if place.offset >= 0 else end
        if place.offset < end:
            ends[place.partition] = end
    reader.assign([place for place in places if place.partition in ends])
    return ends


def _next_batch(reader: Consumer) -> list[Record]:
    first = reader.poll(_ANSWER_S)
    return [] if first is None else [first, *reader.consume(500, 0)]


def _at_end(record: Record) -> bool:
    error = record.error()
    return error is not None and error.code() == KafkaError._PARTITION_EOF  # noqa: SLF001 - so named by the library
