"""The embedded ledger in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from chargegate.engines.postgres.access_list import PostgresAccessList
from chargegate.engines.postgres.ledger import PostgresLedger
from chargegate.engines.postgres.statements import LEDGER_TABLES
from chargegate.engines.postgres.store import PostgresStore
from chargegate.engines.postgres.target import PostgresTarget
from chargegate.engines.sqlite.access_list import SqliteAccessList
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.queue import SqliteQueue
from chargegate.engines.sqlite.retention import SqliteRetention
from chargegate.engines.sqlite.source import SqliteSource
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.ledger.copying import KINDS, copy
from chargegate.ledger.records import AccessEntry, Claim, DecisionFilter, Finished
from chargegate.ledger.transfer import WaitingRequest
from chargegate.model import RequestStatus, Status, new_request_id, now_ms
from chargegate.queues.base import Message
from scenario import run as run_to_its_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

STATION = "123e4567-e89b-12d3-a456-42661417400A"
ALL = DecisionFilter()


class Both:
    """The embedded database, and one in PostgreSQL."""

    def __init__(self, source: SqliteStore, target: PostgresStore) -> None:
        self.source, self.target = source, target
        self.ours = SqliteLedger(source)
        self.theirs = PostgresLedger(target, "theirs")
        self.our_list, self.their_list = SqliteAccessList(source), PostgresAccessList(target)

    async def copy(self) -> dict[str, int]:
        counts: Counter[str] = Counter()

        def count(kind: str, more: int) -> None:
            counts[kind] += more

        await copy(SqliteSource(self.source), PostgresTarget(self.target), count, client_of=_owner)
        assert tuple(counts) == KINDS
        return dict(counts)

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.target.read(query)]


def _owner(waiting: WaitingRequest) -> str:
    return f"the client of {waiting.body.decode()}"


Run = "Callable[[Callable[[Both], Coroutine[Any, Any, None]]], None]"


@pytest.fixture
def run(tmp_path: Path, postgres_url: str) -> Run:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Both]:
        source = await SqliteStore.open(tmp_path / "chargegate.db", ALL_TABLES, exclusive=True)
        target = await PostgresStore.open(postgres_url, LEDGER_TABLES)
        yield Both(source, target)
        await target.close()
        await source.close()

    def run(scenario: Callable[[Both], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with opened() as both:
                await scenario(both)

        run_to_its_end(main())

    return run


def test_every_request_comes_along_as_it_stands(run: Run, decide: Callable[..., Any]) -> None:
    async def scenario(both: Both) -> None:
        january, march = 1_768_000_000_000, 1_773_000_000_000
        decisions = [
            decide(january, station=STATION, reason="token_blocked", status=Status.NOT_ALLOWED),
            decide(january + 1, reason="a\0b"),
            decide(march, status=Status.UNKNOWN, reason="authorization_timeout"),
            decide(march + 1),
        ]
        for decision in decisions:
            await both.ours.record(decision, decision.timestamp - 500, "north")
        under_way, dead, timed_out, done = (decision.request_id for decision in decisions)
        await both.ours.attempted(under_way, 2, 503, "http_503", '[[1,503,"http_503",9]]')
        await both.ours.finish(Finished(dead, RequestStatus.FAILED, 3, 500, "http_500", january + 9, b"sealed"))
        await both.ours.finish(Finished(timed_out, RequestStatus.TIMEOUT, 1, 200, None, march + 8, None))
        await both.ours.finish(Finished(done, RequestStatus.COMPLETED, 1, 204, None, march + 9, None))
        noted, waiting = new_request_id(), new_request_id()
        both.ours.accepted(noted, STATION, march + 5, "south")
        await both.ours.close()
        queue = await SqliteQueue.open(both.source, 10)
        for request_id in (waiting, under_way):
            await queue.put(Message(request_id, STATION, march + 6, b"body"))
        await queue.close()

        copied = await both.copy()

        assert (copied["requests"], copied["audit_rows"]) == (6, 4)
        for request_id in (under_way, timed_out, done, noted):
            assert await both.theirs.find(request_id) == await both.ours.find(request_id)
            assert await both.theirs.recorded(request_id) == await both.ours.recorded(request_id)
        clients = [(await both.theirs.find(request_id)).client for request_id in (done, noted, waiting)]
        assert clients == ["north", "south", "the client of body"]
        letter = await both.theirs.dead_letter(dead)
        assert letter is not None
        assert letter.client == "north"
        assert (letter.sealed, letter.attempts, letter.failed_at, letter.reason) == (
            b"sealed",
            3,
            january + 9,
            "a\ufffdb",
        )
        found = await both.theirs.find(waiting)
        assert found is not None
        assert (found.status, found.created_at, found.decision) == (RequestStatus.QUEUED, march + 6, None)
        assert await both.theirs.recorded(waiting) is None
        ids = [decision.request_id for decision in await both.ours.decisions(ALL, 10, None)]
        assert [decision.request_id for decision in await both.theirs.decisions(ALL, 10, None)] == ids
        rows = await both.rows("SELECT writer, sequence, request_id FROM authorization_audit ORDER BY sequence")
        assert rows == [("embedded", number, decision.request_id) for number, decision in enumerate(decisions, 1)]

        again = decide(now_ms(), request_id=under_way, status=Status.INVALID)
        assert (await both.theirs.record(again, again.timestamp)).decision == decisions[0]
        assert set((await both.copy()).values()) == {0}
        assert len(await both.theirs.decisions(ALL, 10, None)) == 4

    run(scenario)


def test_what_came_to_its_end_since_the_first_copy_ends_there_too(run: Run, decide: Callable[..., Any]) -> None:
    async def scenario(both: Both) -> None:
        first, second, theirs = decide(1_000), decide(1_001), decide(1_002)
        await both.ours.record(first, 900)
        both.ours.accepted(second.request_id, STATION, 901)
        await both.ours.record(theirs, 902)
        await both.ours.close()
        assert (await both.copy())["requests"] == 3

        await both.ours.finish(Finished(first.request_id, RequestStatus.COMPLETED, 1, 200, None, 2_000, None))
        await both.ours.record(second, 901)
        await both.ours.finish(Finished(theirs.request_id, RequestStatus.FAILED, 3, 500, "http_500", 2_000, b"sealed"))
        later = Finished(theirs.request_id, RequestStatus.COMPLETED, 4, 200, None, 3_000, None)
        await both.theirs.finish(later)

        copied = await both.copy()
        assert (copied["requests"], copied["audit_rows"]) == (2, 1)
        for request_id in (first.request_id, second.request_id):
            assert await both.theirs.find(request_id) == await both.ours.find(request_id)
        found = await both.theirs.find(theirs.request_id)
        assert found is not None
        assert found.status is RequestStatus.COMPLETED
        assert await both.theirs.count_dead_letters() == 0

    run(scenario)


def test_what_was_decided_there_stays_as_it_was_decided(run: Run, decide: Callable[..., Any]) -> None:
    async def scenario(both: Both) -> None:
        theirs = decide(5_000, status=Status.NOT_ALLOWED)
        await both.theirs.record(theirs, 4_000)
        ours = decide(1_000, request_id=theirs.request_id)
        await both.ours.record(ours, 900)
        await both.ours.finish(Finished(ours.request_id, RequestStatus.COMPLETED, 1, 200, None, 9_000, None))
        copied = await both.copy()
        assert (copied["requests"], copied["audit_rows"]) == (0, 0)
        assert list(await both.theirs.decisions(ALL, 10, None)) == [theirs]
        found = await both.theirs.find(theirs.request_id)
        assert found is not None
        assert (found.status, found.decision) == (RequestStatus.PROCESSING, theirs)

    run(scenario)


def test_the_access_list_keys_and_facts_come_along(run: Run) -> None:
    async def scenario(both: Both) -> None:
        entries = [
            AccessEntry(f"{number:064x}", number % 2 == 0, 1, 2, frozenset({STATION.lower()}), frozenset(), "a\0note")
            for number in range(4_500)
        ]
        await both.our_list.put(entries)
        changed = AccessEntry(entries[7].driver_token_hash, blocked=True, note="changed there")
        await both.their_list.put([changed])
        newest, _ = await both.their_list.changes(0)
        young, old = now_ms() - 60_000, now_ms() - 3_700_000
        await both.ours.claim("young", Claim("body", "id", young))
        await both.ours.claim("old", Claim("body", "id", old))
        await both.ours.put_value_if_absent("token_hash_key", "0a0b0c0d")
        await both.ours.put_value("access_list_file", "digest")

        assert await both.copy() == {
            "requests": 0,
            "audit_rows": 0,
            "access_list_entries": 4_499,
            "idempotency_keys": 1,
        }
        assert len(await both.their_list.entries(5_000, None)) == 4_500
        entry = await both.their_list.entry(entries[4_000].driver_token_hash)
        assert entry == AccessEntry(
            entry.driver_token_hash, True, 1, 2, frozenset({STATION.lower()}), note="a\ufffdnote"
        )
        assert await both.their_list.entry(changed.driver_token_hash) == changed
        assert (await both.their_list.changes(newest))[1] is None, "a cache could hold what was there before"
        assert await both.theirs.claim("young", Claim("other", "other", now_ms())) == Claim("body", "id", young)
        assert await both.theirs.value("access_list_file") == "digest"
        assert await both.theirs.put_value_if_absent("token_hash_key", "other") == "0a0b0c0d"
        assert set((await both.copy()).values()) == {0}

    run(scenario)


def test_the_audit_comes_along_also_of_requests_that_were_dropped(run: Run, decide: Callable[..., Any]) -> None:
    async def scenario(both: Both) -> None:
        made = [decide(1_768_000_000_000 + number) for number in range(3)]
        for number, decision in enumerate(made):
            await both.ours.record(decision, decision.timestamp, "north")
            await both.ours.finish(Finished(decision.request_id, RequestStatus.COMPLETED, 1, 200, None, number, None))
        assert await SqliteRetention(both.source).drop_finished(2, 10) == 2
        copied = await both.copy()
        assert (copied["requests"], copied["audit_rows"]) == (1, 3)
        rows = await both.rows("SELECT sequence, request_id FROM authorization_audit ORDER BY sequence")
        assert rows == [(number, decision.request_id) for number, decision in enumerate(made, 1)]
        assert await both.theirs.decisions(ALL, 10, None) == made[::-1]
        assert await both.theirs.find(made[0].request_id) is None
        assert set((await both.copy()).values()) == {0}

    run(scenario)


def test_dead_letters_are_counted_as_they_come_along(run: Run, decide: Callable[..., Any]) -> None:
    async def scenario(both: Both) -> None:
        made = [decide() for _ in range(5)]
        for decision in made:
            await both.ours.record(decision, 900, "north")
            await both.ours.finish(Finished(decision.request_id, RequestStatus.FAILED, 3, 500, None, 2_000, b"sealed"))
        await both.copy()
        await both.copy()
        assert await both.theirs.count_dead_letters() == 5
        await both.ours.finish(Finished(made[0].request_id, RequestStatus.COMPLETED, 1, 200, None, 3_000, None))
        await both.copy()
        assert await both.theirs.count_dead_letters() == 4
        assert await both.theirs.sealed_prefixes(5) == {b"seale"}

    run(scenario)


def test_more_than_a_page(run: Run, decide: Callable[..., Any]) -> None:
    async def scenario(both: Both) -> None:
        decisions = [decide(now_ms()) for _ in range(4_321)]
        await asyncio.gather(*(both.ours.record(decision, decision.timestamp) for decision in decisions))
        copied = await both.copy()
        assert (copied["requests"], copied["audit_rows"]) == (4_321, 4_321)
        ((count, distinct),) = await both.rows("SELECT count(*), count(DISTINCT request_id) FROM authorization_audit")
        assert (count, distinct) == (4_321, 4_321)

    run(scenario)
