"""A durable queue in a PostgreSQL table, for any number of processes.

Taking a message is a lease: the row stays, with ``lease_until`` by the server's clock, and is renewed while its holder
lives. ``FOR UPDATE SKIP LOCKED`` keeps takers out of each other's way. Each take has a lease id of its own; together
with the row's number it names one delivery, so that a late ack or renewal touches no other one, not even a row that
got the same number after the server lost data.

Options in the URL: ``table`` (default ``queue``), ``listen_url``, a direct way to the server where ``url`` leads
through a transaction-mode pooler; without it the queue is polled there.
"""

import asyncio
import contextlib
import re
import time
from collections import deque
from typing import Any, Final
from uuid import UUID, uuid4

from chargegate.engines.postgres.connection import (
    Connection,
    PostgresStore,
    PostgresUnavailable,
    PostgresUnusable,
    connect,
    split_url,
)
from chargegate.engines.postgres.group_commit import Gatherer
from chargegate.model import now_ms
from chargegate.queues.base import Capabilities, Delivery, Depth, Message, QueueFull, QueueUnavailable, Waiting

OPTIONS: Final = ("table", "listen_url")
LEASE_MS: Final = 30_000

_COUNTED_S: Final = 0.25
_COUNTING: Final = 10  # a long queue is counted for a tenth of the time
_POLL_S: Final = 0.25  # while no notification was ever heard
_IDLE_POLL_S: Final = 1.0
_RECONNECT_S: Final = 1.0
_Handle = tuple[int, UUID]
_is_table = re.compile(r"[a-z_][a-z0-9_]{0,39}").fullmatch

MIGRATIONS: Final = (
    """
CREATE TABLE QUEUE (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id text COLLATE "C" NOT NULL,
    station_id text NOT NULL,
    accepted_at bigint NOT NULL,
    body bytea NOT NULL,
    deliveries integer NOT NULL,
    lease uuid,
    lease_until timestamptz,
    UNIQUE (request_id, accepted_at)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX QUEUE_free ON QUEUE (seq) WHERE lease_until IS NULL;
CREATE INDEX QUEUE_leased ON QUEUE (lease_until) WHERE lease_until IS NOT NULL
""",
)
# A replay has its request's id and another time.
_INSERT: Final = """
INSERT INTO QUEUE (request_id, station_id, accepted_at, body, deliveries)
SELECT *, $5 FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[]) ON CONFLICT DO NOTHING"""
_COUNT: Final = "SELECT count(*) FROM (SELECT FROM QUEUE WHERE lease_until IS NULL LIMIT $1) AS free"
_TAKE: Final = """
WITH late AS (
    SELECT seq FROM QUEUE WHERE lease_until < now() AND $4 ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED
), free AS (
    SELECT seq FROM QUEUE WHERE lease_until IS NULL ORDER BY seq LIMIT $1 - (SELECT count(*) FROM late)
    FOR UPDATE SKIP LOCKED
)
UPDATE QUEUE SET lease_until = now() + make_interval(secs => $2), lease = $3, deliveries = deliveries + 1
WHERE seq = ANY(ARRAY(SELECT seq FROM late UNION ALL SELECT seq FROM free))
RETURNING seq, request_id, station_id, accepted_at, body, deliveries"""
_TAKEN: Final = """
SELECT seq, request_id, station_id, accepted_at, body, deliveries FROM QUEUE
WHERE lease = $1 AND lease_until IS NOT NULL"""
_DELETE: Final = """
DELETE FROM QUEUE WHERE (seq, lease) IN (SELECT * FROM unnest($1::bigint[], $2::uuid[]))
AND lease_until IS NOT NULL"""
_RENEW: Final = """
UPDATE QUEUE SET lease_until = now() + make_interval(secs => $3)
WHERE (seq, lease) IN (SELECT * FROM unnest($1::bigint[], $2::uuid[])) AND lease_until IS NOT NULL
RETURNING seq, lease"""
_RELEASE: Final = """
UPDATE QUEUE SET lease_until = NULL, deliveries = deliveries - $3::integer
WHERE (seq, lease) IN (SELECT * FROM unnest($1::bigint[], $2::uuid[])) AND lease_until IS NOT NULL"""
_FIND: Final = """
SELECT station_id, accepted_at, coalesce(lease_until >= now(), false), seq FROM QUEUE
WHERE request_id = $1 ORDER BY accepted_at LIMIT 1"""
_DEPTH: Final = "SELECT count(*), min(accepted_at) FROM QUEUE WHERE lease_until IS NULL OR lease_until < now()"
_BEGINNINGS: Final = "SELECT DISTINCT substring(body FROM 1 FOR $1::integer) FROM QUEUE"


