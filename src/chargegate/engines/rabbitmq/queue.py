"""A durable queue on RabbitMQ: a quorum queue, and ``<name>.dead`` for what came back too often or is no message.

Putting and receiving have a connection each: a server short of memory or disk stops reading from those that publish,
and must still read acks.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from aiormq.channel import Channel
from yarl import URL

from chargegate.engines import RABBITMQ
from chargegate.engines.rabbitmq.connection import RebuiltConnection
from chargegate.engines.rabbitmq.consumer import QueueConsumer
from chargegate.engines.rabbitmq.declaration import Declaration
from chargegate.engines.rabbitmq.message import pack
from chargegate.model import now_ms
from chargegate.queues.base import (
    Delivery,
    Depth,
    Listed,
    Message,
    QueueFull,
    QueueUnavailable,
    Stored,
    Waiting,
    put_in_task,
)
from chargegate.storage.budget import EXCHANGE_S

_OPTIONS: Final = frozenset({"auth", "cafile", "capath", "certfile", "heartbeat", "keyfile", "name", "no_verify_ssl"})


class RabbitQueue:
    """Keeps the promises of ``Queue`` with any number of processes.

    ``depth`` counts what others have fetched ahead as taken. The oldest age is exact where messages are received;
    elsewhere it is that of this process's own puts, and with several such processes may be too high.
    """

    capabilities = RABBITMQ.capabilities

    def __init__(self, url: URL, name: str, max_size: int, prefetch: int) -> None:
        self._url = url
        self._max_size = max_size
        self._prefetch = prefetch
        self._closed = False
        self._waiting = 0  # on the server, as last heard, and what this process put and received since
        self._begun = self._stored = 0
        self._own: deque[int] = deque()  # when what this process put was accepted
        self._declaration = Declaration(name, max_size)
        self._consumer: QueueConsumer | None = None
        self._putting = RebuiltConnection("put", url, self._prepare, self._count, lambda: None)

    @classmethod
    async def open(cls, url: str, *, max_size: int, prefetch: int = 256) -> "RabbitQueue":
        """``amqp[s]://user:password@host:port/vhost?queue=NAME``; of aio-pika's parameters ``heartbeat`` in seconds,
        ``auth``, ``name``, and for TLS ``cafile``, ``capath``, ``certfile``, ``keyfile``, ``no_verify_ssl``.

        ``prefetch``: messages fetched ahead. A server that is away is waited for in the background. Raises
        ``ValueError``.
        """
        parsed = URL(url)
        name = parsed.query.get("queue", "chargegate")
        if not (parsed.host and name):
            raise ValueError("a host is missing, or the name after ?queue=")
        options = {"heartbeat": "10"} | {key: value for key, value in parsed.query.items() if key != "queue"}
        if unknown := options.keys() - _OPTIONS:  # aio-pika ignores them
            raise ValueError(f"unknown option {min(unknown)!r}")
        if not options["heartbeat"].isdecimal():  # as above
            raise ValueError("heartbeat: must be a whole number of seconds")
        queue = cls(parsed.with_query(options), name, max_size, prefetch)
        await queue._putting.wait()
        return queue

    async def _prepare(self, channel: Channel) -> None:
        await self._declaration.declare(channel)
        await self._declaration.probe(channel)
        await self._count(channel)

    async def _count(self, channel: Channel) -> None:
        stored = self._stored
        # What was not confirmed when the server was asked may be missing in its answer.
        self._waiting = await self._declaration.ready(channel) + self._begun - stored
        while len(self._own) > self._waiting + self._fetched_ahead():
            self._own.popleft()

    def _fetched_ahead(self) -> int:
        return 0 if self._consumer is None else len(self._consumer.ready)

    def _arrived(self) -> None:
        self._waiting = max(0, self._waiting - 1)

    async def put(self, message: Message) -> None:
        channel = self._putting.channel
        if channel is None:
            raise QueueUnavailable("not connected")
        if self._waiting + self._fetched_ahead() >= self._max_size:
            raise QueueFull
        self._waiting += 1
        self._begun += 1
        try:
            with self._putting.raising_queue_errors(channel):
                # wait=False: otherwise it holds the channel's lock until the socket has taken the message.
                publishing = channel.basic_publish(
                    message.body,
                    routing_key=self._declaration.name,
                    properties=pack(message),
                    mandatory=True,
                    wait=False,
                )
                async with asyncio.timeout(EXCHANGE_S):
                    await publishing
        except BaseException:
            self._waiting = max(0, self._waiting - 1)
            self._begun -= 1
            raise
        self._stored += 1
        self._own.append(message.accepted_at)

    def put_then(self, message: Message, done: Stored) -> None:
        put_in_task(self.put(message), done)

    async def receive(self, limit: int) -> list[Delivery]:
        if self._closed:
            raise QueueUnavailable("closed")
        if self._consumer is None:
            self._consumer = QueueConsumer(self._url, self._declaration, self._prefetch, self._arrived)
        return await self._consumer.receive(limit)

    async def ack(self, delivery: Delivery) -> None:
        if self._consumer is not None:
            self._consumer.ack(delivery)

    async def find(self, request_id: str) -> Waiting | None:  # noqa: ARG002 - declared in ``capabilities``
        return None

    async def unacked(self, limit: int, after: str | None) -> Sequence[Listed]:  # noqa: ARG002 - declared in ``capabilities``
        return []

    async def depth(self) -> Depth:
        consumer = self._consumer if self._consumer and self._consumer.connection.channel else None
        connection = consumer.connection if consumer else self._putting
        waiting = await connection.ask(self._declaration.ready)
        if consumer:
            # What the server sent before its first answer is here by the second.
            await connection.ask(self._declaration.ready)
        waiting += self._fetched_ahead()
        return Depth(waiting, max(0, now_ms() - self._oldest(consumer, waiting)) if waiting else 0)

    def _oldest(self, consumer: QueueConsumer | None, waiting: int) -> int:
        """When the oldest of those that wait was accepted, as far as this process knows."""
        if self._consumer and self._consumer.ready:
            return self._consumer.ready[0].message.accepted_at
        if consumer:
            return consumer.last_accepted_at
        return self._own[-min(waiting, len(self._own))] if self._own else now_ms()

    async def check(self) -> None:
        await self._putting.ask(self._declaration.probe)

    async def close(self) -> None:
        self._closed = True
        if self._consumer is not None:
            await self._consumer.close()
        await self._putting.close()
