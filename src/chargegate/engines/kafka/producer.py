"""An idempotent producer in a thread; the event loop learns of each message when all in-sync replicas have it."""

import asyncio
import contextlib
import logging
import threading
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from chargegate.observe import log
from chargegate.queues.base import QueueUnavailable
from chargegate.storage.budget import EXCHANGE_S, STORE_S

_POLL_S: Final = 0.1
_TUNING: Final = {
    "linger.ms": 2,
    "partitioner": "murmur2_random",  # what Java's producers use: a station is in one partition, whoever writes
}
_PROMISED: Final = {"enable.idempotence": True, "acks": "all", "message.timeout.ms": int(EXCHANGE_S * 1000)}

Position = tuple[int, int]
"""Partition and offset."""

_Report = tuple["asyncio.Future[Position]", KafkaError | None, int, int]


class TooLarge(QueueUnavailable):
    """The cluster takes no message of this size, now or later."""


class ConfirmingProducer:
    """Made in the event loop that calls ``send``. Raises ``KafkaException`` for options that librdkafka refuses."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.fault: KafkaError | None = None
        """What librdkafka last complained of; None once a message was confirmed again."""
        self._options = _TUNING | options | _PROMISED | {"error_cb": self._failed}
        self._loop = asyncio.get_running_loop()
        self._producer = self._new()
        self._reports: list[_Report] = []
        self._renew = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-producer", daemon=True)
        self._thread.start()

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None, headers: list[tuple[str, Any]], timestamp: int = 0
    ) -> Position:
        """Raises ``QueueUnavailable`` where Kafka did not confirm the message in time, or will not (``TooLarge``). A
        message that is stored after that is a repeat."""
        stored: asyncio.Future[Position] = self._loop.create_future()
        try:
            self._producer.produce(
                topic, value, key, on_delivery=partial(self._report, stored), timestamp=timestamp, headers=headers
            )
            async with asyncio.timeout(STORE_S):
                return await stored
        except TimeoutError:
            raise QueueUnavailable("Kafka did not confirm in time") from None
        except BufferError:
            raise QueueUnavailable("too many messages wait to be confirmed by Kafka") from None
        except KafkaException as error:
            fault: KafkaError = error.args[0]
            if fault.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise TooLarge(f"Kafka: {fault.str()}") from None
            self._failed(fault)
            raise QueueUnavailable(f"Kafka: {fault.str()}") from None

    def renew(self) -> None:
        """Start over with a new producer id: librdkafka cannot follow a topic that was made anew under its name."""
        self._renew.set()

    async def close(self) -> None:
        self._closing.set()
        await asyncio.to_thread(self._thread.join)

    def _new(self) -> Producer:
        return Producer(self._options, logger=logging.getLogger("librdkafka"))

    def _failed(self, error: KafkaError) -> None:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return  # the fault of one message
        if not self.fault or error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - so named by the library
            self.fault = error  # which says more, such as that a password is wrong
        if error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001 - as above
            self.renew()

    def _report(self, stored: "asyncio.Future[Position]", error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.fault = None
        else:
            self._failed(error)
        self._reports.append((stored, error, message.partition() or 0, message.offset() or 0))

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._producer.poll(_POLL_S)
            except KafkaException as error:  # a fatal one is raised here, not given to the callback
                self._failed(error.args[0])
            if self._renew.is_set():
                self._renew.clear()
                log.warning("kafka producer starts over")
                old, self._producer = self._producer, self._new()
                _discard_unsent(old)
                del old  # its connections end here and now, not when the garbage collector runs in the event loop
            self._hand_over()
        with contextlib.suppress(KafkaException):
            self._producer.flush(STORE_S)
        _discard_unsent(self._producer)
        del self._producer  # as above
        self._hand_over()

    def _hand_over(self) -> None:
        """Tell the event loop all that was reported at once: waking it for each would cost more than the rest."""
        reports, self._reports = self._reports, []
        if reports and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_resolve, reports)


def _discard_unsent(producer: Producer) -> None:
    producer.purge()
    with contextlib.suppress(KafkaException):
        producer.poll(0)


def _resolve(reports: list[_Report]) -> None:
    for stored, error, partition, offset in reports:
        if stored.done():
            continue
        if error is None:
            stored.set_result((partition, offset))
        else:
            stored.set_exception(KafkaException(error))
