"""One suite for every ledger."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargegate.ledger.accepted import MAX_WAITING
from chargegate.ledger.base import AccessList, Ledger, LedgerUnavailable
from chargegate.ledger.records import (
    CLAIM_MS,
    AttemptRecord,
    AuditRow,
    CallbackRecord,
    Claim,
    DecisionFilter,
    Finished,
    Recorded,
    RequestRecord,
    StationStats,
)
from chargegate.ledger.rows import attempts_of, history_text, replayed, replays_of
from chargegate.model import Decision, RequestStatus, Status, new_request_id


class Database(Protocol):
    ledger: Callable[..., Ledger]
    access_list: Callable[[], AccessList]

    async def execute(self, statement: str) -> list[tuple[Any, ...]]: ...

    def refusing(self) -> AbstractAsyncContextManager[None]: ...

    async def close(self) -> None: ...


Run = Callable[[Callable[[Database], Coroutine[Any, Any, None]]], None]
Decide = Callable[..., Decision]

HERE = "123e4567-e89b-12d3-a456-426614174000"
THERE = "00000000-0000-4000-8000-00000000000b"
ANY = DecisionFilter()


ATTEMPTS = (AttemptRecord(2_001, None, "timeout", 1_000), AttemptRecord(2_990, 200, None, 10))


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
        made = Recorded(first, 0, 2_000, None)
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
        await ledger.attempted(decision.request_id, 1, 500, "http_500", history_text(ATTEMPTS[:1]))

    async def read(database: Database) -> None:
        recorded = await database.ledger().recorded(decision.request_id)
        assert recorded == Recorded(decision, 1, 2_000, None, history_text(ATTEMPTS[:1]))

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


def test_the_audit_rows_beside_others_in_one_millisecond(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        moments = [
            (HERE, Status.ALLOWED, 5),
            (HERE.upper(), Status.ALLOWED, 5),
            (HERE, Status.ALLOWED, 5),
            (HERE, Status.UNKNOWN, 5),
            (THERE, Status.ALLOWED, 5),
            (HERE, Status.ALLOWED, 6),
            (THERE, Status.ALLOWED, 5),
        ]
        for station, status, at in moments:
            await ledger.record(decide(station=station, status=status, timestamp=at), at)
        rows = await ledger.audit_after(0, 100)

        async def beside(*numbers: int) -> list[int]:
            return sorted(row.sequence for row in await ledger.audit_beside([rows[number - 1] for number in numbers]))

        assert await beside(1) == [2, 3]
        assert await beside(2, 3) == [1]
        assert await beside(1, 2, 3, 4, 6) == []
        assert await beside(4, 5) == [7]
        assert await beside(3, 7, 6) == [1, 2, 5]
        assert await beside() == []
        found = {row.sequence: row for row in await ledger.audit_beside(rows[:1])}
        assert found == {row.sequence: row for row in rows[1:3]}

    run(scenario)


def test_the_audit_between_two_times_but_for_what_a_sink_is_still_to_get(run: Run, decide: Decide) -> None:
    told: list[AuditRow] = []

    async def scenario(database: Database) -> None:
        ledger = database.ledger(told.extend)
        for at in (1_000, 3_000, 2_000, 3_000, 4_000):
            await ledger.record(msgspec.structs.replace(decide(), timestamp=at), 0)
        by_time = sorted(told, key=lambda row: (row.decision.timestamp, row.decision.request_id))
        assert await ledger.audit_between("", None, None, None, 10) == by_time
        assert await ledger.audit_between("csv", None, None, None, 10) == by_time
        assert await ledger.audit_between("", 2_000, 4_000, None, 10) == by_time[1:4]
        assert await ledger.audit_between("", 2_000, 4_000, None, 2) == by_time[1:3]
        after = (by_time[2].decision.timestamp, by_time[2].decision.request_id)
        assert await ledger.audit_between("", 2_000, 4_000, after, 10) == by_time[3:4]
        await ledger.save_sink_position("csv", 2)
        assert await ledger.audit_between("csv", None, None, None, 10) == [told[0], told[1]]
        assert await ledger.audit_between("influx", None, None, None, 10) == by_time

    run(scenario)


def test_an_end_that_nobody_waits_for_is_told_once_it_is_on_disk(run: Run, decide: Decide) -> None:
    decisions = [decide(number) for number in range(1, 30)]

    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        for decision in decisions:
            await ledger.record(decision, 1_000)
        told: asyncio.Queue[str] = asyncio.Queue()
        for decision in decisions:
            ledger.finish_soon(delivered(decision.request_id), partial(told.put_nowait, decision.request_id))
        for _ in decisions:
            record = await ledger.find(await told.get())
            assert record is not None
            assert record.status is RequestStatus.COMPLETED

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
        await ledger.attempted(request_id, 1, None, "timeout", history_text(ATTEMPTS[:1]))
        record = await ledger.find(request_id)
        assert record is not None
        assert record.callback == CallbackRecord(1, None, "timeout", None, ATTEMPTS[:1])
        ended = delivered(request_id, 3_000, attempts=2)
        await ledger.finish(msgspec.structs.replace(ended, history=history_text(ATTEMPTS)))
        record = await ledger.find(request_id)
        assert record is not None
        assert (record.status, record.processed_at) == (RequestStatus.COMPLETED, 3_000)
        assert record.callback == CallbackRecord(2, 200, None, 3_000, ATTEMPTS)
        await ledger.restart(request_id, 4_000)
        recorded = await ledger.recorded(request_id)
        assert recorded is not None
        assert (recorded.attempts, attempts_of(recorded.history)) == (0, ATTEMPTS)

    run(scenario)


def test_replays_are_kept_with_the_attempts(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        request_id = decide().request_id
        await ledger.record(decide(request_id=request_id), 1_000)
        history = history_text(ATTEMPTS)
        await ledger.finish(msgspec.structs.replace(given_up(request_id), history=history))
        for at in (70_000, 80_000):
            history = replayed(history, at)
            await ledger.restart(request_id, at, history)
        record, recorded = await ledger.find(request_id), await ledger.recorded(request_id)
        assert record is not None
        assert recorded is not None
        assert record.callback == CallbackRecord(0, None, None, None, ATTEMPTS, (70_000, 80_000))
        assert replays_of(recorded.history) == (70_000, 80_000)

    run(scenario)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([None, 500]), st.sampled_from([None, "replayed"]))),
    st.lists(st.integers(0, 9), max_size=30),
)
def test_a_history_gives_back_what_was_put_in(tried: list[Any], again: list[int]) -> None:
    attempts = [AttemptRecord(at, code, error, at) for at, code, error in sorted(tried, key=lambda one: one[0])]
    replays = sorted(again)
    text = history_text(attempts, replays)
    assert attempts_of(text) == tuple(attempts)
    assert replays_of(text) == tuple(replays)
    assert replays_of(replayed(text, 10)) == tuple([*replays, 10][-20:])
    assert (text == "") == (not attempts and not replays)
    # What an earlier release reads is a list of attempts.
    assert all(len(each) == 4 for each in json.loads(text or "[]"))


@pytest.mark.parametrize("error", ["address_blocked", "name_not_resolved"])
def test_what_the_last_release_told_of_names_inside_is_told_no_more(run: Run, decide: Decide, error: str) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        request_id = decide().request_id
        await ledger.record(decide(request_id=request_id), 1_000)
        await ledger.finish(msgspec.structs.replace(given_up(request_id), error=error))
        record, letter = await ledger.find(request_id), await ledger.dead_letter(request_id)
        [listed] = await ledger.dead_letters(None, None, 10, None)
        assert record is not None
        assert record.callback is not None
        assert letter == listed
        assert record.callback.last_error == listed.last_error == "no_usable_address"

    run(scenario)


def test_a_dead_letter_keeps_what_is_sealed_until_its_replay_is_delivered(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        decision = decide(reason="token_blocked", status=Status.NOT_ALLOWED)
        request_id = decision.request_id
        await ledger.record(decision, 1_000, "north")
        assert await ledger.dead_letter(request_id) is None
        await ledger.finish(given_up(request_id))
        letter = await ledger.dead_letter(request_id)
        assert letter is not None
        assert msgspec.structs.astuple(letter) == (
            request_id, HERE, "0123456789abcdef", "not_allowed", "token_blocked",
            1_000, 3_000, 3, 503, "http_503", b"sealed", "north",
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
        assert again == Recorded(decision, 0, 4_000, None)
        await ledger.finish(delivered(request_id, 5_000))
        assert await ledger.count_dead_letters() == 0
        assert await database.execute("SELECT count(*) FROM charging_requests WHERE sealed IS NOT NULL") == [(0,)]

    run(scenario)


def test_how_long_the_latest_delivered_took(run: Run, decide: Decide) -> None:
    made = [decide(2_000 + number) for number in range(4)]

    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        for decision in made:
            await ledger.record(decision, 1_000)
        await ledger.finish(delivered(made[0].request_id, at=1_500))
        await ledger.finish(delivered(made[1].request_id, at=4_000))
        await ledger.finish(delivered(made[2].request_id, at=5_000))
        await ledger.finish(given_up(made[3].request_id, at=6_000))
        assert list(await ledger.latest_delivered(2_000, 10)) == [4_000, 3_000]
        assert list(await ledger.latest_delivered(0, 1)) == [4_000]
        await ledger.discard([made[3].request_id])
        assert list(await ledger.latest_delivered(5_001, 10)) == []

    run(scenario)


def test_what_is_discarded_stays_failed_and_is_no_dead_letter(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        dead, other, fine = decide(), decide(), decide()
        for decision in (dead, other, fine):
            await ledger.record(decision, 1_000)
        await ledger.finish(given_up(dead.request_id))
        await ledger.finish(given_up(other.request_id, sealed=b"other"))
        await ledger.finish(delivered(fine.request_id))
        before = await ledger.find(dead.request_id)
        assert await ledger.discard([dead.request_id, fine.request_id, "unknown", dead.request_id]) == 1
        assert await ledger.discard([dead.request_id]) == 0
        assert await ledger.discard([]) == 0
        assert await ledger.find(dead.request_id) == before
        assert await ledger.dead_letter(dead.request_id) is None
        assert await ledger.count_dead_letters() == 1
        assert [letter.request_id for letter in await ledger.dead_letters(None, None, 10, None)] == [other.request_id]
        assert await ledger.sealed_prefixes(3) == {b"oth"}

    run(scenario)


def test_what_is_lost_with_the_queue_has_failed(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        lost, kept, replayed, fine, dead = made = [decide() for _ in range(5)]
        for decision in made:
            await ledger.record(decision, 1_000)
        await ledger.attempted(lost.request_id, 2, 500, "http_500")
        await ledger.finish(given_up(replayed.request_id))
        await ledger.restart(replayed.request_id, 4_000)
        await ledger.finish(delivered(fine.request_id))
        await ledger.finish(given_up(dead.request_id))
        waiting = new_request_id()
        ledger.accepted(waiting, HERE, 1_000)
        await ledger.close()
        untouched = [waiting, *(d.request_id for d in (kept, fine, dead))]
        before = [await ledger.find(request_id) for request_id in untouched]
        assert await ledger.fail_lost(iter([kept.request_id, "unknown"]), 9_000) == 2
        assert [await ledger.find(request_id) for request_id in untouched] == before
        record = await ledger.find(lost.request_id)
        assert record is not None
        assert (record.status, record.processed_at, record.decision) == (RequestStatus.FAILED, 9_000, lost)
        assert record.callback == CallbackRecord(2, 500, "lost_with_the_queue", None)
        assert await ledger.dead_letter(lost.request_id) is None
        letter = await ledger.dead_letter(replayed.request_id)
        assert letter is not None
        assert (letter.sealed, letter.last_error) == (b"sealed", "lost_with_the_queue")
        assert await ledger.fail_lost([kept.request_id], 9_500) == 0
        assert await ledger.fail_lost([], 9_500) == 1

    run(scenario)


async def found(ledger: Ledger, request_id: str) -> RequestRecord:
    """The record, once it is there."""
    while (record := await ledger.find(request_id)) is None:
        await asyncio.sleep(0.01)
    return record


QUEUED = "SELECT count(*) FROM charging_requests WHERE status = 'QUEUED'"


def test_an_accepted_request_is_found_before_its_decision_and_nowhere_else(run: Run, decide: Decide) -> None:
    told: list[AuditRow] = []

    async def scenario(database: Database) -> None:
        ledger = database.ledger(told.extend)
        decision = decide(2_000, station=HERE.upper())
        request_id = decision.request_id
        ledger.accepted(request_id, HERE.upper(), 1_000)
        queued = RequestRecord(request_id, HERE.upper(), RequestStatus.QUEUED, 1_000, None, None, None)
        assert await found(ledger, request_id) == queued
        assert await ledger.recorded(request_id) is None
        assert await ledger.decisions(ANY, 10, None) == []
        assert await ledger.station_stats(None, None) == []
        assert await ledger.audit_after(0, 10) == told == []
        assert await ledger.dead_letters(None, None, 10, None) == []
        assert await ledger.dead_letter(request_id) is None
        assert await ledger.count_dead_letters() == 0
        assert await ledger.discard([request_id]) == 0
        assert await ledger.sealed_prefixes(3) == frozenset()
        assert await database.execute(
            "SELECT count(*) FROM charging_requests WHERE coalesce(driver_token_hash, '') = '' AND sealed IS NULL"
        ) == [(1,)]

        assert await ledger.record(decision, 1_000) == Recorded(decision, 0, 2_000, None)
        record = RequestRecord(request_id, HERE.upper(), RequestStatus.PROCESSING, 1_000, None, decision, None)
        assert await ledger.find(request_id) == record
        again = await ledger.record(decide(3_000, request_id=request_id, status=Status.UNKNOWN), 1_000)
        assert again == await ledger.recorded(request_id)
        assert again.decision == decision
        assert [row.decision for row in told] == [decision]
        assert await ledger.decisions(ANY, 10, None) == [decision]
        await ledger.finish(given_up(request_id))
        letter = await ledger.dead_letter(request_id)
        assert letter is not None
        assert (letter.driver_token_hash, letter.created_at) == (decision.driver_token_hash, 1_000)

    run(scenario)


def test_requests_that_were_only_accepted_are_listed_until_they_are_decided(run: Run, decide: Decide) -> None:
    ids = sorted(new_request_id() for _ in range(5))
    decided = decide(request_id=ids[1])

    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        await ledger.record(decide(), 1_000)
        for number, request_id in enumerate(ids):
            ledger.accepted(request_id, HERE, number, "north")
        await until(lambda: _all_queued(ledger, ids))
        await ledger.record(decided, 1_000)
        first = await ledger.queued(3, None)
        assert [each.request_id for each in first] == [ids[4], ids[3], ids[2]]
        assert [(each.status, each.client, each.created_at) for each in first] == [
            (RequestStatus.QUEUED, "north", number) for number in (4, 3, 2)
        ]
        assert [each.request_id for each in await ledger.queued(3, ids[2])] == [ids[0]]
        assert await ledger.queued(3, ids[0]) == []

    run(scenario)


async def _all_queued(ledger: Ledger, ids: list[str]) -> bool:
    return len(await ledger.queued(10, None)) == len(ids)


async def until(holds: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    while not await holds():
        await asyncio.sleep(0.02)


def test_several_requests_are_found_at_once(run: Run, decide: Decide) -> None:
    decisions = [decide(number) for number in range(3)]

    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        for each in decisions:
            await ledger.record(each, 1_000, "north")
        asked = [each.request_id for each in decisions[:2]]
        found = await ledger.find_all([*asked, new_request_id(), "", "'"])
        assert {each.request_id: each for each in found} == {one: await ledger.find(one) for one in asked}
        assert await ledger.find_all([]) == []

    run(scenario)


def test_what_is_known_of_a_request_is_not_overwritten_when_it_is_accepted(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        under_way, fine, dead = made = [decide() for _ in range(3)]
        for decision in made:
            await ledger.record(decision, 1_000)
        await ledger.attempted(under_way.request_id, 1, 500, "http_500")
        await ledger.finish(delivered(fine.request_id))
        await ledger.finish(given_up(dead.request_id))
        ledger.accepted("waiting", HERE, 1_000)
        await found(ledger, "waiting")
        ids = [*(decision.request_id for decision in made), "waiting"]
        before = [await ledger.find(request_id) for request_id in ids]
        for request_id in ids:
            ledger.accepted(request_id, THERE, 7_000)
        await ledger.close()
        assert [await ledger.find(request_id) for request_id in ids] == before
        assert await database.execute("SELECT count(*) FROM charging_requests") == [(4,)]

    run(scenario)


def test_requests_accepted_and_decided_at_once_have_their_decision(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        first, second = database.ledger(), database.ledger(writer="second")
        made = [decide() for _ in range(200)]
        recording = []
        for number, decision in enumerate(made):
            if number % 2:
                second.accepted(decision.request_id, HERE, 1_000)
            recording.append(asyncio.ensure_future(first.record(decision, 1_000)))
            if number % 3:
                second.accepted(decision.request_id, HERE, 1_000)
        assert [recorded.decision for recorded in await asyncio.gather(*recording)] == made
        await second.close()
        assert await database.execute(QUEUED) == [(0,)]
        for decision in made:
            assert (await found(first, decision.request_id)).decision == decision

    run(scenario)


def test_two_writers_that_decide_one_accepted_request_at_once_agree(run: Run, decide: Decide) -> None:
    told: list[AuditRow] = []

    async def scenario(database: Database) -> None:
        first, second = database.ledger(told.extend, writer="first"), database.ledger(told.extend, writer="second")
        for ledger in (first, second):
            await ledger.record(decide(request_id="before"), 0)  # what a first decision makes, one after the other
        told.clear()
        ids = sorted(f"request-{number:03}" for number in range(100))
        for request_id in ids[::2]:
            first.accepted(request_id, HERE, 1_000)
        await first.close()
        for request_id in ids[1::2]:
            second.accepted(request_id, HERE, 1_000)
        answers = await asyncio.gather(
            *(
                ledger.record(decide(request_id=request_id, status=status), 1_000)
                for request_id in ids
                for ledger, status in ((first, Status.ALLOWED), (second, Status.NOT_ALLOWED))
            )
        )
        await second.close()
        assert [one.decision for one in answers[::2]] == [other.decision for other in answers[1::2]]
        held = {answer.decision.request_id: answer.decision for answer in answers}
        assert sorted(held) == ids
        audit = [d for d in await first.decisions(ANY, 1_000, None) if d.request_id != "before"]
        assert len(audit) == 100
        assert {d.request_id: d for d in audit} == held
        assert sorted(row.decision.request_id for row in told) == ids
        assert await database.execute(QUEUED) == [(0,)]

    run(scenario)


def test_accepted_requests_wait_for_the_database_in_bounded_number(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        async with database.refusing():
            ledger.accepted("first", HERE, 1_000)
            with pytest.raises(LedgerUnavailable):
                await ledger.record(decide(), 1_000)
            for number in range(MAX_WAITING + 4):
                ledger.accepted(f"request-{number}", HERE, 1_000)
        while await database.execute(QUEUED) != [(MAX_WAITING,)]:
            await asyncio.sleep(0.05)
        assert await ledger.find("first") is not None
        assert await ledger.find(f"request-{MAX_WAITING - 2}") is not None
        ledger.accepted("last", HERE, 1_000)
        await found(ledger, "last")
        await ledger.close()
        assert await database.execute(QUEUED) == [(MAX_WAITING + 1,)]

    run(scenario)


def test_closing_writes_what_was_accepted_if_the_database_answers(run: Run) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        for number in range(2_500):
            ledger.accepted(f"request-{number}", HERE, 1_000)
        await ledger.close()
        await ledger.close()
        assert await database.execute(QUEUED) == [(2_500,)]
        async with database.refusing():
            ledger.accepted("later", HERE, 1_000)
            await ledger.close()
        await ledger.close()
        assert await ledger.find("later") is not None
        await database.close()
        ledger.accepted("lost", HERE, 1_000)
        await ledger.close()

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


def test_a_request_belongs_to_its_client(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        north = [decide(1_000 + number, station=HERE) for number in range(3)]
        south = [decide(2_000 + number, station=THERE, status=Status.UNKNOWN, reason="x") for number in range(2)]
        nobodys = decide(3_000)
        for client, made in (("north", north), ("south", south)):
            for decision in made:
                await ledger.record(decision, 0, client)
        await ledger.record(nobodys, 0)
        assert [(await found(ledger, d.request_id)).client for d in (*north, *south, nobodys)] == [
            *["north"] * 3, *["south"] * 2, "",
        ]  # fmt: skip
        expected = {
            DecisionFilter(client="north"): north[::-1],
            DecisionFilter(client="south"): south[::-1],
            DecisionFilter(client="South"): [],
            DecisionFilter(client="north", since=1_001): north[:0:-1],
            DecisionFilter(client="south", station_id=HERE): [],
        }
        for which, decisions in expected.items():
            assert await ledger.decisions(which, 10, None) == decisions
        after = (north[2].timestamp, north[2].request_id)
        assert await ledger.decisions(DecisionFilter(client="north"), 1, after) == [north[1]]
        for limit in (None, 5):
            assert [one.station_id for one in await ledger.station_stats(None, None, client="south", limit=limit)] == [
                THERE
            ]
            assert await ledger.station_stats(None, None, client="east", limit=limit) == []
        for decision in (*north, *south, nobodys):
            await ledger.finish(given_up(decision.request_id, decision.timestamp))
        letters = await ledger.dead_letters(None, None, 10, None, client="south")
        assert [(letter.request_id, letter.client) for letter in letters] == [
            (decision.request_id, "south") for decision in reversed(south)
        ]
        assert len(await ledger.dead_letters(None, None, 10, None)) == 6

    run(scenario)


def test_the_client_of_a_request_that_was_accepted_first(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        known, unknown = decide(), decide()
        ledger.accepted(known.request_id, HERE, 1_000, "north")
        ledger.accepted(unknown.request_id, HERE, 1_000)
        assert (await found(ledger, known.request_id)).client == "north"
        assert (await found(ledger, unknown.request_id)).client == ""
        await ledger.record(known, 1_000)  # a message that cannot be opened does not tell
        await ledger.record(unknown, 1_000, "south")
        assert (await found(ledger, known.request_id)).client == "north"
        assert (await found(ledger, unknown.request_id)).client == "south"

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


def test_pages_of_stations_are_in_the_order_of_their_ids(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        ids = [f"{number:08x}-0000-4000-8000-00000000abcd" for number in range(7)]
        for number, station in enumerate(ids):
            for count in range(number % 3 + 1):
                await ledger.record(decide(1_000 + count, station=station.upper() if count else station), 0)
        seen: list[StationStats] = []
        while page := await ledger.station_stats(1_000, 1_002, limit=3, after=seen[-1].station_id if seen else None):
            assert len(page) <= 3
            seen += page
        assert seen == [
            StationStats(station, n, n, 0, 0, 0) for station, n in zip(ids, [1, 2, 2, 1, 2, 2, 1], strict=True)
        ]
        assert await ledger.station_stats(None, None, limit=2, after=ids[4].upper()) == [
            StationStats(ids[5], 3, 3, 0, 0, 0),
            StationStats(ids[6], 1, 1, 0, 0, 0),
        ]
        for limit in (None, 5):
            one = await ledger.station_stats(1_001, None, station_id=ids[5].upper(), limit=limit)
            assert one == [StationStats(ids[5], 2, 2, 0, 0, 0)]
            assert await ledger.station_stats(None, None, station_id=THERE, limit=limit) == []

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


def test_a_claim_is_released_by_its_own_request_only(run: Run) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        first, second = Claim("body", "request-1", 1_000), Claim("other", "request-2", 1_001)
        await ledger.release("key", first)
        assert await ledger.claim("key", first) == first
        await ledger.release("key", second)
        await ledger.release("other key", first)
        assert await ledger.claim("key", second) == first
        await ledger.release("key", first)
        assert await ledger.claim("key", second) == second

    run(scenario)


def test_a_claim_is_replaced_by_who_knows_it(run: Run) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        first, second, third = (Claim("body", f"request-{number}", 1_000) for number in range(3))
        assert not await ledger.replace("key", first, second)
        await ledger.claim("key", first)
        for unlike in (Claim("body", "request-0", 1_001), Claim("other", "request-0", 1_000), second):
            assert not await ledger.replace("key", unlike, third)
        assert await ledger.replace("key", first, second)
        assert not await ledger.replace("key", first, third)
        assert await ledger.claim("key", third) == second
        again = Claim("body", "request-1", 2_000)
        assert await ledger.replace("key", second, again)
        assert await ledger.claim("key", third) == again
        rivals = [Claim("body", f"rival-{number}", 3_000) for number in range(20)]
        won = await asyncio.gather(*(ledger.replace("key", again, rival) for rival in rivals))
        assert sum(won) == 1
        assert await ledger.claim("key", third) == rivals[won.index(True)]

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
        assert await ledger.put_value_if_absent("key", "a") == "a"
        assert await ledger.put_value_if_absent("key", "b") == "a"
        assert await ledger.put_value_if_absent("other", "b") == "b"

    run(scenario)
    run(scenario_again)


def test_a_fact_that_is_replaced_is_the_last_one(run: Run) -> None:
    async def write(database: Database) -> None:
        ledger = database.ledger()
        assert await ledger.value("list") is None
        await ledger.put_value("list", "a")
        await ledger.put_value("list", "b")
        await ledger.put_value("other", "c")

    async def read(database: Database) -> None:
        ledger = database.ledger()
        assert [await ledger.value(name) for name in ("list", "other", "third")] == ["b", "c", None]

    run(write)
    run(read)


def test_facts_are_found_by_the_beginning_of_their_names_and_dropped(run: Run) -> None:
    async def write(database: Database) -> None:
        ledger = database.ledger()
        for name in ("is:a", "is:b", "is%", "is_", "IS:a", "its", ""):
            await ledger.put_value(name, f"value of {name}")
        assert await ledger.values_of("is:") == {"is:a": "value of is:a", "is:b": "value of is:b"}
        assert await ledger.values_of("other") == {}
        await ledger.drop_values([])
        await ledger.drop_values(["is:a", "never there"])

    async def read(database: Database) -> None:
        ledger = database.ledger()
        assert await ledger.values_of("is:") == {"is:b": "value of is:b"}
        assert await ledger.values_of("is_") == {"is_": "value of is_"}
        assert await ledger.value("is:a") is None

    run(write)
    run(read)


async def scenario_again(database: Database) -> None:
    assert await database.ledger().put_value_if_absent("key", "c") == "a"


def test_a_database_that_is_gone_is_unavailable(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        await ledger.check()
        await database.close()
        for attempt in (
            ledger.check(), ledger.record(decide(), 0), ledger.finish(delivered("x")), ledger.find("x"),
            ledger.discard(["x"]), ledger.fail_lost([], 0), ledger.station_stats(None, None),
            ledger.put_value_if_absent("x", "y"),
            ledger.value("x"), ledger.put_value("x", "y"), ledger.values_of("x"), ledger.drop_values(["x"]),
            ledger.sealed_prefixes(3),
        ):  # fmt: skip
            with pytest.raises(LedgerUnavailable):
                await attempt

    run(scenario)
