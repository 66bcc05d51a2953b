"""A durable queue on Redis Streams, for any number of processes. Needs Redis 7.0 or later.

A message is an entry of one stream, read through one consumer group; a hash beside it leads from a request id to its
entry. Whoever holds an entry renews its claim; what a dead process held is claimed by another within the lease. What
is no message of ours goes to a dead stream, ``{chargegate}:queue:dead``.
A message is as safe as the server's configuration makes it: ``appendonly yes`` and ``appendfsync always``.
"""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from chargegate.engines.redis import scripts
from chargegate.engines.redis.connection import Batches, RedisServer, RedisUnavailable
from chargegate.model import now_ms
from chargegate.observe import log
from chargegate.queues.base import Capabilities, Delivery, Depth, Message, QueueFull, QueueUnavailable, Waiting

_GROUP: Final = "workers"
_TIMEOUT_S: Final = 1.5
_BLOCK_MS: Final = 500  # well below the time limit, or an idle queue would look like a dead server
_BATCH: Final = 256
_PAUSE_S: Final = 0.2
_DEPTH_KNOWN_S: Final = 0.25
_FORGOTTEN_MS: Final = 24 * 3600 * 1000
_DEAD_KEPT: Final = 10_000


class RedisQueue:
    """Keeps the promises of ``Queue``. One consumer name is for one process at a time."""

    capabilities = Capabilities(durable=True, shared=True, find=True)

    def __init__(self, url: str, name: str, max_size: int, consumer: str, lease_ms: int) -> None:
        self._server = RedisServer(url, timeout_s=_TIMEOUT_S, at_once=8)
        # Apart, so that it connects anew only when its connection was lost.
        self._reader = RedisServer(url, timeout_s=_TIMEOUT_S, at_once=1)
        # One hash tag: on a Cluster all are on one node, and scripts may use them together.
        self._keys = (f"{{{name}}}:queue", f"{{{name}}}:queue:ids", f"{{{name}}}:queue:dead")
        self._max_size = max_size
        self._consumer = consumer
        self._lease_ms = lease_ms
        self._puts: Batches[Message, bool] = Batches(self._store)
        self._acks: list[tuple[str, str]] = []
        self._ready: deque[Delivery] = deque()
        self._held: dict[str, float] = {}  # entries handed out, and when their claim was last renewed
        self._strange: set[str] = set()  # entries taken that are no messages
        self._reading: asyncio.Task[None] | None = None
        self._acking: asyncio.Task[None] | None = None
        self._keeper = asyncio.create_task(self._keep())
        self._prepared: int | None = -1  # the reader's count of connections then
        self._newest = (0, 0)  # entries up to here may have been handed out before
        self._ackdel = 0
        self._cursor = "0-0"
        self._claim_at = 0.0
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
        with contextlib.suppress(RedisUnavailable):
            await queue._prepare()
        return queue

    async def put(self, message: Message) -> None:
        if self._closed:
            raise QueueUnavailable("closed")
        try:
            stored = await self._puts.ask(message)
        except RedisUnavailable as error:
            raise QueueUnavailable(str(error)) from None
        if not stored:
            raise QueueFull

    async def _store(self, messages: Sequence[Message]) -> Sequence[bool]:
        fields = ((m.request_id, m.station_id, m.accepted_at, m.body, m.traceparent) for m in messages)
        words = itertools.chain.from_iterable(fields)
        count = await self._server.run(scripts.PUT, self._keys, _GROUP, self._max_size, *words)
        self._depth = None
        return [number < count for number in range(len(messages))]

    async def receive(self, limit: int) -> list[Delivery]:
        while not self._ready:
            if self._closed:
                raise QueueUnavailable("closed")
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read(limit))
                self._reading.add_done_callback(_seen)
            reading = self._reading
            await asyncio.wait([reading])  # it goes on if this receive is cancelled: what it brings is for the next
            if not reading.cancelled():
                reading.result()
        self._depth = None
        return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]

    async def _read(self, limit: int) -> None:
        """Ask once: for what a dead consumer left when it is time for that, else for what is new."""
        loop = asyncio.get_running_loop()
        try:
            if self._prepared != self._reader.connections:
                await self._prepare()
            elif loop.time() >= self._claim_at:
                # Others renew at the latest after 3/8 of the lease; with this search every 1/8, 7/8 have passed.
                idle = self._lease_ms * 3 // 4
                words = (self._keys[0], _GROUP, self._consumer, idle, self._cursor, "COUNT", limit)
                answer = await self._reader.command("XAUTOCLAIM", *words)
                self._cursor = answer[0].decode()
                if self._cursor == "0-0":
                    self._claim_at = loop.time() + self._lease_ms / 8000
                self._take(answer[1], fresh=False)
            else:
                entries = await self._entries(">", limit, "BLOCK", _BLOCK_MS)
                self._take(entries, fresh=self._prepared is not None and self._prepared == self._reader.connections)
        except RedisUnavailable as error:
            self._prepared = -1
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):  # those: the server lost its data, and is well
                raise QueueUnavailable(str(error)) from None
        if self._strange:
            await self._bury()

    async def _prepare(self) -> None:
        """Make the group where it is missing, and take up what this consumer holds and does not know of: from before
        its restart, or lost on the way with a connection."""
        connections: int | None = -1
        newest = b"0-0"
        while connections != self._reader.connections:  # until nothing can have come between
            connections = self._reader.connections
            newest, self._ackdel = await self._reader.run(
                scripts.PREPARE, self._keys, _GROUP, self._consumer, _FORGOTTEN_MS
            )
        after = "0"
        while entries := await self._entries(after, _BATCH):
            self._take(entries, fresh=False)
            after = entries[-1][0]
        self._newest = _order(newest)
        # After an outage everybody's claims look old: the living are given time to renew them.
        self._claim_at = asyncio.get_running_loop().time() + self._lease_ms / 4000
        self._prepared = connections

    async def _entries(self, after: str, count: int, *options: Any) -> list[Any]:
        words = ("GROUP", _GROUP, self._consumer, "COUNT", count, *options, "STREAMS", self._keys[0], after)
        answer = await self._reader.command("XREADGROUP", *words)
        return answer[0][1] if answer else []

    def _take(self, entries: Iterable[tuple[bytes, dict[bytes, bytes]]], *, fresh: bool) -> None:
        now = asyncio.get_running_loop().time()
        for key, fields in entries:
            entry = key.decode()
            if entry in self._held:
                continue
            try:
                message = _message(fields)
            except (KeyError, ValueError, msgspec.ValidationError):
                self._strange.add(entry)
                continue
            self._held[entry] = now
            self._ready.append(Delivery(message, entry, fresh and _order(entry) > self._newest))

    async def _bury(self) -> None:
        """What cannot go there now, because no memory is left, is claimed again later, and stops nothing until then."""
        strange, self._strange = self._strange, set()
        with contextlib.suppress(RedisUnavailable):
            for entry in await self._server.run(scripts.BURY, self._keys, _GROUP, _DEAD_KEPT, *strange):
                log.error(
                    "an entry that is no message went to the dead stream", stream=self._keys[2], entry=entry.decode()
                )

    async def ack(self, delivery: Delivery) -> None:
        self._acks.append((delivery.handle, delivery.message.request_id))
        if self._acking is None or self._acking.done():
            self._acking = asyncio.create_task(self._remove())

    async def _remove(self) -> None:
        while self._acks:
            batch = self._acks[:_BATCH]
            try:
                await self._server.run(scripts.ACK, self._keys, _GROUP, self._ackdel, *itertools.chain(*batch))
            except RedisUnavailable:
                if self._closed:
                    return
                await asyncio.sleep(_PAUSE_S)
                continue
            del self._acks[: len(batch)]
            for entry, _ in batch:
                self._held.pop(entry, None)

    async def find(self, request_id: str) -> Waiting | None:
        found = await self._ask(scripts.FIND, _GROUP, request_id)
        return Waiting(found[0].decode(), int(found[1]), taken=bool(found[2])) if found else None

    async def depth(self) -> Depth:
        now = asyncio.get_running_loop().time()
        if self._depth is None or now - self._depth[0] > _DEPTH_KNOWN_S:
            self._depth = (now, *await self._ask(scripts.DEPTH, _GROUP))
        _, waiting, accepted_at = self._depth
        accepted = [delivery.message.accepted_at for delivery in self._ready]
        if accepted_at:
            accepted.append(accepted_at)
        return Depth(waiting + len(self._ready), max(0, now_ms() - min(accepted)) if accepted else 0)

    async def check(self) -> None:
        await self._ask(scripts.CHECK)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._puts.finish()
        ending = [task for task in (self._keeper, self._reading) if task]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, *([self._acking] if self._acking else []), return_exceptions=True)
        with contextlib.suppress(RedisUnavailable):
            await self._renew(list(self._held), idle_ms=self._lease_ms)  # free for others at once
        await asyncio.gather(self._server.close(), self._reader.close())

    async def _keep(self) -> None:
        """Renew the claims on what takes long."""
        while True:
            await asyncio.sleep(self._lease_ms / 8000)
            due = asyncio.get_running_loop().time() - self._lease_ms / 4000
            with contextlib.suppress(RedisUnavailable):
                await self._renew([entry for entry, renewed in self._held.items() if renewed <= due], idle_ms=0)

    async def _renew(self, entries: Sequence[str], idle_ms: int) -> None:
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            now = asyncio.get_running_loop().time()
            lost = await self._server.run(scripts.RENEW, self._keys, _GROUP, self._consumer, idle_ms, *batch)
            self._held.update((entry, now) for entry in batch if entry in self._held)
            for entry in lost:
                self._held.pop(entry.decode(), None)

    async def _ask(self, script: str, *arguments: Any) -> Any:
        try:
            return await self._server.run(script, self._keys, *arguments)
        except RedisUnavailable as error:
            raise QueueUnavailable(str(error)) from None


def _message(fields: dict[bytes, bytes]) -> Message:
    """Raises ``KeyError``, ``ValueError`` or ``msgspec.ValidationError``."""
    texts = {name: fields[name.encode()].decode() for name in ("request_id", "station_id", "traceparent")}
    return msgspec.convert({"accepted_at": int(fields[b"accepted_at"]), "body": fields[b"body"], **texts}, Message)


def _order(entry: str | bytes) -> tuple[int, int]:
    """An entry's id as what it is ordered by: server time in ms, and a number within it."""
    text = entry.decode() if isinstance(entry, bytes) else entry
    time, _, number = text.partition("-")
    return int(time), int(number)


def _seen(task: "asyncio.Task[None]") -> None:
    """A read whose receiver went away fails unseen; the next one will fail for all to see."""
    if not task.cancelled():
        task.exception()
