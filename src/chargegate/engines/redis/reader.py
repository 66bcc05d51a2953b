"""Reads the stream as a member of its consumer group."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from chargegate.engines.redis.connection import RedisServer, StreamLost
from chargegate.engines.redis.leases import Leases
from chargegate.observe import log
from chargegate.queues.base import Delivery, Message
from chargegate.storage.budget import EXCHANGE_S
from chargegate.storage.unavailable import Unavailable

_BLOCK_MS: Final = 500  # well below the time limit, or an idle queue would look like a dead server
_PAGE: Final = 256
_DROP_CONSUMER_MS: Final = 24 * 3600 * 1000
_DEAD_LETTERS_KEPT: Final = 10_000
_NEVER: Final = -1  # no count of connections


class StreamReader:
    """Puts into ``ready`` what this consumer is given, and its leases into ``leases``.

    ``has_xackdel`` is 1 once the server is known to have XACKDEL.
    """

    def __init__(self, url: str, keys: tuple[str, ...], group: str, leases: Leases) -> None:
        self.ready: deque[Delivery] = deque()
        self.has_xackdel = 0
        # A server of its own, so that its count of connections changes only when its one connection was lost.
        self._server = RedisServer(url, timeout_s=EXCHANGE_S, at_once=1)
        self._keys = keys
        self._group = group
        self._leases = leases
        self._consumer = leases.consumer
        self._lease_ms = leases.lease_ms
        self._malformed: set[str] = set()
        self._prepared: int | None = _NEVER  # the count of connections then
        self._newest = (0, 0)  # entries up to this one may have been handed out before
        self._cursor = "0-0"
        self._claim_at = 0.0

    async def read(self, limit: int) -> None:
        """Ask once: for what a dead consumer left when it is time for that, otherwise for what is new. Raises
        ``Unavailable``."""
        try:
            if self._prepared != self._server.connections:
                await self.prepare()
            elif asyncio.get_running_loop().time() >= self._claim_at:
                await self._claim(limit)
            else:
                entries = await self._entries(">", limit, "BLOCK", _BLOCK_MS)
                self._take(entries, fresh=self._prepared is not None and self._prepared == self._server.connections)
        except StreamLost:
            self._prepared = _NEVER
        except Unavailable:
            self._prepared = _NEVER
            raise
        if self._malformed:
            await self._dead_letter()

    async def prepare(self) -> None:
        """Make the group where it is missing, and take up what this consumer holds and does not know of: from before
        its restart, or lost on the way with a connection. Raises ``Unavailable``."""
        connections: int | None = _NEVER
        newest = b"0-0"
        while connections != self._server.connections:  # until no connection was lost in between
            connections = self._server.connections
            newest, self.has_xackdel = await self._server.run(
                "queue_prepare", self._keys, self._group, self._consumer, _DROP_CONSUMER_MS
            )
        after = "0"
        while entries := await self._entries(after, _PAGE):
            self._take(entries, fresh=False)
            after = entries[-1][0]
        self._newest = _position(newest)
        # After an outage everybody's claims look old: live consumers are given time to renew them.
        self._claim_at = asyncio.get_running_loop().time() + self._lease_ms / 4000
        self._prepared = connections

    async def _claim(self, limit: int) -> None:
        # Others renew at the latest after 3/8 of the lease; with this search every 1/8, 7/8 have passed.
        idle_ms = self._lease_ms * 3 // 4
        words = (self._keys[0], self._group, self._consumer, idle_ms, self._cursor, "COUNT", limit)
        answer = await self._server.command("XAUTOCLAIM", *words)
        self._cursor = answer[0].decode()
        if self._cursor == "0-0":
            self._claim_at = asyncio.get_running_loop().time() + self._lease_ms / 8000
        self._take(answer[1], fresh=False)

    async def _entries(self, after: str, count: int, *options: Any) -> list[Any]:
        words = ("GROUP", self._group, self._consumer, "COUNT", count, *options, "STREAMS", self._keys[0], after)
        answer = await self._server.command("XREADGROUP", *words)
        return answer[0][1] if answer else []

    def _take(self, entries: Iterable[tuple[bytes, dict[bytes, bytes]]], *, fresh: bool) -> None:
        now = asyncio.get_running_loop().time()
        for key, fields in entries:
            entry = key.decode()
            if entry in self._leases.held:
                continue
            try:
                message = _message(fields)
            except (KeyError, ValueError, msgspec.ValidationError):
                self._malformed.add(entry)
                continue
            self._leases.held[entry] = now
            self.ready.append(Delivery(message, entry, fresh and _position(entry) > self._newest))

    async def _dead_letter(self) -> None:
        """Move the malformed entries. If that fails, because no memory is left, they are claimed again later."""
        malformed, self._malformed = self._malformed, set()
        words = (self._group, _DEAD_LETTERS_KEPT, *malformed)
        with contextlib.suppress(Unavailable):
            for entry in await self._server.run("queue_dead_letter", self._keys, *words):
                log.error(
                    "an entry that is no message went to the dead stream", stream=self._keys[2], entry=entry.decode()
                )

    async def close(self) -> None:
        await self._server.close()


def _message(fields: dict[bytes, bytes]) -> Message:
    """Raises ``KeyError``, ``ValueError`` or ``msgspec.ValidationError``."""
    texts = {name: fields[name.encode()].decode() for name in ("request_id", "station_id", "traceparent")}
    return msgspec.convert({"accepted_at": int(fields[b"accepted_at"]), "body": fields[b"body"], **texts}, Message)


def _position(entry: str | bytes) -> tuple[int, int]:
    """An entry's id as what it is ordered by: server time in ms, and a number within it."""
    text = entry.decode() if isinstance(entry, bytes) else entry
    time, _, number = text.partition("-")
    return int(time), int(number)
