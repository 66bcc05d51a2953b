"""How much waits in the topic, and whether Kafka can be used at all."""

import asyncio
from collections.abc import Callable
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from chargegate.engines.kafka.assignments import Assignments
from chargegate.engines.kafka.producer import ConfirmingProducer, Position
from chargegate.engines.kafka.topic import Refused, Topic
from chargegate.engines.kafka.watermark import Watermark
from chargegate.model import now_ms
from chargegate.observe import log
from chargegate.queues.base import Depth, QueueUnavailable

_MEASURE_S: Final = 1.0


class Backlog:
    """Measures the topic every second once it is started, and counts what this process puts and takes in between.

    ``trouble`` says why Kafka cannot be used; it is empty while it can. ``refused``: that stays so until somebody
    changes the cluster or the URL. ``on_new_topic`` is called when the topic was made anew under its name.
    """

    def __init__(
        self, topic: Topic, producer: ConfirmingProducer, assignments: Assignments, on_new_topic: Callable[[], None]
    ) -> None:
        self.waiting = 0
        self.trouble = ""
        self.refused = False
        self._topic = topic
        self._producer = producer
        self._assignments = assignments
        self._on_new_topic = on_new_topic
        self._topic_id = ""
        self._ends: dict[int, int] = {}
        self._done: dict[int, Watermark] = {}
        self._stored: dict[int, int] = {}
        self._oldest: tuple[dict[int, int], int] = ({}, 0)
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_MEASURE_S)
            trouble = self.trouble
            try:
                await self.measure()
            except Exception:  # noqa: BLE001 - without this task what is known would stay as it was for ever
                log.exception("kafka could not be measured")
            if self.trouble and not trouble:
                log.warning("kafka is in trouble", error=self.trouble)
            elif trouble and not self.trouble:
                log.info("kafka is back")

    async def measure(self) -> None:
        """Ask the cluster now. Sets ``trouble`` where it does not answer or refuses."""
        self._stored = {}
        try:
            measured = await self._topic.measure()
        except QueueUnavailable as error:
            self.trouble, self.refused = str(error), isinstance(error, Refused)
            return
        except KafkaException as error:
            fault = self._producer.fault
            self.refused = fault is not None and fault.code() == KafkaError._AUTHENTICATION  # noqa: SLF001 - so named
            self.trouble = self.reason(error)
            return
        if self._topic_id not in ("", measured.topic_id):
            log.warning("kafka topic was made anew: what it held is lost")
            self._on_new_topic()
        self._topic_id, self._done = measured.topic_id, measured.done
        # What was confirmed during the measurement may be missing in it.
        self._ends = {number: max(end, self._stored.get(number, 0)) for number, end in measured.ends.items()}
        self.waiting = sum(number for number, _ in self._heads().values())
        self.trouble = ""

    def stored(self, position: Position) -> None:
        """This process put a message there."""
        partition, offset = position
        self.waiting += 1
        for ends in (self._ends, self._stored):
            ends[partition] = max(ends.get(partition, 0), offset + 1)

    def _heads(self) -> dict[int, tuple[int, int]]:
        """By partition: how many messages wait, and the offset of the first."""
        done = {number: self._done.get(number) or Watermark(0) for number in self._ends}
        others = {number: (done[number].waiting(end), done[number].head) for number, end in self._ends.items()}
        return others | self._assignments.heads(self._ends)

    async def depth(self) -> Depth:
        """Asks the cluster only for the first messages, where they changed."""
        heads = self._heads()
        self.waiting = sum(number for number, _ in heads.values())
        firsts = {partition: head for partition, (number, head) in heads.items() if number}
        ready = self._assignments.oldest_ready()
        times = [at for partition, at in ready.items() if partition in firsts]
        unread = {partition: head for partition, head in firsts.items() if partition not in ready}
        if unread:
            if self._oldest[0] != unread:
                messages = await self._topic.first(dict(unread))
                self._oldest = (unread, min((message.accepted_at for message in messages), default=now_ms()))
            times.append(self._oldest[1])
        return Depth(self.waiting, max(0, now_ms() - min(times)) if times else 0)

    def reason(self, error: KafkaException) -> str:
        """Why Kafka cannot be used: what the producer was told says more than an answer that did not come."""
        fault: KafkaError = self._producer.fault or error.args[0]
        return f"Kafka: {fault.str()}"
