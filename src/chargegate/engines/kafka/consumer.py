"""A member of the consumer group, in a thread that always polls.

``_lock`` guards what the thread and the event loop share: the buffer and the watermarks. The lock is never held while
Kafka is asked.
"""

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Record

from chargegate.engines.kafka.address import KafkaAddress
from chargegate.engines.kafka.record import Malformed, unpack
from chargegate.engines.kafka.topic import reading
from chargegate.engines.kafka.watermark import Watermark
from chargegate.model import now_ms
from chargegate.observe import log
from chargegate.queues.base import Delivery, Message

BUFFER: Final = 2000
"""Messages held ready; above it partitions are paused until half of them are taken."""

_BATCH: Final = 500
_POLL_S: Final = 0.1
_COMMIT_S: Final = 0.5
_ASK_S: Final = 2.0
_PAUSE_S: Final = 1.0
_NOTE_LENGTH: Final = 4000  # the broker's offset.metadata.max.bytes is 4096
_NEVER: Final = sys.maxsize


class Share:
    """A partition while it is this consumer's. ``known``: offsets below it may have been handed out before.
    Once it is not ``owned``, nothing of it is handed out and acks are ignored."""

    __slots__ = ("dirty", "fetched", "known", "marked", "number", "open", "owned", "watermark")

    def __init__(self, number: int, watermark: Watermark | None, known: int) -> None:
        self.number = number
        self.watermark = watermark
        self.known = known
        self.fetched = watermark.position - 1 if watermark else -1
        self.marked = watermark is not None
        self.dirty = False
        self.open = True
        self.owned = True


Handle = tuple[Share, int]
_Entry = tuple[Share, int, Message | Record]