class PostgresQueue:
    """Keeps the promises of ``Queue`` across the death of processes and hosts. A message comes back within ``lease_ms``
    of its consumer's death, and at once when its consumer closed."""

    capabilities = Capabilities(durable=True, shared=True, find=True)

    def __init__(self, store: PostgresStore, table: str, listen_url: str, max_size: int, lease_ms: int) -> None:
        self._store = store
        self._table = table
        self._listen_url = listen_url
        self._max_size = max_size
        self._lease_s = lease_ms * 0.8 / 1000  # what is left is for others to look
        self._waiting = 0  # as counted last, and what this process did since
        self._known_until = float("-inf")
        self._window: deque[Delivery] = deque()
        self._held: set[_Handle] = set()
        self._gone: set[_Handle] = set()
        self._arrival = asyncio.Event()
        self._taking: asyncio.Task[None] | None = None
        self._late_from = float("-inf")
        self._heard = False
        self._puts: Gatherer[Message, None] = Gatherer(store, self._insert, committed=self._stored)
        self._acks: Gatherer[_Handle | None, None] = Gatherer(store, self._delete, committed=self._forget, lazy=True)
        self._calls: Gatherer[None, None] = Gatherer(store, self._notify, lazy=True)
        self._tasks = [asyncio.create_task(self._renew()), asyncio.create_task(self._listen())]

    @classmethod
    async def open(cls, url: str, max_size: int, lease_ms: int = LEASE_MS) -> "PostgresQueue":
        """Raises ``PostgresUnavailable`` or ``PostgresUnusable``."""
        url, options = split_url(url, OPTIONS)
        table = options.get("table", "queue")
        if not _is_table(table):
            raise PostgresUnusable("table: must be lower-case letters, digits and underscores, at most 40")
        scripts = [script.replace("QUEUE", table) for script in MIGRATIONS]
        store = await PostgresStore.open(url, {f"queue {table}": scripts})
        return cls(store, table, options.get("listen_url", url), max_size, lease_ms)

    def _sql(self, text: str) -> str:
        return text.replace("QUEUE", self._table)

    async def put(self, message: Message) -> None:
        if self._waiting >= self._max_size and time.monotonic() < self._known_until:
            raise QueueFull
        try:
            await self._puts.submit(message)
        except PostgresUnavailable as error:
            raise QueueUnavailable(str(error)) from None

    async def _insert(self, connection: Connection, messages: list[Message], again: bool) -> list[Exception | None]:
        began = time.monotonic()
        if again or began >= self._known_until:
            self._waiting = await connection.fetchval(self._sql(_COUNT), self._max_size)
            now = time.monotonic()
            self._known_until = now + max(_COUNTED_S, _COUNTING * (now - began))
        stored = messages if again else messages[: max(0, self._max_size - self._waiting)]
        if stored:
            self._waiting += len(stored)
            # If the answer to a first attempt was lost, it may be stored already, and even taken: not surely fresh.
            await connection.execute(
                self._sql(_INSERT),
                [m.request_id for m in stored],
                [m.station_id for m in stored],
                [m.accepted_at for m in stored],
                [m.body for m in stored],
                int(again),
            )
        return [None] * len(stored) + [QueueFull()] * (len(messages) - len(stored))

    async def _stored(self) -> None:
        self._arrival.set()
        self._calls.post(None)

    async def _notify(self, connection: Connection, _calls: list[None], _again: bool) -> None:
        # not in the transaction of the puts: NOTIFY lets one commit at a time through
        await connection.execute(f"NOTIFY {self._table}")

    async def receive(self, limit: int) -> list[Delivery]:
        while not self._window:
            if self._taking is None:
                self._arrival.clear()
                self._taking = asyncio.create_task(self._take(limit))
                self._taking.add_done_callback(lambda task: task.cancelled() or task.exception())
            taking = self._taking
            await asyncio.wait((taking,))  # which leaves it alone when this is cancelled: what it takes is kept
            try:
                taking.result()
            except PostgresUnavailable as error:
                raise QueueUnavailable(str(error)) from None
            if not self._window:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_IDLE_POLL_S if self._heard else _POLL_S):
                        await self._arrival.wait()
        return [self._window.popleft() for _ in range(min(limit, len(self._window)))]

    async def _take(self, limit: int) -> None:
        lease = uuid4()
        late = time.monotonic() >= self._late_from

        async def take(connection: Connection, again: bool) -> list[Any]:
            taken: list[Any] = await connection.fetch(self._sql(_TAKEN), lease) if again else []
            return taken or await connection.fetch(self._sql(_TAKE), limit, self._lease_s, lease, late and not again)

        try:
            rows = await self._store.transaction(take)
        except PostgresUnavailable:
            # After an outage everybody's leases look late: the living are given time to renew them.
            self._late_from = time.monotonic() + self._lease_s / 4
            raise
        finally:
            self._taking = None
        rows.sort(key=lambda row: (row[5] == 1, row[0]))
        for seq, request_id, station_id, accepted_at, body, deliveries in rows:
            self._waiting -= deliveries == 1
            self._held.add((seq, lease))
            message = Message(request_id, station_id, accepted_at, body)
            self._window.append(Delivery(message, (seq, lease), fresh=deliveries == 1))

    async def ack(self, delivery: Delivery) -> None:
        with contextlib.suppress(PostgresUnavailable):  # closed: it comes again
            self._acks.post(delivery.handle)

    async def _delete(self, connection: Connection, items: list[_Handle | None], _again: bool) -> None:
        """Acked rows go. None among the items renews the leases: here, so that the two never wait for each other."""
        acked = {item for item in items if item is not None}
        self._gone = acked
        if acked:
            await connection.execute(self._sql(_DELETE), *_columns(acked))
        held = self._held - acked
        if None in items and held:
            kept = await connection.fetch(self._sql(_RENEW), *_columns(held), self._lease_s)
            self._gone = acked | (held - {(row[0], row[1]) for row in kept})

    async def _forget(self) -> None:
        self._held -= self._gone

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            if self._held:
                self._acks.post(None)

    async def _listen(self) -> None:
        """Notifications wake; whoever hears none, behind a pooler or while the server is away, polls."""

        def heard(*_: object) -> None:
            self._heard = True
            self._arrival.set()

        while True:
            with contextlib.suppress(PostgresUnavailable, PostgresUnusable):
                connection = await connect(self._listen_url)
                gone = asyncio.Event()
                connection.add_termination_listener(lambda _, gone=gone: gone.set())
                try:
                    await connection.add_listener(self._table, heard)
                    await gone.wait()
                except Exception:  # noqa: BLE001, S110 - whatever it is, the queue is polled until it is over
                    pass
                finally:
                    connection.terminate()
            self._heard = False
            await asyncio.sleep(_RECONNECT_S)

    async def find(self, request_id: str) -> Waiting | None:
        rows = await self._read(_FIND, request_id)
        if not rows:
            return None
        station_id, accepted_at, leased, seq = rows[0]
        return Waiting(station_id, accepted_at, leased and all(seq != kept.handle[0] for kept in self._window))

    async def beginnings(self, length: int) -> frozenset[bytes]:
        """The different first bytes of all bodies, to see early whether they can be opened."""
        return frozenset(row[0] for row in await self._read(_BEGINNINGS, length))

    async def depth(self) -> Depth:
        ((waiting, oldest),) = await self._read(_DEPTH)
        kept = [delivery.message.accepted_at for delivery in self._window]
        times = kept if oldest is None else [*kept, oldest]
        return Depth(waiting + len(kept), max(0, now_ms() - min(times)) if times else 0)

    async def check(self) -> None:
        try:
            await self._store.check()
        except PostgresUnavailable as error:
            raise QueueUnavailable(str(error)) from None

    async def _read(self, query: str, *values: Any) -> list[Any]:
        try:
            return await self._store.read(self._sql(query), *values)
        except PostgresUnavailable as error:
            raise QueueUnavailable(str(error)) from None

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._taking is not None:
            await asyncio.wait((self._taking,))
        for gatherer in (self._puts, self._acks, self._calls):
            await gatherer.close()
        with contextlib.suppress(PostgresUnavailable):
            await self._store.transaction(self._release)
        await self._store.close()

    async def _release(self, connection: Connection, _again: bool) -> None:
        """Others need not wait for this process's leases; what nobody was handed is as fresh as it was."""
        unseen = {delivery.handle for delivery in self._window}
        for these, fewer in ((unseen, 1), (self._held - unseen, 0)):
            if these:
                await connection.execute(self._sql(_RELEASE), *_columns(these), fewer)


def _columns(handles: set[_Handle]) -> tuple[list[int], list[UUID]]:
    return [seq for seq, _ in handles], [lease for _, lease in handles]
