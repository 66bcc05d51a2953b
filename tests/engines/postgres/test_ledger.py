"""Tests of the ledger in PostgreSQL: several processes, months, writers, and servers that come and go."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from msgspec.structs import astuple

from chargegate.engines.postgres.access_list import PostgresAccessList
from chargegate.engines.postgres.ledger import PostgresLedger
from chargegate.engines.postgres.statements import LEDGER, LEDGER_TABLES, arrays
from chargegate.engines.postgres.store import PostgresStore
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.records import AccessEntry, AuditRow, Claim, DecisionFilter, Finished
from chargegate.model import Decision, RequestStatus, Status, now_ms
from lost_answer import losing_answers
from pooler import pooled
from scenario import run
from servers.server import Server

ANY = DecisionFilter()

Decide = Callable[..., Decision]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(url, LEDGER_TABLES, LedgerUnavailable)
    try:
        yield store
    finally:
        await store.close()


async def rows(store: PostgresStore, query: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await store.read(query)]


def at(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize("accepted", ["never", "before", "meanwhile"])
def test_workers_that_decide_one_request_at_once_agree(postgres_url: str, decide: Decide, accepted: str) -> None:
    async def scenario() -> None:
        told: list[AuditRow] = []
        async with opened(postgres_url) as first, opened(postgres_url) as second, opened(postgres_url) as third:
            ledgers = [PostgresLedger(s, f"w{n}", told.extend) for n, s in enumerate((first, second, third))]
            requests = [f"request-{n:03}" for n in range(200)]
            for ledger in ledgers:
                await ledger.record(decide(request_id="before"), 0)  # makes the months, one process after another
            told.clear()
            accepting = PostgresLedger(third)
            for request_id in requests if accepted != "never" else ():
                accepting.accepted(request_id, "station", 0)
            if accepted == "before":
                await accepting.close()
            rivals = [
                (ledger, [decide(request_id=r, status=status) for r in requests])
                for ledger, status in zip(ledgers, list(Status), strict=False)
            ]
            answers = await asyncio.gather(
                *(
                    ledger.record(decision, 0)
                    for number in range(200)
                    for ledger, made in rivals
                    for decision in [made[number]]
                )
            )
            await accepting.close()
            assert await rows(third, "SELECT count(*) FROM charging_requests WHERE status = 'QUEUED'") == [(0,)]
            held: dict[str, set[Status]] = {}
            for recorded in answers:
                held.setdefault(recorded.decision.request_id, set()).add(recorded.decision.status)
            assert len(held) == 200
            assert all(len(statuses) == 1 for statuses in held.values())
            audit = [d for d in await ledgers[0].decisions(ANY, 1_000, None) if d.request_id != "before"]
            assert {d.request_id: {d.status} for d in audit} == held
            assert len(audit) == 200
            assert sorted(row.decision.request_id for row in told) == requests

    run(scenario())


@pytest.mark.parametrize("accepted", [False, True])
def test_workers_that_wait_for_one_row_agree(postgres_url: str, decide: Decide, *, accepted: bool) -> None:
    hold = (
        "UPDATE charging_requests SET attempts = 0 WHERE request_id = 'one'"
        if accepted
        else "INSERT INTO charging_requests (request_id, station_id, status, created_at, started_at)"
        " VALUES ('one', 'station', 'QUEUED', 0, 0)"
    )
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"

    async def scenario() -> None:
        told: list[AuditRow] = []
        async with opened(postgres_url) as first, opened(postgres_url) as second:
            ledgers = [PostgresLedger(s, f"w{n}", told.extend) for n, s in enumerate((first, second))]
            for ledger in ledgers:
                await ledger.record(decide(), 0)  # makes the months, one process after another
            if accepted:
                ledgers[0].accepted("one", "station", 0)
                await ledgers[0].close()
            holder = await asyncpg.connect(postgres_url)
            held = holder.transaction()
            await held.start()
            await holder.execute(hold)
            rivals = [decide(request_id="one", status=status) for status in (Status.ALLOWED, Status.NOT_ALLOWED)]
            recording = [
                asyncio.create_task(ledger.record(rival, 0)) for ledger, rival in zip(ledgers, rivals, strict=True)
            ]
            while await holder.fetchval(waiting) < 2:
                await asyncio.sleep(0.01)
            await held.rollback()
            await holder.close()
            answers = [recorded.decision for recorded in await asyncio.gather(*recording)]
            assert answers[0] == answers[1]
            assert [row.decision for row in told if row.decision.request_id == "one"] == answers[:1]
            assert [d for d in await ledgers[0].decisions(ANY, 10, None) if d.request_id == "one"] == answers[:1]
            recorded = await ledgers[0].recorded("one")
            assert recorded is not None
            assert recorded.decision == answers[0]

    run(scenario())


@pytest.mark.parametrize("pooler", [False, True])
def test_a_decision_whose_answer_was_lost_is_its_own_and_told_once(
    postgres_url: str, postgres_server: Server, decide: Decide, *, pooler: bool
) -> None:
    async def scenario() -> None:
        told: list[AuditRow] = []
        query = urlsplit(postgres_url).query
        losing = losing_answers(postgres_server.url, pooler=pooler)
        async with losing as proxy, opened(f"{proxy.url}?{query}") as store:
            ledger = PostgresLedger(store, "w", told.extend)
            made = [decide() for _ in range(6)]
            await ledger.record(made[0], 0)
            proxy.to_lose = 1
            recorded = await asyncio.gather(*(ledger.record(decision, 0) for decision in made[1:4]))
            assert [each.decision for each in recorded] == made[1:4]
            proxy.to_lose = 2
            with pytest.raises(LedgerUnavailable):
                await ledger.record(made[4], 0)
            assert len(told) == 4
            await ledger.record(made[5], 0)
            assert [row.sequence for row in told] == list(range(1, 7))
            assert sorted(row.decision.request_id for row in told) == sorted(d.request_id for d in made)
            assert await ledger.audit_after(0, 10) == told

    run(scenario())


@pytest.mark.parametrize("again", ["the same", "others"])
def test_no_number_is_used_twice_while_a_lost_commit_is_still_under_way(
    postgres_url: str, postgres_server: Server, decide: Decide, again: str
) -> None:
    """The connection breaks before the server has the commit, which it gets while the next transaction runs."""

    async def scenario() -> None:
        told: list[AuditRow] = []
        query = urlsplit(postgres_url).query
        losing = losing_answers(postgres_server.url, pooler=True)
        async with losing as proxy, opened(f"{proxy.url}?{query}") as store:
            ledger = PostgresLedger(store, "w", told.extend)
            made = [decide() for _ in range(6)]
            await ledger.record(made[0], 0)
            proxy.to_lose, proxy.held = 1, True
            first = asyncio.ensure_future(asyncio.gather(*(ledger.record(each, 0) for each in made[1:3])))
            while proxy.to_lose:
                await asyncio.sleep(0)
            if again == "others":  # the retry is given up, and the next commit is about other decisions
                with pytest.raises(LedgerUnavailable):
                    await first
            waiting = [asyncio.ensure_future(ledger.record(each, 0)) for each in made[3:5]]
            while not await blocked(postgres_url):
                await asyncio.sleep(0.01)
            await proxy.release()
            await asyncio.gather(first, *waiting, return_exceptions=True)
            for decision in made:
                await ledger.record(decision, 0)
            written = await ledger.audit_after(0, 100)
            assert [row.sequence for row in written] == list(range(1, 7))
            assert {row.decision for row in written} == set(made)
            assert told == written

    run(scenario())


def test_a_statement_that_was_given_up_and_arrives_late_writes_nothing(
    postgres_url: str, postgres_server: Server, decide: Decide
) -> None:
    async def scenario() -> None:
        told: list[AuditRow] = []
        query = urlsplit(postgres_url).query
        async with losing_answers(postgres_server.url) as proxy, opened(f"{proxy.url}?{query}") as store:
            ledger = PostgresLedger(store, "w", told.extend)
            made = [decide() for _ in range(6)]
            await ledger.record(made[0], 0)
            await ledger.record(made[1], 0)
            proxy.to_lose, proxy.held = 1, True
            await asyncio.gather(*(ledger.record(each, 0) for each in made[2:4]))
            assert proxy.to_lose == 0
            await ledger.record(made[4], 0)
            await proxy.release()
            await ledger.record(made[5], 0)
            written = await ledger.audit_after(0, 100)
            assert [row.sequence for row in written] == list(range(1, 7))
            assert {row.decision for row in written} == set(made)
            assert told == written

    run(scenario())


def test_a_turn_that_another_one_had_writes_nothing(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            ledger = PostgresLedger(store, "w")
            await ledger.record(decide(), 0)
            turn = int(await ledger.value("audit turn w") or 0)
            await ledger.record(decide(), 0)
            late = decide()
            columns = arrays([(*astuple(late), 0, "")])
            for stale in (turn - 1, turn):
                assert await store.read(LEDGER["recorded"], [late.request_id]) == []
                values = (*columns, "w", 2, stale)
                assert await store.transaction(lambda c, _, v=values: c.fetch(LEDGER["record"], *v)) == []
            assert await ledger.recorded(late.request_id) is None
            assert len(await ledger.audit_after(0, 100)) == 2

    run(scenario())


async def blocked(url: str) -> bool:
    """Whether a transaction waits for a lock."""
    connection = await asyncpg.connect(url)
    try:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
    finally:
        await connection.close()


def test_each_writer_has_its_own_numbers_and_positions(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            first, second = PostgresLedger(store, "first"), PostgresLedger(store, "second")
            made = [decide() for _ in range(6)]
            for number, decision in enumerate(made):
                await (second if number % 2 else first).record(decision, 0)
            assert [(r.sequence, r.decision) for r in await first.audit_after(0, 10)] == list(enumerate(made[::2], 1))
            assert [(r.sequence, r.decision) for r in await second.audit_after(1, 10)] == list(enumerate(made[3::2], 2))
            await first.save_sink_position("csv", 3)
            assert [await ledger.sink_position("csv") for ledger in (first, second)] == [3, 0]

    run(scenario())


def test_a_writers_numbers_go_on_after_a_restart_also_when_its_months_were_dropped(
    postgres_url: str, decide: Decide
) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            old = [decide(at(2020, 1)) for _ in range(3)]
            ledger = PostgresLedger(store, "w")
            for decision in old:
                await ledger.record(decision, 0)
            again = PostgresLedger(store, "w")
            await again.record(decide(at(2020, 1)), 0)
            assert [row.sequence for row in await again.audit_after(0, 10)] == [1, 2, 3, 4]
            await again.save_sink_position("csv", 4)
            await again.drop_audit_before(at(2020, 2))
            last = PostgresLedger(store, "w")
            await last.record(decide(now_ms()), 0)
            assert [row.sequence for row in await last.audit_after(4, 10)] == [5]

    run(scenario())


def test_a_dropped_month_takes_its_audit_rows_and_no_decision(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            ledger = PostgresLedger(store, "w")
            january, march = decide(at(2021, 3) - 1), decide(at(2021, 3))
            await asyncio.gather(ledger.record(january, 0), ledger.record(march, 0))
            assert (await ledger.drop_audit_before(at(2021, 2))).tables == []
            assert (await ledger.drop_audit_before(at(2021, 3))).tables == ["authorization_audit_2021_02"]
            assert await ledger.decisions(ANY, 10, None) == [march]
            changed = decide(at(2021, 3) - 1, request_id=january.request_id, status=Status.NOT_ALLOWED)
            assert (await ledger.record(changed, 0)).decision == january
            found = await ledger.find(january.request_id)
            assert found is not None
            assert found.decision == january
            another = decide(at(2021, 3) - 1)
            await ledger.record(another, 0)
            assert another in await ledger.decisions(ANY, 10, None)

    run(scenario())


def test_the_month_that_is_going_on_is_not_dropped(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            ledger = PostgresLedger(store, "w")
            decision = decide(now_ms())
            await ledger.record(decision, 0)
            assert (await ledger.drop_audit_before(now_ms() + 400 * 86_400_000)).tables == []
            assert await ledger.decisions(ANY, 10, None) == [decision]

    run(scenario())


def test_a_partition_that_somebody_else_attached_is_not_dropped(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            ledger = PostgresLedger(store, "w")
            await store.transaction(
                lambda connection, _: connection.execute(
                    "CREATE TABLE archive PARTITION OF authorization_audit FOR VALUES FROM (0) TO (1000)"
                )
            )
            assert (await ledger.drop_audit_before(at(2021, 3))).tables == []
            assert await rows(store, "SELECT count(*) FROM archive") == [(0,)]

    run(scenario())


def test_another_process_goes_on_writing_to_a_month_that_was_dropped(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as first, opened(postgres_url) as second:
            ledger, other = PostgresLedger(first, "w"), PostgresLedger(second, "other")
            await other.record(decide(at(2021, 2)), 0)
            assert (await ledger.drop_audit_before(at(2021, 3))).tables == ["authorization_audit_2021_02"]
            late = [decide(at(2021, 2)) for _ in range(3)]
            await asyncio.gather(*(other.record(decision, 0) for decision in late))
            assert {row.decision for row in await other.audit_after(0, 10)} == set(late)

    run(scenario())


def test_months_are_not_dropped_while_someone_reads_them(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            ledger = PostgresLedger(store, "w")
            old = decide(at(2021, 2))
            await ledger.record(old, 0)
            reader = await asyncpg.connect(postgres_url)
            async with reader.transaction():
                assert await reader.fetchval("SELECT count(*) FROM authorization_audit") == 1
                with pytest.raises(LedgerUnavailable):
                    await ledger.drop_audit_before(at(2021, 3))
            await reader.close()
            assert await ledger.decisions(ANY, 10, None) == [old]
            assert (await ledger.drop_audit_before(at(2021, 3))).tables == ["authorization_audit_2021_02"]
            assert await ledger.decisions(ANY, 10, None) == []

    run(scenario())


def test_only_what_this_writer_decided_is_lost_with_its_queue(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as first, opened(postgres_url) as second:
            mine, other = PostgresLedger(first, "mine"), PostgresLedger(second, "other")
            lost, kept, theirs = decide(), decide(at(2021, 2)), decide()
            await mine.record(lost, 0)
            await mine.record(kept, 0)
            await other.record(theirs, 0)
            assert (await mine.record(theirs, 0)).decision == theirs
            assert await mine.fail_lost([kept.request_id], 9_000) == 1
            statuses = [await mine.find(decision.request_id) for decision in (lost, kept, theirs)]
            assert [record.status.value if record else None for record in statuses] == [
                "FAILED", "PROCESSING", "PROCESSING",
            ]  # fmt: skip

    run(scenario())


def test_what_was_changed_is_counted_although_the_answer_was_lost(
    postgres_url: str, postgres_server: Server, decide: Decide
) -> None:
    async def scenario() -> None:
        query = urlsplit(postgres_url).query
        async with losing_answers(postgres_server.url) as proxy, opened(f"{proxy.url}?{query}") as store:
            ledger = PostgresLedger(store, "w")
            dead, lost = decide(), decide()
            await ledger.record(dead, 0)
            await ledger.finish(Finished(dead.request_id, RequestStatus.FAILED, 3, 503, "http_503", 1, b"sealed"))
            await ledger.record(lost, 0)
            proxy.to_lose = 1
            assert await ledger.discard([dead.request_id]) == 1
            proxy.to_lose = 1
            assert await ledger.fail_lost([], 9_000) == 1
            assert proxy.to_lose == 0
            assert await ledger.count_dead_letters() == 0

    run(scenario())


async def give_up(store: PostgresStore, request_id: str) -> None:
    """As an older release does it, which knows fewer columns."""
    statement = (
        "UPDATE charging_requests SET status = 'FAILED', attempts = 3, last_status_code = 503, processed_at = 3000,"
        " sealed = $2 WHERE request_id = $1"
    )
    await store.transaction(lambda connection, _: connection.execute(statement, request_id, b"sealed"))


def test_dead_letters_of_an_older_release_are_counted(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        before = await PostgresStore.open(postgres_url, {"ledger": LEDGER_TABLES["ledger"][:2]}, LedgerUnavailable)
        old = PostgresLedger(before, "old")
        made = [decide() for _ in range(4)]
        for decision in made:
            await old.record(decision, 1_000, "north")
        for decision in made[:3]:
            await give_up(before, decision.request_id)
        async with opened(postgres_url) as store:
            ledger = PostgresLedger(store, "new")
            assert await ledger.count_dead_letters() == 3
            assert await ledger.sealed_prefixes(5) == {b"seale"}
            # The older release goes on beside the new one.
            await give_up(before, made[3].request_id)
            await old.discard([made[0].request_id])
            await old.restart(made[1].request_id, 4_000)
            assert await ledger.count_dead_letters() == 2
            await store.transaction(lambda connection, _: connection.execute("TRUNCATE charging_requests"))
            assert await ledger.count_dead_letters() == 0
        await before.close()

    run(scenario())


def test_the_coming_month_is_there_ahead(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            await asyncio.gather(*(PostgresLedger(store, w).record(decide(now_ms()), 0) for w in "abcdef"))
            today = datetime.now(UTC)
            months = [today, today.replace(year=today.year + today.month // 12, month=today.month % 12 + 1, day=1)]
            found = await rows(
                store,
                "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'authorization_audit'::regclass",
            )
            assert {(f"authorization_audit_{month:%Y_%m}",) for month in months} <= set(found)

    run(scenario())


def test_the_audit_is_indexed_as_the_contract_says(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            await PostgresLedger(store, "w").record(decide(at(2022, 5)), 0)
            found = await rows(store, "SELECT indexdef FROM pg_indexes WHERE tablename = 'authorization_audit_2022_05'")
            for wanted in ("(lower(station_id), ", "(status, ", '("timestamp"'):
                assert any(wanted in definition for (definition,) in found), wanted

    run(scenario())


def test_the_decision_and_its_audit_row_are_in_one_commit(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            ledger = PostgresLedger(store, "w")
            await store.transaction(
                lambda connection, _: connection.execute(
                    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
                    "CREATE TRIGGER refuse BEFORE INSERT ON authorization_audit FOR EACH ROW EXECUTE FUNCTION refuse()"
                )
            )
            decision = decide()
            with pytest.raises(LedgerUnavailable):
                await ledger.record(decision, 0)
            assert await ledger.recorded(decision.request_id) is None

    run(scenario())


def test_what_a_broker_may_say_is_recorded(postgres_url: str, decide: Decide) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            ledger = PostgresLedger(store, "w")
            odd = decide(station="a\0b", reason="c\0d", status=Status.INVALID)
            assert (await ledger.record(odd, 0)).decision == odd
            recorded = await ledger.recorded(odd.request_id)
            assert recorded is not None
            assert (recorded.decision.station_id, recorded.decision.reason) == ("a\ufffdb", "c\ufffdd")
            ledger.accepted("odd", "a\0b", 0)
            await ledger.close()
            accepted = await ledger.find("odd")
            assert accepted is not None
            assert accepted.station_id == "a\ufffdb"

    run(scenario())


def test_a_claim_whose_answer_was_lost_holds(postgres_url: str, postgres_server: Server) -> None:
    async def scenario() -> None:
        query = urlsplit(postgres_url).query
        async with losing_answers(postgres_server.url) as proxy, opened(f"{proxy.url}?{query}") as store:
            proxy.to_lose = 1
            claim = Claim("body", "request", now_ms())
            assert await PostgresLedger(store).claim("key", claim) == claim

    run(scenario())


def test_processes_that_claim_one_key_at_once_agree(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as first, opened(postgres_url) as second:
            ledgers = [PostgresLedger(first), PostgresLedger(second)]
            claims = [
                ledger.claim(f"key-{key}", Claim("body", f"request-{key}-{number}", 1_000))
                for key in range(50)
                for number, ledger in enumerate(ledgers)
            ]
            assert len({claim.request_id for claim in await asyncio.gather(*claims)}) == 50

    run(scenario())


def test_changes_by_several_processes_are_seen_in_order_and_whole(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as first, opened(postgres_url) as second:
            lists = [PostgresAccessList(first), PostgresAccessList(second)]
            seen: set[str] = set()
            newest = 0

            async def change(access_list: PostgresAccessList, start: int) -> None:
                for number in range(start, start + 60):
                    await access_list.put([AccessEntry(f"{number:064x}")])

            changing = [asyncio.create_task(change(each, n * 60)) for n, each in enumerate(lists)]
            while len(seen) < 120:
                newest, changed = await lists[0].changes(newest)
                assert changed is not None
                seen |= changed
            await asyncio.gather(*changing)
            assert newest == 120

    run(scenario())


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_it_heals_by_itself_after_the_server_was_away(
    postgres_url: str, postgres_server: Server, decide: Decide, end: str
) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            ledger, access_list = PostgresLedger(store, "w"), PostgresAccessList(store)
            before, after = decide(), decide()
            await ledger.record(before, 0)
            await asyncio.to_thread(getattr(postgres_server, end))
            finished = Finished(before.request_id, RequestStatus.COMPLETED, 1, 200, None, 1, None)
            for attempt in (
                ledger.check(), ledger.record(after, 0), ledger.finish(finished), ledger.find("x"),
                ledger.claim("k", Claim("b", "r", 1)), access_list.entry("x"), access_list.changes(0),
            ):  # fmt: skip
                with pytest.raises(LedgerUnavailable):
                    await attempt
            for number in range(2_000):
                ledger.accepted(f"request-{number}", "station", 0)
            await asyncio.to_thread(postgres_server.start)
            while await rows(store, "SELECT count(*) FROM charging_requests WHERE status = 'QUEUED'") != [(2_000,)]:
                await asyncio.sleep(0.05)
            await ledger.check()
            await ledger.record(after, 0)
            assert [row.decision for row in await ledger.audit_after(0, 10)] == [before, after]

    run(scenario())


def test_it_goes_on_after_the_server_lost_its_data(postgres_server: Server, decide: Decide) -> None:
    async def scenario() -> None:
        told: list[AuditRow] = []
        async with opened(postgres_server.url) as store:
            ledger, access_list = PostgresLedger(store, "w", told.extend), PostgresAccessList(store)
            for _ in range(3):
                await ledger.record(decide(), 0)
            await access_list.put([AccessEntry("1"), AccessEntry("2")])
            await asyncio.to_thread(postgres_server.wipe)
            await asyncio.to_thread(postgres_server.start)
            await ledger.record(decide(), 0)
            assert [row.sequence for row in told] == [1, 2, 3, 4]
            assert await ledger.audit_after(3, 10) == told[3:]
            assert await access_list.changes(2) == (0, None)
        await asyncio.to_thread(postgres_server.wipe)

    run(scenario())


def test_it_works_behind_a_transaction_mode_pooler(postgres_server: Server, decide: Decide) -> None:
    database = f"d{uuid4().hex[:12]}"

    async def scenario() -> None:
        connection = await asyncpg.connect(postgres_server.url)
        await connection.execute(f"CREATE DATABASE {database}")
        await connection.close()
        with pooled(postgres_server) as url:
            async with opened(urlsplit(url)._replace(path=f"/{database}").geturl()) as store:
                ledger, access_list = PostgresLedger(store, "w"), PostgresAccessList(store)
                made = [decide(now_ms()) for _ in range(100)]

                async def way(decision: Decision) -> None:
                    await access_list.entry(decision.driver_token_hash)
                    await ledger.record(decision, 0)
                    await ledger.attempted(decision.request_id, 1, 500, "http_500")
                    await ledger.finish(Finished(decision.request_id, RequestStatus.COMPLETED, 2, 200, None, 1, None))

                await asyncio.gather(*map(way, made))
                for decision in made:
                    record = await ledger.find(decision.request_id)
                    assert record is not None
                    assert record.status is RequestStatus.COMPLETED
                await ledger.check()

    run(scenario())
