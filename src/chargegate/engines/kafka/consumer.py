"""A member of the consumer group, in a thread that always polls."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Record

from chargegate.engines.kafka.address import KafkaAddress
from chargegate.engines.kafka.assignments import NOTHING_FRESH, Assignment, Assignments, Entry, Handle
from chargegate.engines.kafka.record import Malformed, unpack
from chargegate.engines.kafka.topic import reading
from chargegate.engines.kafka.watermark import Watermark
from chargegate.observe import log
from chargegate.queues.base import Delivery, Message

BUFFER: Final = 2000
"""Messages held ready; above it partitions are paused until half of them are taken."""

DRAIN_S: Final = 1.0
"""How long a partition that moves to another consumer waits for what is in flight."""

_BATCH: Final = 500
_POLL_S: Final = 0.1
_COMMIT_S: Final = 0.5
_ANSWER_S: Final = 2.0
_RETRY_S: Final = 1.0


class GroupConsumer:
    """Made in the event loop that calls it. ``on_malformed`` is called there with a record that cannot be parsed, and
    with its handle; it stays unacked until ``assignments.ack``."""

    def __init__(
        self,
        address: KafkaAddress,
        assignments: Assignments,
        *,
        lease_ms: int,
        on_malformed: Callable[[Record, Handle], None],
    ) -> None:
        self._topic = address.topic
        self._on_malformed = on_malformed
        session_ms = lease_ms * 6 // 10  # what is left of the lease is for the others to share out and read
        tuning = {
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": min(1000, session_ms // 4),  # by which a member learns that another came or went
            # Kafka is asked again at once while nothing waits here, and otherwise a little later: so messages that come
            # one after the other share a fetch, and one that comes alone waits for nothing.
            "queued.min.messages": 1,
            "fetch.queue.backoff.ms": 10,
            "queued.max.messages.kbytes": 8192,
            "fetch.error.backoff.ms": 100,
        }
        strategy = {"partition.assignment.strategy": "cooperative-sticky", "on_commit": self._committed}
        self._options: dict[str, Any] = tuning | reading(address) | strategy
        self._loop = asyncio.get_running_loop()
        self._assignments = assignments
        self._paused: set[int] = set()
        self._arrival = asyncio.Event()
        self._renew = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-consumer", daemon=True)
        self._thread.start()

    # The event loop calls these.

    async def receive(self, limit: int) -> list[Delivery]:
        while not (taken := self._take(limit)):
            self._arrival.clear()
            await self._arrival.wait()
        return taken

    def _take(self, limit: int) -> list[Delivery]:
        taken, malformed = self._assignments.take(limit)
        for record, handle in malformed:
            self._on_malformed(record, handle)
        return taken

    def _arrived(self) -> None:
        self._arrival.set()
        self._take(0)

    def renew(self) -> None:
        """Leave and join again: librdkafka cannot follow a topic that was made anew under its name."""
        self._renew.set()

    async def close(self, limit_s: float) -> None:
        """Commit and leave the group. Without a broker that may take for ever, so it is given up after ``limit_s``;
        the broker then finds out by the lease."""
        self._closing.set()
        await asyncio.to_thread(self._thread.join, limit_s)

    # The rest runs in the thread.

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._renew.clear()
                self._be_member()
            except Exception as error:  # noqa: BLE001 - whatever it was, a new consumer starts from what is committed
                if self._closing.is_set():
                    return
                if isinstance(error, KafkaException):
                    log.warning("kafka consumer starts over", error=error.args[0].str())
                else:
                    log.exception("kafka consumer starts over")
                self._closing.wait(_RETRY_S)

    def _be_member(self) -> None:
        """Be a member of the group until told otherwise, and leave it."""
        consumer = Consumer(self._options, logger=logging.getLogger("librdkafka"))
        try:
            consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
            self._poll(consumer)
            if self._renew.is_set():
                self._drop_all()  # its offsets may be another topic's: not to be committed
        finally:
            try:
                with contextlib.suppress(KafkaException):
                    if not consumer.assignment():
                        consumer.unsubscribe()  # librdkafka's close does not tell the group if it had no partition
                consumer.close()
            finally:
                self._drop_all()
                self._paused.clear()

    def _drop_all(self) -> None:
        self._assignments.drop(list(self._assignments.by_number))

    def _poll(self, consumer: Consumer) -> None:
        commit_at = time.monotonic() + _COMMIT_S
        while not self._closing.is_set() and not self._renew.is_set():
            first = consumer.poll(_POLL_S)
            if first is not None:  # `consume` alone would wait until its batch is full
                self._fetched(consumer, [first])  # before `consume`, in which its partition may move on
                self._fetched(consumer, consumer.consume(_BATCH, 0))
                if not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self._arrived)
            self._throttle(consumer)
            if time.monotonic() >= commit_at:
                commit_at = time.monotonic() + _COMMIT_S
                self._commit(consumer, [each for each in self._assignments.by_number.values() if each.changed])

    def _fetched(self, consumer: Consumer, records: list[Record]) -> None:
        entries: list[Entry] = []
        without_commit: dict[Assignment, int] = {}
        for record in records:
            if error := record.error():
                if error.fatal():
                    self.renew()
                log.warning("kafka consumer", error=error.str())
                continue
            number, offset = record.partition(), record.offset()
            assignment = self._assignments.by_number.get(number) if number is not None else None
            if assignment is None or offset is None:
                continue  # revoked between fetching and here
            if offset <= assignment.fetched:
                assignment = self._begun_anew(assignment.number)
            if assignment.watermark is None:
                assignment.watermark = Watermark(offset)
            if not assignment.has_commit:
                without_commit.setdefault(assignment, offset)
            assignment.fetched = offset
            entries.append((assignment, offset, _content(record)))
        if without_commit:
            self._commit_first(consumer, without_commit)
        self._assignments.fetched(entries)

    def _begun_anew(self, number: int) -> Assignment:
        """The log lost data and is read from its start again: what was known of its offsets holds no more."""
        log.warning("kafka log begins anew", partition=number)
        self._assignments.drop([number])
        assignment = Assignment(number, None, NOTHING_FRESH)
        assignment.has_commit = True
        self._assignments.add([assignment])
        return assignment

    def _commit_first(self, consumer: Consumer, offsets: dict[Assignment, int]) -> None:
        """A partition without a commit was never handed out, so its first owner commits before it hands out."""
        places = [TopicPartition(self._topic, assignment.number, offset) for assignment, offset in offsets.items()]
        try:
            faults = [place.error for place in consumer.commit(offsets=places, asynchronous=False) or ()]
        except KafkaException as error:
            faults = [error.args[0]]
        for assignment in offsets:
            assignment.has_commit = True
            if any(faults):
                assignment.fresh_from = NOTHING_FRESH
                assignment.changed = True  # the next owner shall see that there was one

    def _throttle(self, consumer: Consumer) -> None:
        held = len(self._assignments.ready)
        if held > BUFFER and (running := self._assignments.by_number.keys() - self._paused):
            consumer.pause([TopicPartition(self._topic, number) for number in running])
            self._paused |= running
        elif held <= BUFFER // 2 and self._paused:
            self._resume(consumer, self._paused)

    def _resume(self, consumer: Consumer, numbers: Iterable[int]) -> None:
        paused = self._paused.intersection(numbers)
        self._paused -= paused
        if paused:
            consumer.resume([TopicPartition(self._topic, number) for number in paused])

    def _commit(self, consumer: Consumer, assignments: list[Assignment]) -> None:
        if places := self._assignments.positions(self._topic, assignments):
            try:
                consumer.commit(offsets=places, asynchronous=True)
            except KafkaException as error:
                self._committed(error.args[0], places)

    def _committed(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        for place in places:
            if (error or place.error) and (assignment := self._assignments.by_number.get(place.partition)):
                assignment.changed = True

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        try:
            places = consumer.committed(places, timeout=_ANSWER_S)
            assignments = [self._taken_over(consumer, place) for place in places]
        except KafkaException as error:
            log.warning("kafka did not tell how far its partitions are done", error=str(error.args[0]))
            assignments = [Assignment(place.partition, None, NOTHING_FRESH) for place in places]
        self._assignments.add(assignments)
        consumer.incremental_assign(places)
        log.info("kafka partitions taken", partitions=sorted(self._assignments.by_number))

    def _taken_over(self, consumer: Consumer, place: TopicPartition) -> Assignment:
        if place.error:
            raise KafkaException(place.error)
        if place.offset < 0:
            return Assignment(place.partition, None, 0)
        _, end = consumer.get_watermark_offsets(place, timeout=_ANSWER_S)
        return Assignment(place.partition, Watermark.restored(place.offset, place.metadata or "", end), end)

    def _revoked(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Hand out no more of them, give what is in flight a moment to end, commit, and ignore later acks."""
        numbers = [place.partition for place in places]
        self._commit(consumer, self._assignments.drain(numbers, 0 if self._closing.is_set() else DRAIN_S))
        self._resume(consumer, numbers)  # otherwise it would still be paused if it comes back
        self._assignments.drop(numbers)
        if not self._closing.is_set():  # then the process may be ending under this thread
            log.info("kafka partitions handed on", partitions=sorted(numbers))

    def _lost(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Another consumer may have them already, so nothing is committed for them any more."""
        numbers = [place.partition for place in places]
        self._resume(consumer, numbers)  # as above
        self._assignments.drop(numbers)
        if not self._closing.is_set():
            log.warning("kafka partitions lost", partitions=sorted(numbers))


def _content(record: Record) -> Message | Record:
    try:
        return unpack(record)
    except Malformed:
        return record
