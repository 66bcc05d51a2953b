"""An idempotent producer, which tells of each message when all in-sync replicas have it."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from chargegate.observe import log
from chargegate.queues.base import QueueUnavailable
from chargegate.storage.budget import EXCHANGE_S, STORE_S

_POLL_S: Final = 0.002
"""How often reports are asked for while any are due. The event loop asks, without waiting: a thread that waits for them
would have to take the interpreter's lock for each, which takes longer than all the rest."""

_POLL_IDLE_S: Final = 0.1
_TUNING: Final = {
    "linger.ms": 2,
    "partitioner": "murmur2_random",  # what Java's producers use: a station is in one partition, whoever writes
}
_PROMISED: Final = {"enable.idempotence": True, "acks": "all", "message.timeout.ms": int(EXCHANGE_S * 1000)}

Position = tuple[int, int]
"""Partition and offset."""

Content = tuple[bytes | None, bytes | None, list[tuple[str, Any]]]
"""Value, key and headers of a record."""

Sent = Callable[[Position | QueueUnavailable], None]


class TooLarge(QueueUnavailable):
    """The cluster takes no message of this size, now or later."""


class ConfirmingProducer:
    """Used by one event loop. Raises ``KafkaException`` for options that librdkafka refuses."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.fault: KafkaError | None = None
        """What librdkafka last complained of; None once a message was confirmed again."""
        self._options = _TUNING | options | _PROMISED | {"error_cb": self._failed}
        self._loop = asyncio.get_running_loop()
        self._producer = self._new()
        self._due: dict[Sent, float] = {}  # who is to be told, and until when by the event loop's clock
        self._renew = False
        self._ending: set[asyncio.Future[None]] = set()
        self._timer = self._loop.call_later(_POLL_IDLE_S, self._poll)
        self._idle = True

    async def send(self, topic: str, content: Content) -> Position:
        """Raises ``QueueUnavailable`` where Kafka did not confirm the message in time, or will not (``TooLarge``). A
        message that is stored after that is a repeat."""
        stored: asyncio.Future[Position] = self._loop.create_future()

        def sent(outcome: Position | QueueUnavailable) -> None:
            if stored.done():
                return
            if isinstance(outcome, QueueUnavailable):
                stored.set_exception(outcome)
            else:
                stored.set_result(outcome)

        self.send_then(topic, content, 0, sent)
        return await stored

    def send_then(self, topic: str, content: Content, at: int, sent: Sent) -> None:
        """As ``send``, for one that is no coroutine: ``sent``, a new function for each message, is called with what it
        would have returned or raised, perhaps before this returns. ``at``: the record's time in Unix ms, 0 for now."""
        value, key, headers = content
        try:
            self._producer.produce(
                topic, value, key, on_delivery=partial(self._report, sent), timestamp=at, headers=headers
            )
        except BufferError:
            sent(QueueUnavailable("too many messages wait to be confirmed by Kafka"))
        except KafkaException as error:
            sent(self._meaning(error.args[0]))
        else:
            self._due[sent] = self._loop.time() + STORE_S
            if self._idle:
                self._poll_in(_POLL_S)

    def renew(self) -> None:
        """Start over with a new producer id: librdkafka cannot follow a topic that was made anew under its name."""
        self._renew = True

    async def close(self) -> None:
        self._timer.cancel()
        ends = self._loop.time() + STORE_S
        while self._due and self._loop.time() < ends:
            self._serve()
            await asyncio.sleep(_POLL_S)
        old = [self._producer]
        del self._producer
        self._end(old)
        for sent in list(self._due):
            self._tell(sent, QueueUnavailable("closed"))
        await asyncio.gather(*self._ending)

    def _new(self) -> Producer:
        return Producer(self._options, logger=logging.getLogger("librdkafka"))

    def _failed(self, error: KafkaError) -> None:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return  # the fault of one message
        if not self.fault or error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - so named by the library
            self.fault = error  # which says more, such as that a password is wrong
        if error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001 - as above
            self.renew()

    def _meaning(self, fault: KafkaError) -> QueueUnavailable:
        if fault.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return TooLarge(f"Kafka: {fault.str()}")
        self._failed(fault)
        return QueueUnavailable(f"Kafka: {fault.str()}")

    def _report(self, sent: Sent, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.fault = None
            self._tell(sent, (message.partition() or 0, message.offset() or 0))
        else:
            self._tell(sent, self._meaning(error))

    def _tell(self, sent: Sent, outcome: Position | QueueUnavailable) -> None:
        if self._due.pop(sent, None) is None:
            return  # it was told that the time is over
        try:
            sent(outcome)
        except Exception:  # noqa: BLE001 - one caller's defect must not keep the others' answers
            log.exception("after a message was sent")

    def _poll(self) -> None:
        try:
            self._look()
        finally:
            self._poll_in(_POLL_S if self._due else _POLL_IDLE_S)

    def _look(self) -> None:
        self._serve()
        now = self._loop.time()
        while self._due and (first := next(iter(self._due.items())))[1] <= now:
            self._tell(first[0], QueueUnavailable("Kafka did not confirm in time"))
        if self._renew:
            self._renew = False
            log.warning("kafka producer starts over")
            old = [self._producer]
            self._producer = self._new()
            self._end(old)

    def _poll_in(self, seconds: float) -> None:
        self._timer.cancel()
        self._idle = seconds == _POLL_IDLE_S
        self._timer = self._loop.call_later(seconds, self._poll)

    def _serve(self) -> None:
        try:
            self._producer.poll(0)
        except KafkaException as error:  # a fatal one is raised here, not given to the callback
            self._failed(error.args[0])

    def _end(self, last: list[Producer]) -> None:
        """Discard what the last of these did not send, and end its connections, which may take a while. It ends with
        its last reference: in a thread, and not when the garbage collector runs in the event loop."""
        last[0].purge()
        with contextlib.suppress(KafkaException):
            last[0].poll(0)
        ending = self._loop.run_in_executor(None, last.clear)
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
