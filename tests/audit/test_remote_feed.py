"""The feed from a real ledger to a server: each row arrives, however often the server or the process fails."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from chargegate.audit.base import SinkUnavailable
from chargegate.audit.remote_feed import RemoteFeed
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.ledger.records import AuditRow
from chargegate.model import Decision, now_ms
from chargegate.observe import Metrics

Decide = Callable[..., Decision]
LIMIT_S = 30


class Kept:
    """A server in this process: it keeps rows by their numbers, and is away while ``away`` says why."""

    name = "influx"

    def __init__(self) -> None:
        self.rows: dict[int, AuditRow] = {}
        self.batches: list[int] = []
        self.refused: set[str] = set()
        self.away = ""
        self.asks_s: float | None = None
        self.hangs = False
        self.closed = False

    async def write(self, rows: list[AuditRow]) -> int:
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            self.rows.update((row.sequence, row) for row in rows[: len(rows) // 2])
            raise SinkUnavailable(self.away, self.asks_s)
        self.batches.append(len(rows))
        taken = [row for row in rows if row.decision.request_id not in self.refused]
        self.rows.update((row.sequence, row) for row in taken)
        return len(rows) - len(taken)

    async def close(self) -> None:
        self.closed = True


class Fed:
    """A ledger, a server, and the feed between them."""

    def __init__(self, store: SqliteStore, server: Kept) -> None:
        self.server = server
        self.metrics = Metrics()
        self.feed = RemoteFeed(server, self.metrics)
        self.ledger = SqliteLedger(store, self.feed.offer)

    async def record(self, *decisions: Decision) -> None:
        await asyncio.gather(*(self.ledger.record(decision, 0) for decision in decisions))

    def sample(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"sink": "influx"})


@asynccontextmanager
async def fed(folder: Path, server: Kept) -> AsyncIterator[Fed]:
    store = await SqliteStore.open(folder / "ledger.db", ALL_TABLES, exclusive=True)
    parts = Fed(store, server)
    try:
        async with asyncio.timeout(LIMIT_S):
            await parts.feed.start(parts.ledger)
            yield parts
    finally:
        await parts.feed.close()
        await store.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


def test_rows_arrive_and_the_position_is_saved(tmp_path: Path, decide: Decide) -> None:
    server = Kept()

    async def main() -> None:
        async with fed(tmp_path, server) as parts:
            await parts.record(*(decide() for _ in range(20)))
            await until(lambda: len(server.rows) == 20)
            await parts.record(*(decide() for _ in range(5)))
        assert server.closed
        assert list(server.rows) == list(range(1, 26))
        async with fed(tmp_path, server) as parts:
            assert await parts.ledger.sink_position("influx") == 25
            await parts.record(decide(timestamp=now_ms()))
            await until(lambda: len(server.rows) == 26)
            assert server.batches[-1] == 1

    uvloop.run(main())


def test_a_backlog_goes_over_in_pages_and_the_lag_is_its_oldest_rows_age(tmp_path: Path, decide: Decide) -> None:
    server = Kept()
    server.away = "503: no"

    async def main() -> None:
        async with fed(tmp_path, server) as parts:
            await parts.record(*(decide(timestamp=now_ms() - 60_000 - number) for number in range(4_500)))
            await until(lambda: parts.feed.failure is not None)
            assert parts.feed.failure == "503: no"
            assert 60 <= parts.feed.lag_s < 60 + LIMIT_S
            assert parts.sample("audit_sink_lag_seconds") >= 60
            assert not server.batches
            server.away = ""
            await until(lambda: parts.feed.lag_s == 0)
            assert parts.feed.failure is None
            assert server.batches == [2_000, 2_000, 500]
            assert parts.sample("audit_log_entries_total") == 4_500

    uvloop.run(main())


def test_what_the_server_will_never_take_is_counted(tmp_path: Path, decide: Decide) -> None:
    server = Kept()
    server.refused = {"b"}

    async def main() -> None:
        async with fed(tmp_path, server) as parts:
            await parts.record(decide("a"), decide("b"), decide("c"))
            await until(lambda: len(server.rows) == 2 and parts.feed.lag_s == 0)
            assert parts.sample("audit_log_entries_total") == 2
            assert parts.sample("audit_sink_refused_total") == 1

    uvloop.run(main())


def test_a_server_that_hangs_delays_no_record_and_no_end(tmp_path: Path, decide: Decide) -> None:
    server = Kept()

    async def main() -> None:
        async with fed(tmp_path, server) as parts:
            server.hangs = True
            for _ in range(3):
                await parts.record(*(decide() for _ in range(100)))
            assert not server.rows
        server.hangs = False
        async with fed(tmp_path, server):
            await until(lambda: len(server.rows) == 300)

    uvloop.run(main())
