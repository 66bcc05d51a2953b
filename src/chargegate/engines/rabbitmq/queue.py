"""A durable queue on RabbitMQ: a quorum queue, and ``<name>.dead`` for what came back too often or is no message.

Putting and receiving have a connection each: a server short of memory or disk stops reading from those that publish,
and must still read acks.
"""

import asyncio
import contextlib
import math
import uuid
from bisect import bisect
from collections import OrderedDict, deque
from typing import Any, Final, NamedTuple, cast

import msgspec
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic
from yarl import URL

from chargegate.engines.rabbitmq.link import LIMIT_S, Link
from chargegate.model import now_ms
from chargegate.observe import log
from chargegate.queues.base import Capabilities, Delivery, Depth, Message, QueueFull, QueueUnavailable, Waiting

_SCHEMA: Final = 1
_OPTIONS: Final = frozenset({"auth", "cafile", "capath", "certfile", "heartbeat", "keyfile", "name", "no_verify_ssl"})
_DEAF: Final = 6  # looks of the link, two a second


class _Handle(NamedTuple):
    channel: Channel
    consumer: str
    tag: int


class RabbitQueue:
    """Keeps the promises of ``Queue`` with any number of processes.

    ``depth`` takes what others have fetched ahead for taken. The oldest age is exact where messages are received;
    elsewhere it is that of this process's own puts, and with several such processes may be too high.
    """

    capabilities = Capabilities(durable=True, shared=True, find=False)

    def __init__(self, url: URL, name: str, max_size: int, prefetch: int, delivery_limit: int) -> None:
        self._url = url
        self._name = name
        self._max_size = max_size
        self._prefetch = prefetch
        self._delivery_limit = delivery_limit
        self._exists = False
        self._closed = False

        self._ready = 0  # on the server, as last heard, and what this process put and took since
        self._begun = self._stored = 0
        self._own: deque[int] = deque()

        self._consuming: Channel | None = None
        self._consumer = ""
        self._held = 0  # of the consumer, unacked
        self._wanting = False
        self._starved = 0  # looks since the last message came, while there were some and room for them
        self._last_taken = 0
        self._buffer: deque[Delivery] = deque()
        self._arrival = asyncio.Event()
        self._unsettled: OrderedDict[int, None] = OrderedDict()
        self._acked: list[int] = []
        self._refused: list[int] = []
        self._settling: asyncio.Task[None] | None = None

        self._receiver: Link | None = None
        self._putter = Link("put", url, self._prepare, self._count, lambda: None)

    @classmethod
    async def open(cls, url: str, *, max_size: int, prefetch: int = 256, delivery_limit: int = 100) -> "RabbitQueue":
        """``amqp[s]://user:password@host:port/vhost?queue=NAME``; of aio-pika's parameters ``heartbeat`` in seconds,
        ``auth``, ``name``, and for TLS ``cafile``, ``capath``, ``certfile``, ``keyfile``, ``no_verify_ssl``.

        ``prefetch``: messages fetched ahead. ``delivery_limit``: a message that came back so often is dead; the end of
        a worker or a connection counts too. A server that is away is waited for in the background. Raises
        ``ValueError``.
        """
        parsed = URL(url)
        name = parsed.query.get("queue", "chargegate")
        if not (parsed.host and name):
            raise ValueError("a host is missing, or the name after ?queue=")
        options = {"heartbeat": "10"} | {key: value for key, value in parsed.query.items() if key != "queue"}
        if unknown := options.keys() - _OPTIONS:  # aio-pika passes them over
            raise ValueError(f"unknown option {min(unknown)!r}")
        if not options["heartbeat"].isdecimal():  # as above
            raise ValueError("heartbeat: must be a whole number of seconds")
        queue = cls(parsed.with_query(options), name, max_size, prefetch, delivery_limit)
        await queue._putter.wait()
        return queue

    async def _declare(self, channel: Channel) -> None:
        dead = f"{self._name}.dead"
        kind: dict[str, Any] = {"x-queue-type": "quorum"}
        await channel.exchange_declare(dead, exchange_type="fanout", durable=True)
        await channel.queue_declare(dead, durable=True, arguments=kind)
        await channel.queue_bind(dead, dead)
        await channel.queue_declare(f"{self._name}.probe", durable=True, arguments=kind | {"x-max-length": 1})
        bounds = {"x-delivery-limit": self._delivery_limit, "x-max-length": self._max_size}
        fixed = {"x-overflow": "reject-publish", "x-dead-letter-strategy": "at-least-once"}
        arguments = kind | bounds | fixed | {"x-dead-letter-exchange": dead}
        try:
            await channel.queue_declare(self._name, durable=True, passive=self._exists, arguments=arguments)
        except ChannelNotFoundEntity:
            self._exists = False
            raise
        except ChannelPreconditionFailed as error:
            self._exists = any(
                f"'{bound}'" in str(error) for bound in bounds
            )  # it may keep other bounds; no other kind
            raise

    async def _prepare(self, channel: Channel) -> None:
        await self._declare(channel)
        await self._probe(channel)
        await self._count(channel)

    async def _probe(self, channel: Channel) -> None:
        """Have something stored: a server without room or without its majority still answers questions."""
        properties = Basic.Properties(delivery_mode=2)
        await channel.basic_publish(b"", routing_key=f"{self._name}.probe", properties=properties, mandatory=True)

    async def _count(self, channel: Channel) -> None:
        stored = self._stored
        # What was not confirmed when the server was asked may be missing in its answer.
        self._ready = await self._ask_ready(channel) + self._begun - stored
        while len(self._own) > self._ready + len(self._buffer):
            self._own.popleft()

    async def _ask_ready(self, channel: Channel) -> int:
        return (await channel.queue_declare(self._name, passive=True)).message_count or 0

    async def put(self, message: Message) -> None:
        channel = self._putter.channel
        if channel is None:
            raise QueueUnavailable("not connected")
        if self._ready + len(self._buffer) >= self._max_size:
            raise QueueFull
        self._ready += 1
        self._begun += 1
        try:
            with self._putter.guarded(channel):
                # wait=False: else it holds the channel's lock until the socket has taken the message.
                publishing = channel.basic_publish(
                    message.body, routing_key=self._name, properties=_properties(message), mandatory=True, wait=False
                )
                async with asyncio.timeout(LIMIT_S):
                    await publishing
        except BaseException:
            self._ready = max(0, self._ready - 1)
            self._begun -= 1
            raise
        self._stored += 1
        self._own.append(message.accepted_at)

    async def receive(self, limit: int) -> list[Delivery]:
        if self._receiver is None and not self._closed:
            self._receiver = Link("receive", self._url, self._consume, self._tend, self._forget)
        while not self._buffer:
            if self._closed or self._receiver is None:
                raise QueueUnavailable("closed")
            self._arrival.clear()
            if self._held >= self._prefetch:
                self._wanting = True
                self._receiver.wake()
            await self._arrival.wait()
        return [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]

    async def _consume(self, channel: Channel) -> None:
        await self._declare(channel)
        await channel.basic_qos(prefetch_count=self._prefetch)
        self._consuming = channel
        await self._start_consumer(channel)

    async def _start_consumer(self, channel: Channel) -> None:
        self._held, self._wanting, self._starved, self._consumer = 0, False, 0, uuid.uuid4().hex
        await channel.basic_consume(self._name, self._arrived, consumer_tag=self._consumer)

    async def _tend(self, channel: Channel) -> None:
        """See that the consumer lives, and is given what waits. When the worker has parked all that it may hold,
        another takes its place: callbacks that wait must not stop the rest."""
        ready = await self._ask_ready(channel)
        if self._consumer not in channel.consumers:
            raise QueueUnavailable("the server ended the consumer")
        self._starved = self._starved + 1 if ready and self._held < self._prefetch else 0
        if self._starved >= _DEAF:
            raise QueueUnavailable("the server keeps its messages to itself")
        if self._wanting and self._held >= self._prefetch:
            exhausted = self._consumer
            await self._start_consumer(channel)
            await channel.basic_cancel(exhausted)

    async def _arrived(self, incoming: DeliveredMessage) -> None:
        handle = _Handle(cast(Channel, incoming.channel), str(incoming.consumer_tag), incoming.delivery_tag or 0)
        if handle.channel is not self._consuming:
            return
        self._unsettled[handle.tag] = None
        self._starved = 0
        try:
            message = _message(incoming)
        except msgspec.ValidationError as error:
            log.error("not a message, now a dead letter of RabbitMQ", queue=self._name, why=str(error))
            self._refused.append(handle.tag)
            self._settle(handle.channel)
            return
        self._held += handle.consumer == self._consumer
        self._wanting = False
        self._ready = max(0, self._ready - 1)
        self._last_taken = message.accepted_at
        self._buffer.append(Delivery(message, handle, fresh=not incoming.redelivered))
        self._arrival.set()

    async def ack(self, delivery: Delivery) -> None:
        handle: _Handle = delivery.handle
        if handle.channel is self._consuming and handle.tag in self._unsettled:  # else it was acked, or comes again
            self._held -= handle.consumer == self._consumer
            del self._unsettled[handle.tag]
            self._acked.append(handle.tag)
            self._settle(handle.channel)

    def _settle(self, channel: Channel) -> None:
        if self._settling is None or self._settling.done():
            self._settling = asyncio.create_task(self._send_settled(channel))

    async def _send_settled(self, channel: Channel) -> None:
        """One frame for all acks below the oldest message that is held: the server keeps only a few dozen unfinished
        commands of a channel, and forgets the rest when it closes."""
        with contextlib.suppress(AMQPError, OSError, RuntimeError):  # then they come again
            while self._acked or self._refused:
                while self._refused:
                    refused = self._refused.pop()
                    await channel.basic_nack(refused, requeue=False, wait=False)
                    self._unsettled.pop(refused, None)
                acked, self._acked = sorted(self._acked), []
                below = bisect(acked, next(iter(self._unsettled), math.inf))
                if below:
                    await channel.basic_ack(acked[below - 1], multiple=True, wait=False)
                for tag in acked[below:]:
                    await channel.basic_ack(tag, wait=False)

    def _forget(self) -> None:
        """Whatever the lost connection had handed out comes again."""
        self._consuming, self._consumer = None, ""
        if self._settling is not None:
            self._settling.cancel()
        for kept in (self._buffer, self._unsettled, self._acked, self._refused):
            kept.clear()

    async def find(self, request_id: str) -> Waiting | None:  # noqa: ARG002 - declared in ``capabilities``
        return None

    async def depth(self) -> Depth:
        receiving = self._receiver if self._receiver and self._receiver.channel else None
        ready = await (receiving or self._putter).ask(self._ask_ready)
        if receiving:
            await receiving.ask(self._ask_ready)  # what was sent to us before the first answer is here by the second
        waiting = ready + len(self._buffer)
        oldest = self._last_taken if receiving else self._own[-min(waiting, len(self._own))] if self._own else now_ms()
        if self._buffer:
            oldest = self._buffer[0].message.accepted_at
        return Depth(waiting, max(0, now_ms() - oldest) if waiting else 0)

    async def check(self) -> None:
        await self._putter.ask(self._probe)

    async def close(self) -> None:
        self._closed = True
        self._arrival.set()
        if self._settling is not None:
            await asyncio.wait({self._settling}, timeout=LIMIT_S)
        for link in (self._receiver, self._putter):
            if link is not None:
                await link.close()


def _properties(message: Message) -> Basic.Properties:
    headers: dict[str, Any] = {
        "schema": _SCHEMA,
        "station_id": message.station_id,
        "accepted_at": message.accepted_at,
        "traceparent": message.traceparent,
    }
    # aiormq finds a returned message by its message_id, so that must differ when a request is put again.
    return Basic.Properties(delivery_mode=2, correlation_id=message.request_id, headers=headers)


def _message(incoming: DeliveredMessage) -> Message:
    """Raises ``msgspec.ValidationError``."""
    properties = incoming.header.properties
    headers = properties.headers or {}
    if headers.get("schema") != _SCHEMA:
        raise msgspec.ValidationError("unknown schema")
    return msgspec.convert(headers | {"request_id": properties.correlation_id, "body": incoming.body}, Message)
