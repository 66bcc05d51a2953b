"""A durable queue in a PostgreSQL table, for any number of processes.

Taking a message is a lease: the row stays, with ``lease_until`` by the server's clock, and is renewed while its holder
lives. ``FOR UPDATE SKIP LOCKED`` keeps takers out of each other's way. Each take has a lease id of its own; together
with the row's number it names one delivery, so that a late ack or renewal touches no other one, not even a row that
got the same number after the server lost data.

Options in the URL: ``table`` (default ``queue``), and ``listen_url``, a direct way to the server where ``url`` leads
through a transaction-mode pooler. Without it the queue is polled there.
"""

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

from chargegate.engines import POSTGRES
from chargegate.engines.postgres.arrivals import Arrivals
from chargegate.engines.postgres.connection import Connection, split_url
from chargegate.engines.postgres.statements import queue_statements, queue_tables
from chargegate.engines.postgres.store import PostgresStore
from chargegate.engines.postgres.waiting import WaitingRows
from chargegate.model import now_ms
from chargegate.queues.base import (
    AFTER_ALL,
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
from chargegate.storage.group_commit import GroupCommit
from chargegate.storage.tasks import SharedRead
from chargegate.storage.unavailable import Unavailable, Unusable

OPTIONS: Final = ("table", "listen_url")

_COUNT_VALID_S: Final = 0.25
_COUNT_VALID_FACTOR: Final = 10
"""A count stays valid for this many times as long as counting took: a long queue is counted a tenth of the time."""

_Handle = tuple[int, UUID]
_is_table = re.compile(r"[a-z_][a-z0-9_]{0,39}").fullmatch


def own_options(url: str) -> tuple[str, dict[str, str]]:
    """The URL as asyncpg takes it, and the options of a queue. Raises ``Unusable``."""
    url, options = split_url(url, OPTIONS)
    if not _is_table(options.get("table", "queue")):
        raise Unusable("table: must be lower-case letters, digits and underscores, at most 40")
    return url, options


class PostgresQueue:
    """Keeps the promises of ``Queue`` across the death of processes and hosts. A message comes back within ``lease_ms``
    of its consumer's death, and at once when its consumer closed."""

    capabilities = POSTGRES.capabilities

    def __init__(self, store: PostgresStore, table: str, listen_url: str, max_size: int, lease_ms: int) -> None:
        self._store = store
        self._sql = queue_statements(table)
        self._max_size = max_size
        self._lease_s = lease_ms * 0.8 / 1000  # the rest of the time is for others to look
        self._waiting = 0  # as counted last, and what this process did since
        self._count_valid_until = float("-inf")
        self._window: deque[Delivery] = deque()
        self._held: set[_Handle] = set()
        self._take_late_from = float("-inf")
        self._rows = WaitingRows(store, self._sql["depth"])
        self._arrivals = Arrivals(listen_url, table)
        self._reading = SharedRead(self._take)
        self._puts: GroupCommit[Message, None] = GroupCommit(self._put_all)
        self._acks: GroupCommit[_Handle | None, None] = GroupCommit(self._ack_all)
        self._notices: GroupCommit[None, None] = GroupCommit(self._notify)
        self._renewing = asyncio.create_task(self._renew())

    @classmethod
    async def open(cls, url: str, max_size: int, lease_ms: int) -> "PostgresQueue":
        """Raises ``QueueUnavailable`` or ``Unusable``."""
        url, options = own_options(url)
        table = options.get("table", "queue")
        store = await PostgresStore.open(url, queue_tables(table), QueueUnavailable)
        return cls(store, table, options.get("listen_url", url), max_size, lease_ms)

    async def put(self, message: Message) -> None:
        if self._waiting >= self._max_size and time.monotonic() < self._count_valid_until:
            raise QueueFull
        with queue_unavailable:
            await self._puts.submit(message)

    async def _put_all(self, messages: list[Message]) -> list[Exception | None]:
        outcomes = await self._store.transaction(partial(self._insert, messages))
        self._arrivals.announce()
        self._notices.post(None)
        return outcomes

    async def _insert(self, messages: list[Message], connection: Connection, repeated: bool) -> list[Exception | None]:
        began = time.monotonic()
        if repeated or began >= self._count_valid_until:
            self._waiting = await connection.fetchval(self._sql["count"], self._max_size)
            now = time.monotonic()
            self._count_valid_until = now + max(_COUNT_VALID_S, _COUNT_VALID_FACTOR * (now - began))
        stored = messages if repeated else messages[: max(0, self._max_size - self._waiting)]
        if stored:
            self._waiting += len(stored)
            # If the answer to a first attempt was lost, it may be stored already, and even taken: not surely fresh.
            await connection.execute(
                self._sql["insert"],
                [m.request_id for m in stored],
                [m.station_id for m in stored],
                [m.accepted_at for m in stored],
                [m.body for m in stored],
                int(repeated),
            )
        return [None] * len(stored) + [QueueFull()] * (len(messages) - len(stored))

    async def _notify(self, _notices: list[None]) -> None:
        # This is not in the transaction of the puts: NOTIFY lets one commit at a time through.
        await self._store.transaction(lambda connection, _: connection.execute(self._sql["notify"]), durable=False)

    def put_then(self, message: Message, done: Stored) -> None:
        if self._waiting >= self._max_size and time.monotonic() < self._count_valid_until:
            done(QueueFull())
        else:
            put_by(self._puts, message, done)

    async def receive(self, limit: int) -> list[Delivery]:
        while not self._window:
            await self._reading.wait(limit)
            if not self._window:
                await self._arrivals.wait()
        return [self._window.popleft() for _ in range(min(limit, len(self._window)))]

    async def _take(self, limit: int) -> None:
        self._arrivals.forget()
        lease = uuid4()
        late = time.monotonic() >= self._take_late_from

        async def take(connection: Connection, repeated: bool) -> list[Any]:
            taken: list[Any] = await connection.fetch(self._sql["taken"], lease) if repeated else []
            return taken or await connection.fetch(
                self._sql["take"], limit, self._lease_s, lease, late and not repeated
            )

        try:
            rows = await self._store.transaction(take)
        except Unavailable:
            # After an outage everybody's leases look late: those who live are given time to renew them.
            self._take_late_from = time.monotonic() + self._lease_s / 4
            raise
        rows.sort(key=lambda row: (row["deliveries"] == 1, row["seq"]))  # what came back is first
        for seq, request_id, station_id, accepted_at, body, deliveries in rows:
            self._waiting -= deliveries == 1
            self._held.add((seq, lease))
            message = Message(request_id, station_id, accepted_at, body)
            self._window.append(Delivery(message, (seq, lease), fresh=deliveries == 1))

    async def ack(self, delivery: Delivery) -> None:
        with contextlib.suppress(Unavailable):  # it is closed, and the message comes again
            self._acks.post(delivery.handle)

    async def _ack_all(self, items: list[_Handle | None]) -> None:
        self._held -= await self._store.transaction(partial(self._delete_and_renew, items), durable=False)

    async def _delete_and_renew(
        self, items: list[_Handle | None], connection: Connection, _repeated: bool
    ) -> set[_Handle]:
        """Delete acked rows, and renew all leases where None is among the items: both in one transaction, so that they
        never wait for each other. Returns the handles that are held no longer."""
        acked = {item for item in items if item is not None}
        if acked:
            await connection.execute(self._sql["delete"], *_columns(acked))
        held = self._held - acked
        if None not in items or not held:
            return acked
        renewed = await connection.fetch(self._sql["renew"], *_columns(held), self._lease_s)
        return acked | (held - {(row[0], row[1]) for row in renewed})

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            if self._held:
                self._acks.post(None)

    async def find(self, request_id: str) -> Waiting | None:
        rows = await self._store.read(self._sql["find"], request_id)
        if not rows:
            return None
        return self._found(rows[0])

    def _found(self, row: Sequence[Any]) -> Waiting:
        station_id, accepted_at, leased, seq, body = row
        return Waiting(station_id, accepted_at, leased and all(seq != kept.handle[0] for kept in self._window), body)

    async def unacked(self, limit: int, after: str | None) -> Sequence[Listed]:
        rows = await self._store.read(self._sql["unacked"], after or AFTER_ALL, limit)
        return [Listed(row[0], row[0], self._found(row[1:])) for row in rows]

    async def depth(self) -> Depth:
        waiting, oldest = await self._rows.read()
        kept = [delivery.message.accepted_at for delivery in self._window]
        times = kept if oldest is None else [*kept, oldest]
        return Depth(waiting + len(kept), max(0, now_ms() - min(times)) if times else 0)

    async def check(self) -> None:
        await self._store.check()

    async def close(self) -> None:
        self._renewing.cancel()
        await asyncio.gather(self._renewing, return_exceptions=True)
        await self._arrivals.close()
        await self._reading.close(cancel=False)
        for commits in (self._puts, self._acks, self._notices):
            await commits.close()
        with contextlib.suppress(Unavailable):
            await self._store.transaction(self._release)
        await self._store.close()

    async def _release(self, connection: Connection, _repeated: bool) -> None:
        """Others need not wait for this process's leases. What nobody was handed is as fresh as it was."""
        unseen = {delivery.handle for delivery in self._window}
        for handles, fewer in ((unseen, 1), (self._held - unseen, 0)):
            if handles:
                await connection.execute(self._sql["release"], *_columns(handles), fewer)


def _columns(handles: Iterable[_Handle]) -> Iterable[list[Any]]:
    return map(list, zip(*handles, strict=True))
