"""One suite for every ledger."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargegate.audit.base import AuditRow
from chargegate.ledger.base import (
    AccessList,
    CallbackRecord,
    Claim,
    DecisionFilter,
    Finished,
    Ledger,
    LedgerUnavailable,
    Recorded,
    StationStats,
)
from chargegate.model import Decision, RequestStatus, Status


class Database(Protocol):
    ledger: Callable[..., Ledger]
    access_list: Callable[[], AccessList]

    async def execute(self, statement: str) -> list[tuple[Any, ...]]: ...

    async def close(self) -> None: ...


Run = Callable[[Callable[[Database], Coroutine[Any, Any, None]]], None]
Decide = Callable[..., Decision]

HERE = "123e4567-e89b-12d3-a456-426614174000"
THERE = "00000000-0000-4000-8000-00000000000b"
ANY = DecisionFilter()
CLAIM_MS = 3_600_000


def delivered(request_id: str, at: int = 3_000, attempts: int = 1) -> Finished:
    return Finished(request_id, RequestStatus.COMPLETED, attempts, 200, None, at, None)


def given_up(request_id: str, at: int = 3_000, sealed: bytes = b"sealed") -> Finished:
    return Finished(request_id, RequestStatus.FAILED, 3, 503, "http_503", at, sealed)


def test_a_request_has_one_decision_however_often_it_is_recorded(run: Run, decide: Decide) -> None:
    first = decide()
    second = decide(5_000, request_id=first.request_id, status=Status.NOT_ALLOWED)

    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        assert await ledger.recorded(first.request_id) is None
        made = Recorded(first, 0, 2_000, None, RequestStatus.PROCESSING)
        assert await ledger.record(first, 1_000) == made
        assert await ledger.record(second, 1_000) == made
        assert await ledger.recorded(first.request_id) == made
        assert await ledger.decisions(ANY, 10, None) == [first]

    run(scenario)


def test_fifty_decisions_at_once_about_one_request_are_one(run: Run, decide: Decide) -> None:
    rivals = [decide(number, request_id="one", status=status) for number in range(25) for status in list(Status)[:2]]
    told: list[AuditRow] = []

    async def scenario(database: Database) -> None:
        ledger = database.ledger(told.extend)
        others = [decide() for _ in range(20)]
        recorded = await asyncio.gather(*(ledger.record(decision, 0) for decision in [*rivals, *others]))
        assert len({each.decision for each in recorded[:50]}) == 1
        assert [each.decision for each in recorded[50:]] == others
        assert recorded[0].decision in rivals
        ids = [row.decision.request_id for row in told]
        assert sorted(ids) == sorted(["one", *(decision.request_id for decision in others)])

    run(scenario)


def test_what_was_recorded_survives_a_reopen(run: Run, decide: Decide) -> None:
    decision = decide(reason="token_blocked", status=Status.NOT_ALLOWED)

    async def write(database: Database) -> None:
        ledger = database.ledger()
        await ledger.record(decision, 1_000)
        await ledger.attempted(decision.request_id, 1, 500, "http_500")

    async def read(database: Database) -> None:
        recorded = await database.ledger().recorded(decision.request_id)
        assert recorded == Recorded(decision, 1, 2_000, None, RequestStatus.PROCESSING)

    run(write)
    run(read)


def test_audit_rows_are_told_in_the_order_of_their_numbers_before_anyone_is_woken(run: Run, decide: Decide) -> None:
    told: list[AuditRow] = []

    async def scenario(database: Database) -> None:
        ledger = database.ledger(told.extend)
        for _ in range(5):
            batch = [decide() for _ in range(7)]
            for recorded in await asyncio.gather(*(ledger.record(decision, 0) for decision in batch)):
                assert recorded.decision in [row.decision for row in told]
        await ledger.record(told[0].decision, 0)
        assert [row.sequence for row in told] == list(range(1, 36))
        assert await ledger.audit_after(0, 1_000) == told
        assert await ledger.audit_after(30, 3) == told[30:33]
        assert await ledger.audit_after(35, 3) == []

    run(scenario)


def test_the_way_of_a_request_as_a_reader_sees_it(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        decision = decide()
        request_id = decision.request_id
        assert await ledger.find(request_id) is None
        await ledger.record(decision, 1_000)
        record = await ledger.find(request_id)
        assert record is not None
        assert (record.status, record.created_at, record.processed_at) == (RequestStatus.PROCESSING, 1_000, None)
        assert record.decision == decision
        assert record.callback is None
        await ledger.attempted(request_id, 1, None, "timeout")
        record = await ledger.find(request_id)
        assert record is not None
        assert record.callback == CallbackRecord(1, None, "timeout", None)
        await ledger.finish(delivered(request_id, 3_000, attempts=2))
        record = await ledger.find(request_id)
        assert record is not None
        assert (record.status, record.processed_at) == (RequestStatus.COMPLETED, 3_000)
        assert record.callback == CallbackRecord(2, 200, None, 3_000)

    run(scenario)


def test_a_dead_letter_keeps_what_is_sealed_until_its_replay_is_delivered(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        decision = decide(reason="token_blocked", status=Status.NOT_ALLOWED)
        request_id = decision.request_id
        await ledger.record(decision, 1_000)
        assert await ledger.dead_letter(request_id) is None
        await ledger.finish(given_up(request_id))
        letter = await ledger.dead_letter(request_id)
        assert letter is not None
        assert msgspec.structs.astuple(letter) == (
            request_id, HERE, "0123456789abcdef", "not_allowed", "token_blocked",
            1_000, 3_000, 3, 503, "http_503", b"sealed",
        )  # fmt: skip
        assert await ledger.count_dead_letters() == 1
        assert await ledger.sealed_prefixes(3) == {b"sea"}
        record = await ledger.find(request_id)
        assert record is not None
        assert record.status is RequestStatus.FAILED
        assert record.callback == CallbackRecord(3, 503, "http_503", None)

        await ledger.restart(request_id, 4_000)
        assert await ledger.dead_letter(request_id) is None
        again = await ledger.recorded(request_id)
        assert again == Recorded(decision, 0, 4_000, None, RequestStatus.PROCESSING)
        await ledger.finish(delivered(request_id, 5_000))
        assert await ledger.count_dead_letters() == 0
        assert await database.execute("SELECT count(*) FROM charging_requests WHERE sealed IS NOT NULL") == [(0,)]

    run(scenario)


def test_many_callbacks_end_in_one_commit(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        made = [decide() for _ in range(300)]
        await asyncio.gather(*(ledger.record(decision, 0) for decision in made))
        ends = [(given_up if n % 3 == 0 else delivered)(d.request_id, 10_000 + n) for n, d in enumerate(made)]
        await asyncio.gather(*map(ledger.finish, ends))
        assert await ledger.count_dead_letters() == 100
        for number in (0, 1, 299):
            record = await ledger.find(made[number].request_id)
            assert record is not None
            assert (record.status, record.processed_at) == (ends[number].status, ends[number].at)

    run(scenario)


def page_through(
    fetch: Callable[[tuple[int, str] | None], Coroutine[Any, Any, list[Any]]], key: Callable[[Any], Any]
) -> Any:
    async def pages() -> list[Any]:
        seen: list[Any] = []
        after = None
        while page := await fetch(after):
            seen += page
            after = key(page[-1])
        return seen

    return pages()


async def emptied(database: Database) -> Ledger:
    for table in ("charging_requests", "authorization_audit"):
        await database.execute(f"DELETE FROM {table}")
    return database.ledger()


times = st.lists(st.integers(1_000, 1_010), max_size=30)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(times, st.integers(1, 7), st.none() | st.integers(1_000, 1_010), st.none() | st.integers(1_000, 1_010))
def test_pages_of_decisions_are_whole_and_newest_first(
    run: Run, decide: Decide, moments: list[int], limit: int, since: int | None, until: int | None
) -> None:
    async def scenario(database: Database) -> None:
        ledger = await emptied(database)
        made = [decide(moment) for moment in moments]
        await asyncio.gather(*(ledger.record(decision, 0) for decision in made))
        which = DecisionFilter(since=since, until=until)
        seen = await page_through(
            lambda after: ledger.decisions(which, limit, after),  # type: ignore[arg-type,return-value]  # a Sequence
            lambda decision: (decision.timestamp, decision.request_id),
        )
        inside = [d for d in made if (since is None or d.timestamp >= since) and (until is None or d.timestamp < until)]
        assert seen == sorted(inside, key=lambda d: (d.timestamp, d.request_id), reverse=True)

    run(scenario)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(times, st.integers(1, 7), st.none() | st.integers(1_000, 1_010), st.none() | st.integers(1_000, 1_010))
def test_pages_of_dead_letters_are_whole_and_newest_first(
    run: Run, decide: Decide, moments: list[int], limit: int, since: int | None, until: int | None
) -> None:
    async def scenario(database: Database) -> None:
        ledger = await emptied(database)
        made = [(decide(), moment) for moment in moments]
        await asyncio.gather(*(ledger.record(decision, 0) for decision, _ in made))
        await asyncio.gather(*(ledger.finish(given_up(decision.request_id, at)) for decision, at in made))
        seen = await page_through(
            lambda after: ledger.dead_letters(since, until, limit, after),  # type: ignore[arg-type,return-value]  # a Sequence
            lambda letter: (letter.failed_at, letter.request_id),
        )
        inside = [
            (at, d.request_id) for d, at in made if (since is None or at >= since) and (until is None or at < until)
        ]
        assert [(letter.failed_at, letter.request_id) for letter in seen] == sorted(inside, reverse=True)

    run(scenario)


def test_decisions_are_filtered_by_each_part_and_all(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        here = decide(1_000, station=HERE.upper())
        late = decide(3_000, status=Status.UNKNOWN, reason="authorization_timeout")
        there = decide(2_000, station=THERE, status=Status.UNKNOWN, reason="circuit_open")
        for decision in (here, late, there):
            await ledger.record(decision, 0)
        expected = {
            DecisionFilter(station_id=HERE): [late, here],
            DecisionFilter(station_id=HERE.title()): [late, here],
            DecisionFilter(status="unknown"): [late, there],
            DecisionFilter(reason="circuit_open"): [there],
            DecisionFilter(since=2_000): [late, there],
            DecisionFilter(until=2_000): [here],
            DecisionFilter(HERE, "unknown", 3_000, 3_001, "authorization_timeout"): [late],
            DecisionFilter(HERE, "allowed", 3_000): [],
        }
        for which, found in expected.items():
            assert await ledger.decisions(which, 10, None) == found
        assert here.station_id == HERE.upper()

    run(scenario)


def test_stations_are_counted_busiest_first(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        for station, status, moment in (
            (THERE, Status.ALLOWED, 1_000),
            (HERE, Status.ALLOWED, 1_000),
            (HERE.upper(), Status.UNKNOWN, 2_000),
            (HERE, Status.INVALID, 3_000),
            (HERE, Status.NOT_ALLOWED, 4_000),
        ):
            await ledger.record(decide(moment, station=station, status=status), 0)
        assert await ledger.station_stats(None, None) == [
            StationStats(HERE, 4, 1, 1, 1, 1),
            StationStats(THERE, 1, 1, 0, 0, 0),
        ]
        assert await ledger.station_stats(2_000, 4_000) == [StationStats(HERE, 2, 0, 0, 1, 1)]

    run(scenario)


def test_a_sinks_position_is_its_own(run: Run) -> None:
    async def write(database: Database) -> None:
        ledger = database.ledger()
        assert await ledger.sink_position("csv") == 0
        for position in (5, 9):
            await ledger.save_sink_position("csv", position)
        await ledger.save_sink_position("other", 2)

    async def read(database: Database) -> None:
        ledger = database.ledger()
        assert [await ledger.sink_position(sink) for sink in ("csv", "other", "third")] == [9, 2, 0]

    run(write)
    run(read)


def test_a_key_stands_for_its_first_request_for_an_hour(run: Run) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        first = Claim("body", "request-1", 1_000)
        assert await ledger.claim("key", first) == first
        for later in (1_000, 1_000 + CLAIM_MS - 1):
            assert await ledger.claim("key", Claim("other", "request-2", later)) == first
        assert await ledger.claim("other key", Claim("body", "request-3", 1_000)) == Claim("body", "request-3", 1_000)
        after = Claim("other", "request-4", 1_000 + CLAIM_MS)
        assert await ledger.claim("key", after) == after

    run(scenario)


def test_fifty_claims_at_once_agree(run: Run) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        claims = [ledger.claim("key", Claim("body", f"request-{n}", 1_000 + n)) for n in range(50)]
        assert len(set(await asyncio.gather(*claims))) == 1

    run(scenario)


def test_old_claims_do_not_pile_up(run: Run) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        for hour in range(3):
            at = hour * CLAIM_MS + 1
            claims = [ledger.claim(f"{hour}-{n}", Claim("body", "request", at)) for n in range(300)]
            await asyncio.gather(*claims)
        assert await database.execute("SELECT count(*) FROM idempotency_keys") == [(300,)]

    run(scenario)


def test_a_fact_is_remembered_from_the_first_time(run: Run) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        assert await ledger.fact("key", "a") == "a"
        assert await ledger.fact("key", "b") == "a"
        assert await ledger.fact("other", "b") == "b"

    run(scenario)
    run(scenario_again)


async def scenario_again(database: Database) -> None:
    assert await database.ledger().fact("key", "c") == "a"


def test_a_database_that_is_gone_is_unavailable(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        await ledger.check()
        await database.close()
        for attempt in (ledger.check(), ledger.record(decide(), 0), ledger.finish(delivered("x")), ledger.find("x")):
            with pytest.raises(LedgerUnavailable):
                await attempt

    run(scenario)
