"""A durable queue on Redis Streams, for any number of processes. Needs Redis 7.0 or later.

A message is an entry of one stream, read through one consumer group; a hash beside it leads from a request id to its
entry. A consumer renews its claims on the entries that it holds; what a dead process held is claimed by another within
the lease. An entry that is not a message of ours goes to a dead stream, ``{chargegate}:queue:dead``.
A message is as safe as the server's configuration makes it: ``appendonly yes`` and ``appendfsync always``.
"""

import asyncio
import contextlib
import itertools
import re
from collections.abc import Sequence
from typing import Final

from chargegate.engines import REDIS
from chargegate.engines.redis.connection import RedisServer
from chargegate.engines.redis.leases import Leases
from chargegate.engines.redis.reader import StreamReader
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
    put_by,
    queue_unavailable,
)
from chargegate.storage.budget import EXCHANGE_S
from chargegate.storage.group_commit import GroupCommit
from chargegate.storage.tasks import SharedRead
from chargegate.storage.unavailable import Unavailable

_GROUP: Final = "workers"
_BATCH: Final = 256
_DEPTH_KNOWN_S: Final = 0.25
_LISTED_FIELDS: Final = 6

_is_entry: Final = re.compile(r"[0-9]{1,15}-[0-9]{1,15}", re.ASCII).fullmatch


class RedisQueue:
    """Keeps the promises of ``Queue``. One consumer name is for one process at a time."""

    capabilities = REDIS.capabilities

    def __init__(self, url: str, name: str, max_size: int, consumer: str, lease_ms: int) -> None:
        self._server = RedisServer(url, timeout_s=EXCHANGE_S, at_once=8)
        # One hash tag: on a Cluster all are on one node, and scripts may use them together.
        self._keys = (f"{{{name}}}:queue", f"{{{name}}}:queue:ids", f"{{{name}}}:queue:dead")
        self._max_size = max_size
        self._leases = Leases(self._server, self._keys, _GROUP, consumer, lease_ms)
        self._reader = StreamReader(url, self._keys, _GROUP, self._leases)
        self._reads = SharedRead(self._reader.read)
        self._puts: GroupCommit[Message, bool] = GroupCommit(self._store, max_items=_BATCH)
        self._acks: GroupCommit[tuple[str, str], None] = GroupCommit(self._remove, max_items=_BATCH)
        self._depth: tuple[float, int, int] | None = None
        self._closed = False

    @classmethod
    async def open(
        cls, url: str, *, max_size: int, consumer: str, lease_ms: int = 30_000, name: str = "chargegate"
    ) -> "RedisQueue":
        """Take up what this consumer held before. A server that is away is waited for by ``receive``.

        ``lease_ms``: within this time others take over from a process that died. ``name`` tells queues on one server
        apart. Raises ``ValueError`` for a wrong URL.
        """
        queue = cls(url, name, max_size, consumer, lease_ms)
        with contextlib.suppress(Unavailable):
            await queue._reader.prepare()
        return queue

    async def put(self, message: Message) -> None:
        with queue_unavailable:
            stored = await self._puts.submit(message)
        if not stored:
            raise QueueFull

    async def _store(self, messages: list[Message]) -> list[bool]:
        fields = ((m.request_id, m.station_id, m.accepted_at, m.body, m.traceparent) for m in messages)
        words = itertools.chain.from_iterable(fields)
        count = await self._server.run("queue_put", self._keys, _GROUP, self._max_size, *words)
        self._depth = None
        return [number < count for number in range(len(messages))]

    def put_then(self, message: Message, done: Stored) -> None:
        put_by(self._puts, message, done)

    async def receive(self, limit: int) -> list[Delivery]:
        ready = self._reader.ready
        while not ready:
            if self._closed:
                raise QueueUnavailable("closed")
            with queue_unavailable:
                await self._reads.wait(limit)
        self._depth = None
        return [ready.popleft() for _ in range(min(limit, len(ready)))]

    async def ack(self, delivery: Delivery) -> None:
        if not self._closed:
            self._acks.post((delivery.handle, delivery.message.request_id))

    async def _remove(self, acks: list[tuple[str, str]]) -> None:
        await self._server.run("queue_ack", self._keys, _GROUP, self._reader.has_xackdel, *itertools.chain(*acks))
        for entry, _ in acks:
            self._leases.held.pop(entry, None)

    async def find(self, request_id: str) -> Waiting | None:
        with queue_unavailable:
            found = await self._server.run("queue_find", self._keys, _GROUP, request_id)
        if not found:
            return None
        station_id, accepted_at, taken, body = found
        return Waiting(station_id.decode(), int(accepted_at), bool(taken), body)

    async def unacked(self, limit: int, after: str | None) -> Sequence[Listed]:
        if after is not None and not _is_entry(after):
            return []
        with queue_unavailable:
            rows = await self._server.run("queue_list", self._keys, _GROUP, after or "", limit)
        return [
            Listed(
                entry.decode(),
                request_id.decode(errors="replace"),
                Waiting(station_id.decode(errors="replace"), int(accepted_at), bool(taken), body),
            )
            for entry, request_id, station_id, accepted_at, taken, body in filter(_is_ours, rows)
        ]

    async def depth(self) -> Depth:
        now = asyncio.get_running_loop().time()
        if self._depth is None or now - self._depth[0] > _DEPTH_KNOWN_S:
            with queue_unavailable:
                self._depth = (now, *await self._server.run("queue_depth", self._keys, _GROUP))
        _, waiting, accepted_at = self._depth
        accepted = [delivery.message.accepted_at for delivery in self._reader.ready]
        if accepted_at:
            accepted.append(accepted_at)
        return Depth(waiting + len(self._reader.ready), max(0, now_ms() - min(accepted)) if accepted else 0)

    async def check(self) -> None:
        with queue_unavailable:
            await self._server.run("queue_check", self._keys)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(self._puts.close(), self._acks.close(), self._reads.close(cancel=True))
        await self._leases.close()
        await asyncio.gather(self._server.close(), self._reader.close())


def _is_ours(row: Sequence[bytes]) -> bool:
    """Whether an entry is a message, and none that somebody else wrote: a reply ends at the first field that is not
    there."""
    return len(row) == _LISTED_FIELDS and row[3].isdigit()
