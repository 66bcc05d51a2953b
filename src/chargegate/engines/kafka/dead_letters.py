"""The topic of the records that are not messages."""

import asyncio
from typing import Final

from confluent_kafka import Message as Record

from chargegate.engines.kafka.assignments import Assignments, Handle
from chargegate.engines.kafka.producer import ConfirmingProducer, TooLarge
from chargegate.engines.kafka.record import PROBE
from chargegate.observe import log
from chargegate.queues.base import QueueUnavailable

_RETRY_S: Final = 1.0


class DeadLetterTopic:
    """Takes records as they came, and acks each in the topic it came from once it is stored here."""

    def __init__(self, name: str, producer: ConfirmingProducer, assignments: Assignments) -> None:
        self._name = name
        self._producer = producer
        self._assignments = assignments
        self._moving: set[asyncio.Task[None]] = set()
        self._closed = False

    def move(self, record: Record, handle: Handle) -> None:
        """Move it soon. Once this is closed it stays unacked, and goes to the partition's next owner."""
        if not self._closed:
            task = asyncio.create_task(self._move(record, handle))
            self._moving.add(task)
            task.add_done_callback(self._moving.discard)

    async def _move(self, record: Record, handle: Handle) -> None:
        headers = record.headers() or []
        if headers != PROBE:
            origin = f"{record.topic()}/{record.partition()}/{record.offset()}"
            headers = [*headers, ("origin", origin)]
            value = record.value()
            while True:
                try:
                    await self._producer.send(self._name, (value, record.key(), headers))
                    break
                except TooLarge:
                    value, headers = None, [("origin", origin), ("omitted", b"too large")]
                except QueueUnavailable:
                    await asyncio.sleep(_RETRY_S)
                    if not handle[0].owned:
                        return
            log.warning("kafka message is malformed: put into the dead-letter topic", origin=origin)
        self._assignments.ack(handle)

    async def close(self) -> None:
        self._closed = True
        for task in self._moving:
            task.cancel()
        await asyncio.gather(*self._moving, return_exceptions=True)
