"""Receives from RabbitMQ on a connection of its own, and settles what it received."""

import asyncio
import contextlib
import math
import uuid
from bisect import bisect
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, NamedTuple, cast

import msgspec
from aio_pika.exceptions import AMQPError
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from yarl import URL

from chargegate.engines.rabbitmq.connection import RebuiltConnection
from chargegate.engines.rabbitmq.declaration import Declaration
from chargegate.engines.rabbitmq.message import unpack
from chargegate.observe import log
from chargegate.queues.base import Delivery, QueueUnavailable
from chargegate.storage.budget import EXCHANGE_S

_CHECKS_WITHOUT_MESSAGE: Final = 6  # two a second


class _Handle(NamedTuple):
    channel: Channel
    consumer: str
    tag: int


class QueueConsumer:
    """``ready`` are messages fetched ahead. ``last_accepted_at`` is that of the message that arrived last (Unix ms).
    ``on_arrival`` is called for each."""

    def __init__(self, url: URL, declaration: Declaration, prefetch: int, on_arrival: Callable[[], None]) -> None:
        self.ready: deque[Delivery] = deque()
        self.last_accepted_at = 0
        self._declaration = declaration
        self._prefetch = prefetch
        self._on_arrival = on_arrival
        self._channel: Channel | None = None
        self._tag = ""
        self._unacked = 0  # of the consumer with this tag
        self._wants_more = False
        self._checks_without_message = 0  # while some waited on the server and there was room for them
        self._arrival = asyncio.Event()
        self._unsettled: OrderedDict[int, None] = OrderedDict()
        self._acked: list[int] = []
        self._malformed: list[int] = []
        self._settling: asyncio.Task[None] | None = None
        self._closed = False
        self.connection = RebuiltConnection("receive", url, self._prepare, self._check, self._lost)

    async def receive(self, limit: int) -> list[Delivery]:
        while not self.ready:
            if self._closed:
                raise QueueUnavailable("closed")
            self._arrival.clear()
            if self._unacked >= self._prefetch:
                self._wants_more = True
                self.connection.check_now()
            await self._arrival.wait()
        return [self.ready.popleft() for _ in range(min(limit, len(self.ready)))]

    async def _prepare(self, channel: Channel) -> None:
        await self._declaration.declare(channel)
        await channel.basic_qos(prefetch_count=self._prefetch)
        self._channel = channel
        await self._consume(channel)

    async def _consume(self, channel: Channel) -> None:
        self._unacked, self._wants_more, self._checks_without_message, self._tag = 0, False, 0, uuid.uuid4().hex
        await channel.basic_consume(self._declaration.name, self._arrived, consumer_tag=self._tag)

    async def _check(self, channel: Channel) -> None:
        """See that the consumer lives, and is given what waits. Once the worker has parked as much as one consumer may
        hold, another consumer takes its place: callbacks that wait must not stop the rest."""
        ready = await self._declaration.ready(channel)
        if self._tag not in channel.consumers:
            raise QueueUnavailable("the server ended the consumer")
        missing = ready and self._unacked < self._prefetch
        self._checks_without_message = self._checks_without_message + 1 if missing else 0
        if self._checks_without_message >= _CHECKS_WITHOUT_MESSAGE:
            raise QueueUnavailable("the server keeps its messages to itself")
        if self._wants_more and self._unacked >= self._prefetch:
            exhausted = self._tag
            await self._consume(channel)
            await channel.basic_cancel(exhausted)

    async def _arrived(self, incoming: DeliveredMessage) -> None:
        handle = _Handle(cast(Channel, incoming.channel), str(incoming.consumer_tag), incoming.delivery_tag or 0)
        if handle.channel is not self._channel:
            return
        self._unsettled[handle.tag] = None
        self._checks_without_message = 0
        try:
            message = unpack(incoming)
        except msgspec.ValidationError as error:
            log.error("not a message, now a dead letter of RabbitMQ", queue=self._declaration.name, why=str(error))
            self._malformed.append(handle.tag)
            self._settle(handle.channel)
            return
        self._unacked += handle.consumer == self._tag
        self._wants_more = False
        self.last_accepted_at = message.accepted_at
        self.ready.append(Delivery(message, handle, fresh=not incoming.redelivered))
        self._on_arrival()
        self._arrival.set()

    def ack(self, delivery: Delivery) -> None:
        handle: _Handle = delivery.handle
        # Otherwise it was acked before, or its connection was lost and it comes again.
        if handle.channel is self._channel and handle.tag in self._unsettled:
            self._unacked -= handle.consumer == self._tag
            del self._unsettled[handle.tag]
            self._acked.append(handle.tag)
            self._settle(handle.channel)

    def _settle(self, channel: Channel) -> None:
        if self._settling is None or self._settling.done():
            self._settling = asyncio.create_task(self._send_settled(channel))

    async def _send_settled(self, channel: Channel) -> None:
        """Send one frame for all acks below the oldest message that is held: the server keeps only a few dozen
        unfinished commands of a channel, and forgets the rest when it closes."""
        with contextlib.suppress(AMQPError, OSError, RuntimeError):  # then they come again
            while self._acked or self._malformed:
                while self._malformed:
                    tag = self._malformed.pop()
                    await channel.basic_nack(tag, requeue=False, wait=False)
                    self._unsettled.pop(tag, None)
                acked, self._acked = sorted(self._acked), []
                below = bisect(acked, next(iter(self._unsettled), math.inf))
                if below:
                    await channel.basic_ack(acked[below - 1], multiple=True, wait=False)
                for tag in acked[below:]:
                    await channel.basic_ack(tag, wait=False)

    def _lost(self) -> None:
        """What the lost connection had handed out comes again."""
        self._channel, self._tag = None, ""
        if self._settling is not None:
            self._settling.cancel()
        for kept in (self.ready, self._unsettled, self._acked, self._malformed):
            kept.clear()

    async def close(self) -> None:
        self._closed = True
        self._arrival.set()
        if self._settling is not None:
            await asyncio.wait({self._settling}, timeout=EXCHANGE_S)
        await self.connection.close()
