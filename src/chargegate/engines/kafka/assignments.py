"""The partitions that are assigned to one consumer, and those of their messages that are held ready.

The event loop hands messages out and acks them; the consumer's thread adds what it fetched, and commits. A lock guards
what both use. It is never held while Kafka is asked.
"""

import sys
import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

from confluent_kafka import Message as Record
from confluent_kafka import TopicPartition

from chargegate.engines.kafka.watermark import Watermark
from chargegate.model import now_ms
from chargegate.queues.base import Delivery, Message

NOTHING_FRESH: Final = sys.maxsize

_NOTE_LENGTH: Final = 4000  # the broker's offset.metadata.max.bytes is 4096


class Assignment:
    """A partition while it is assigned to this consumer.

    Offsets from ``fresh_from`` on were surely never handed out before. ``has_commit``: the group has a commit for it.
    ``changed``: its watermark is not committed yet. Once it is not ``open``, nothing more of it is handed out. Once it
    is not ``owned``, acks are ignored as well.
    """

    __slots__ = ("changed", "fetched", "fresh_from", "has_commit", "number", "open", "owned", "watermark")

    def __init__(self, number: int, watermark: Watermark | None, fresh_from: int) -> None:
        self.number = number
        self.watermark = watermark
        self.fresh_from = fresh_from
        self.fetched = watermark.position - 1 if watermark else -1
        self.has_commit = watermark is not None
        self.changed = False
        self.open = True
        self.owned = True


Handle = tuple[Assignment, int]
Entry = tuple[Assignment, int, Message | Record]
"""An offset of a partition, with its message, or with its record where that cannot be parsed."""


class Assignments:
    """Empty until the consumer is given partitions. ``by_number`` is changed only by the consumer's thread."""

    def __init__(self) -> None:
        self.by_number: dict[int, Assignment] = {}
        self.ready: deque[Entry] = deque()
        self._lock = threading.Lock()
        self._acked = threading.Condition(self._lock)

    # The event loop calls these.

    def take(self, limit: int) -> tuple[list[Delivery], list[tuple[Record, Handle]]]:
        """Up to ``limit`` messages, and all malformed records up to the next message: those must not wait for a worker
        with room."""
        taken: list[Delivery] = []
        malformed: list[tuple[Record, Handle]] = []
        with self._lock:
            while self.ready and (len(taken) < limit or not isinstance(self.ready[0][2], Message)):
                assignment, offset, content = self.ready.popleft()
                if not assignment.open or assignment.watermark is None or not assignment.watermark.take(offset):
                    continue
                if isinstance(content, Message):
                    taken.append(Delivery(content, (assignment, offset), fresh=offset >= assignment.fresh_from))
                else:
                    malformed.append((content, (assignment, offset)))
        return taken, malformed

    def ack(self, handle: Handle) -> None:
        assignment, offset = handle
        with self._lock:
            if assignment.owned and assignment.watermark is not None:
                assignment.watermark.done(offset)
                assignment.changed = True
                if not assignment.open:
                    self._acked.notify()

    def heads(self, ends: dict[int, int]) -> dict[int, tuple[int, int]]:
        """By partition: how many messages wait below its end, and the offset of the first."""
        with self._lock:
            return {
                number: (assignment.watermark.waiting(ends.get(number, 0)), assignment.watermark.head)
                for number, assignment in self.by_number.items()
                if assignment.open and assignment.watermark is not None
            }

    def oldest_ready(self) -> dict[int, int]:
        """By partition: when the oldest message held ready was accepted (Unix ms)."""
        oldest: dict[int, int] = {}
        with self._lock:
            for assignment, _, content in self.ready:
                if assignment.open:
                    at = content.accepted_at if isinstance(content, Message) else now_ms()
                    oldest[assignment.number] = min(at, oldest.get(assignment.number, at))
        return oldest

    # The consumer's thread calls these.

    def add(self, assignments: Iterable[Assignment]) -> None:
        with self._lock:
            self.by_number |= {assignment.number: assignment for assignment in assignments}

    def fetched(self, entries: list[Entry]) -> None:
        with self._lock:
            self.ready.extend(entries)

    def drain(self, numbers: list[int], limit_s: float) -> list[Assignment]:
        """Hand out nothing more of these partitions, and wait until what is in flight was acked or the time is up."""
        found = [self.by_number[number] for number in numbers if number in self.by_number]
        with self._lock:
            for assignment in found:
                assignment.open = False
            self._acked.wait_for(
                lambda: not any(each.watermark and each.watermark.in_flight for each in found), limit_s
            )
        return found

    def positions(self, topic: str, assignments: Iterable[Assignment]) -> list[TopicPartition]:
        """What is to be committed for them. It counts as committed from now on."""
        positions = []
        with self._lock:
            for each in assignments:
                each.changed = False
                if each.watermark is not None:
                    note = each.watermark.note(_NOTE_LENGTH)
                    positions.append(TopicPartition(topic, each.number, each.watermark.position, note))
        return positions

    def drop(self, numbers: Iterable[int]) -> None:
        """These partitions are this consumer's no more."""
        with self._lock:
            for number in numbers:
                if assignment := self.by_number.pop(number, None):
                    assignment.open = assignment.owned = False
            self.ready = deque(entry for entry in self.ready if entry[0].open)