class GroupConsumer:
    """Made in the event loop that calls it. ``on_malformed`` is given what cannot be parsed, in the event loop; it
    stays unacked until ``ack``."""

    def __init__(
        self, address: KafkaAddress, *, lease_ms: int, drain_ms: int, on_malformed: Callable[[Record, Handle], None]
    ) -> None:
        self._topic = address.topic
        self._drain_s = drain_ms / 1000
        self._on_malformed = on_malformed
        session_ms = lease_ms * 6 // 10  # what is left of the lease is for the others to share out and read
        tuning = {
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": min(1000, session_ms // 4),  # by which a member learns that another came or went
            "queued.min.messages": BUFFER,
            "queued.max.messages.kbytes": 8192,
            "fetch.queue.backoff.ms": 20,  # a second by default: a full buffer would make the next fetch late
            "fetch.error.backoff.ms": 100,
        }
        strategy = {"partition.assignment.strategy": "cooperative-sticky", "on_commit": self._committed}
        self._options: dict[str, Any] = tuning | reading(address) | strategy
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._acked = threading.Condition(self._lock)
        self._buffer: deque[_Entry] = deque()
        self._shares: dict[int, Share] = {}
        self._paused: set[int] = set()
        self._arrival = asyncio.Event()
        self._renew = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-consumer", daemon=True)
        self._thread.start()

    # The event loop's side

    async def receive(self, limit: int) -> list[Delivery]:
        while True:
            with self._lock:
                taken = self._take(limit)
            if taken:
                return taken
            self._arrival.clear()
            await self._arrival.wait()

    def _take(self, limit: int) -> list[Delivery]:
        """And see to what is malformed up to the next message: that must not wait for a worker with room."""
        taken: list[Delivery] = []
        while self._buffer and (len(taken) < limit or not isinstance(self._buffer[0][2], Message)):
            share, offset, content = self._buffer.popleft()
            if not share.open or share.watermark is None or not share.watermark.take(offset):
                continue
            if isinstance(content, Message):
                taken.append(Delivery(content, (share, offset), fresh=offset >= share.known))
            else:
                self._loop.call_soon(self._on_malformed, content, (share, offset))
        return taken

    def ack(self, handle: Handle) -> None:
        share, offset = handle
        with self._lock:
            if share.owned and share.watermark is not None:
                share.watermark.done(offset)
                share.dirty = True
                if not share.open:
                    self._acked.notify()

    def owns(self, handle: Handle) -> bool:
        return handle[0].owned

    def heads(self, ends: dict[int, int]) -> dict[int, tuple[int, int]]:
        """Of each partition that is ours: how many wait below its end, and the offset of the first."""
        with self._lock:
            return {
                number: (share.watermark.waiting(ends.get(number, 0)), share.watermark.head)
                for number, share in self._shares.items()
                if share.open and share.watermark is not None
            }

    def buffered(self) -> dict[int, int]:
        """When the oldest message held ready was accepted (Unix ms), by partition."""
        oldest: dict[int, int] = {}
        with self._lock:
            for share, _, content in self._buffer:
                if share.open:
                    at = content.accepted_at if isinstance(content, Message) else now_ms()
                    oldest[share.number] = min(at, oldest.get(share.number, at))
        return oldest

    def renew(self) -> None:
        """Leave and join again: librdkafka cannot follow a topic that was made anew under its name."""
        self._renew.set()

    async def close(self, limit_s: float) -> None:
        """Commit and leave the group. Without a broker that may take for ever, so it is given up after ``limit_s``;
        the broker then finds out by the lease."""
        self._closing.set()
        await asyncio.to_thread(self._thread.join, limit_s)

    # The thread's side

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._renew.clear()
                self._belong()
            except Exception as error:  # noqa: BLE001 - whatever it was, a new consumer starts from what is committed
                if self._closing.is_set():
                    return
                if isinstance(error, KafkaException):
                    log.warning("kafka consumer starts over", error=error.args[0].str())
                else:
                    log.exception("kafka consumer starts over")
                self._closing.wait(_PAUSE_S)

    def _belong(self) -> None:
        """Be a member of the group until told otherwise, and leave it."""
        consumer = Consumer(self._options, logger=logging.getLogger("librdkafka"))
        try:
            consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
            self._serve(consumer)
            if self._renew.is_set():
                self._drop(list(self._shares))  # its offsets may be another topic's: not to be committed
        finally:
            try:
                with contextlib.suppress(KafkaException):
                    if not consumer.assignment():
                        consumer.unsubscribe()  # librdkafka's close does not tell the group if it had no partition
                consumer.close()
            finally:
                self._drop(list(self._shares))
                self._paused.clear()

    def _serve(self, consumer: Consumer) -> None:
        commit_at = time.monotonic() + _COMMIT_S
        while not self._closing.is_set() and not self._renew.is_set():
            first = consumer.poll(_POLL_S)
            if first is not None:  # `consume` alone would wait until its batch is full
                self._fetched(consumer, [first])  # before `consume`, in which its partition may move on
                self._fetched(consumer, consumer.consume(_BATCH, 0))
                self._wake()
            self._throttle(consumer)
            if time.monotonic() >= commit_at:
                commit_at = time.monotonic() + _COMMIT_S
                self._commit(consumer, [share for share in self._shares.values() if share.dirty])

    def _fetched(self, consumer: Consumer, records: list[Record]) -> None:
        entries: list[_Entry] = []
        unmarked: dict[Share, int] = {}
        for record in records:
            if error := record.error():
                if error.fatal():
                    self.renew()
                log.warning("kafka consumer", error=error.str())
                continue
            number, offset = record.partition(), record.offset()
            share = self._shares.get(number) if number is not None else None
            if share is None or offset is None:
                continue  # revoked between fetching and here
            if offset <= share.fetched:
                share = self._rewound(share)
            if share.watermark is None:
                share.watermark = Watermark(offset)
            if not share.marked:
                unmarked.setdefault(share, offset)
            share.fetched = offset
            entries.append((share, offset, _content(record)))
        if unmarked:
            self._mark(consumer, unmarked)
        with self._lock:
            self._buffer.extend(entries)

    def _rewound(self, share: Share) -> Share:
        """The log lost data and is read from its start again: what was known of its offsets holds no more."""
        log.warning("kafka log begins anew", partition=share.number)
        self._drop([share.number])
        self._shares[share.number] = anew = Share(share.number, None, _NEVER)
        anew.marked = True
        return anew

    def _mark(self, consumer: Consumer, unmarked: dict[Share, int]) -> None:
        """A partition without a commit was never handed out; so its first owner commits before it hands out."""
        offsets = [TopicPartition(self._topic, share.number, offset) for share, offset in unmarked.items()]
        try:
            faults = [place.error for place in consumer.commit(offsets=offsets, asynchronous=False) or ()]
        except KafkaException as error:
            faults = [error.args[0]]
        for share in unmarked:
            share.marked = True
            if any(faults):
                share.known = _NEVER
                share.dirty = True  # the next owner shall see that there was one

    def _throttle(self, consumer: Consumer) -> None:
        held = len(self._buffer)
        if held > BUFFER and (running := self._shares.keys() - self._paused):
            consumer.pause([TopicPartition(self._topic, number) for number in running])
            self._paused |= running
        elif held <= BUFFER // 2 and self._paused:
            self._resume(consumer, self._paused)

    def _resume(self, consumer: Consumer, numbers: Iterable[int]) -> None:
        paused = self._paused.intersection(numbers)
        self._paused -= paused
        if paused:
            consumer.resume([TopicPartition(self._topic, number) for number in paused])

    def _commit(self, consumer: Consumer, shares: list[Share]) -> None:
        with self._lock:
            places = [
                TopicPartition(self._topic, share.number, share.watermark.position, share.watermark.note(_NOTE_LENGTH))
                for share in shares
                if share.watermark is not None
            ]
            for share in shares:
                share.dirty = False
        if places:
            try:
                consumer.commit(offsets=places, asynchronous=True)
            except KafkaException as error:
                self._committed(error.args[0], places)

    def _committed(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        for place in places:
            if (error or place.error) and (share := self._shares.get(place.partition)):
                share.dirty = True

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        try:
            places = consumer.committed(places, timeout=_ASK_S)
            shares = [self._taken_over(consumer, place) for place in places]
        except KafkaException as error:
            log.warning("kafka did not tell how far its partitions are done", error=str(error.args[0]))
            shares = [Share(place.partition, None, _NEVER) for place in places]
        with self._lock:
            self._shares |= {share.number: share for share in shares}
        consumer.incremental_assign(places)
        log.info("kafka partitions taken", partitions=sorted(self._shares))

    def _taken_over(self, consumer: Consumer, place: TopicPartition) -> Share:
        if place.error:
            raise KafkaException(place.error)
        if place.offset < 0:
            return Share(place.partition, None, 0)
        _, end = consumer.get_watermark_offsets(place, timeout=_ASK_S)
        return Share(place.partition, Watermark.restored(place.offset, place.metadata or "", end), end)

    def _revoked(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Hand out no more of them, give what is under way a moment to end, commit, and fence."""
        numbers = [place.partition for place in places]
        shares = [self._shares[number] for number in numbers if number in self._shares]
        with self._lock:
            for share in shares:
                share.open = False
            if not self._closing.is_set():
                self._acked.wait_for(
                    lambda: not any(share.watermark and share.watermark.under_way for share in shares), self._drain_s
                )
        self._commit(consumer, shares)
        self._resume(consumer, numbers)  # else it would still be paused if it comes back
        self._drop(numbers)
        if not self._closing.is_set():  # then the process may be ending under this thread
            log.info("kafka partitions handed on", partitions=sorted(numbers))

    def _lost(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Another may have them already: nothing of ours counts any more."""
        numbers = [place.partition for place in places]
        self._resume(consumer, numbers)  # as above
        self._drop(numbers)
        if not self._closing.is_set():
            log.warning("kafka partitions lost", partitions=sorted(numbers))

    def _drop(self, numbers: list[int]) -> None:
        with self._lock:
            for number in numbers:
                if share := self._shares.pop(number, None):
                    share.open = share.owned = False
            self._buffer = deque(entry for entry in self._buffer if entry[0].open)

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived)

    def _arrived(self) -> None:
        with self._lock:
            self._take(0)
        self._arrival.set()


def _content(record: Record) -> Message | Record:
    try:
        return unpack(record)
    except Malformed:
        return record
