"""What is past its retention goes, in steps, from every database; what is counted stays exact."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargegate.keys import SEALED_PREFIX
from chargegate.ledger.records import DroppedLetters, Finished
from chargegate.ledger.retention import excess_by_client
from chargegate.model import RequestStatus, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from chargegate.ledger.base import Ledger, Retention
    from chargegate.model import Decision


class Database(Protocol):
    ledger: Callable[..., Ledger]
    retention: Callable[[], Retention]

    async def execute(self, statement: str) -> list[tuple[Any, ...]]: ...


if TYPE_CHECKING:
    Run = Callable[[Callable[[Database], Coroutine[Any, Any, None]]], None]
    Decide = Callable[..., Decision]

IS_LETTER = "status = 'FAILED' AND sealed IS NOT NULL"


def end(
    request_id: str, at: int, status: RequestStatus = RequestStatus.FAILED, sealed: bytes | None = None
) -> Finished:
    if status is RequestStatus.FAILED and sealed is None:
        sealed = b"\x01abcd" + request_id.encode()
    return Finished(request_id, status, 3, 503, "http_503", at, sealed)


async def dead(ledger: Ledger, decide: Decide, client: str, at: int) -> str:
    decision: Decision = decide()
    await ledger.record(decision, 1_000, client)
    await ledger.finish(end(decision.request_id, at))
    return decision.request_id


async def all_letters(ledger: Ledger, client: str | None = None) -> list[str]:
    """The oldest first."""
    letters = await ledger.dead_letters(None, None, 10_000, None, client=client)
    return [letter.request_id for letter in reversed(letters)]


async def as_counted(database: Database, ledger: Ledger) -> None:
    """What is counted is what is there, for each client and key."""
    there = await database.execute(
        f"SELECT client, substr(sealed, 1, 5), count(*) FROM charging_requests WHERE {IS_LETTER} GROUP BY 1, 2"
    )
    counted = await database.execute(
        "SELECT client, sealed_with, CAST(sum(letters) AS integer) FROM dead_letter_counts GROUP BY 1, 2"
    )
    assert sorted(there) == sorted(row for row in counted if row[2])
    assert await ledger.count_dead_letters() == sum(row[2] for row in there)
    assert await ledger.sealed_prefixes(5) == {row[1] for row in there}


def test_the_counts_name_the_key_as_the_keyring_does() -> None:
    assert SEALED_PREFIX == 5


def test_old_dead_letters_go_the_oldest_first(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger, retention = database.ledger(), database.retention()
        ids = [await dead(ledger, decide, client, at) for at, client in enumerate(["a", "b"] * 5)]
        assert await retention.drop_dead_letters(6, 100, 4) == DroppedLetters(4, 0)
        assert await all_letters(ledger) == ids[4:]
        assert await retention.drop_dead_letters(6, 100, 4) == DroppedLetters(2, 0)
        assert await retention.drop_dead_letters(6, 100, 4) == DroppedLetters(0, 0)
        assert await all_letters(ledger) == ids[6:]
        await as_counted(database, ledger)
        gone = await ledger.find(ids[0])
        assert gone is not None
        assert gone.status is RequestStatus.FAILED
        assert gone.callback is not None
        assert gone.callback.last_error == "http_503"
        assert await ledger.dead_letter(ids[0]) is None
        assert await database.execute("SELECT count(*) FROM charging_requests WHERE sealed IS NOT NULL") == [(4,)]

    run(scenario)


def test_what_is_too_much_goes_from_the_client_who_holds_most(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger, retention = database.ledger(), database.retention()
        quiet = [await dead(ledger, decide, "quiet", at) for at in range(3)]
        flood = [await dead(ledger, decide, "flood", 100 + at) for at in range(20)]
        assert await retention.drop_dead_letters(0, 10, 8) == DroppedLetters(0, 8)
        assert await all_letters(ledger, "flood") == flood[8:]
        assert await retention.drop_dead_letters(0, 10, 8) == DroppedLetters(0, 5)
        assert await retention.drop_dead_letters(0, 10, 8) == DroppedLetters(0, 0)
        assert await all_letters(ledger, "flood") == flood[13:]
        assert await all_letters(ledger, "quiet") == quiet
        assert await retention.drop_dead_letters(0, 4, 100) == DroppedLetters(0, 6)
        assert Counter(
            {"quiet": len(await all_letters(ledger, "quiet")), "flood": len(await all_letters(ledger, "flood"))}
        ) == {"quiet": 2, "flood": 2}
        await as_counted(database, ledger)

    run(scenario)


def test_age_and_number_in_one_step(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger, retention = database.ledger(), database.retention()
        ids = [await dead(ledger, decide, "a", at) for at in range(10)]
        assert await retention.drop_dead_letters(3, 5, 6) == DroppedLetters(3, 2)
        assert await all_letters(ledger) == ids[5:]
        await as_counted(database, ledger)

    run(scenario)


def test_finished_requests_go_and_nothing_else(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger, retention = database.ledger(), database.retention()
        made = {
            name: decide() for name in ("done", "timeout", "lost", "dead", "dropped", "again", "under_way", "young")
        }
        ids = {name: decision.request_id for name, decision in made.items()}
        for decision in made.values():
            await ledger.record(decision, 1_000)
        await ledger.finish(end(ids["done"], 2_000, RequestStatus.COMPLETED))
        await ledger.finish(end(ids["timeout"], 2_001, RequestStatus.TIMEOUT))
        for name in ("dead", "dropped", "again"):
            await ledger.finish(end(ids[name], 2_002))
        await ledger.finish(Finished(ids["lost"], RequestStatus.FAILED, 0, None, "malformed_request", 2_003, None))
        await ledger.finish(end(ids["young"], 5_000, RequestStatus.COMPLETED))
        await ledger.restart(ids["again"], 2_500)
        await ledger.discard([ids["dropped"]])
        ledger.accepted("waiting", made["done"].station_id, 1)
        await ledger.close()
        assert await retention.drop_finished(5_000, 3) == 3
        assert await retention.drop_finished(5_000, 3) == 1
        assert await retention.drop_finished(5_000, 3) == 0
        kept = {row[0] for row in await database.execute("SELECT request_id FROM charging_requests")}
        assert kept == {"waiting", *(ids[name] for name in ("dead", "again", "under_way", "young"))}
        assert await all_letters(ledger) == [ids["dead"]]
        assert len(await ledger.audit_after(0, 100)) == len(made)
        assert await ledger.find(ids["done"]) is None
        assert await retention.drop_dead_letters(5_000, 10, 10) == DroppedLetters(1, 0)
        assert await retention.drop_finished(5_000, 3) == 1
        await as_counted(database, ledger)

    run(scenario)


def test_more_finished_requests_than_a_step_at_one_moment(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger, retention = database.ledger(), database.retention()
        made = [decide() for _ in range(25)]
        await asyncio.gather(*(ledger.record(decision, 1_000) for decision in made))
        done = RequestStatus.COMPLETED
        await asyncio.gather(*(ledger.finish(end(decision.request_id, 2_000, done)) for decision in made))
        assert [await retention.drop_finished(2_001, 10) for _ in range(4)] == [10, 10, 5, 0]

    run(scenario)


def test_steps_of_several_processes_at_once_drop_no_more_than_is_too_much(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        ids = [await dead(ledger, decide, "a", at) for at in range(40)]
        retentions = [database.retention() for _ in range(4)]
        dropped = 0
        while await ledger.count_dead_letters() > 15:
            steps = await asyncio.gather(*(each.drop_dead_letters(0, 15, 10) for each in retentions))
            dropped += sum(step.excess for step in steps)
        assert dropped == 25
        assert await all_letters(ledger) == ids[25:]
        await as_counted(database, ledger)

    run(scenario)


actions = st.lists(
    st.tuples(
        st.integers(0, 5), st.sampled_from(["fail", "fail_other_key", "deliver", "restart", "discard", "delete"])
    ),
    max_size=30,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions)
def test_the_count_is_exact_whatever_happens_to_a_request(
    run: Run, decide: Decide, actions: list[tuple[int, str]]
) -> None:
    async def scenario(database: Database) -> None:
        await database.execute("DELETE FROM charging_requests")
        ledger = database.ledger()
        made = [decide() for _ in range(6)]
        for place, decision in enumerate(made):
            await ledger.record(decision, 1_000, "ab"[place % 2])
        for place, action in actions:
            request_id = made[place].request_id
            if action == "restart":
                await ledger.restart(request_id, 4_000)
            elif action == "discard":
                await ledger.discard([request_id])
            elif action == "delete":
                await database.execute(f"DELETE FROM charging_requests WHERE request_id = '{request_id}'")
            elif action == "deliver":
                await ledger.finish(end(request_id, 5_000, RequestStatus.COMPLETED))
            else:
                await ledger.finish(end(request_id, 5_000, sealed=b"\x01key2x" if action == "fail_other_key" else None))
            await as_counted(database, ledger)

    run(scenario)


def test_one_commit_of_many_dead_letters_is_counted(run: Run, decide: Decide) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        made = [decide() for _ in range(1_000)]
        clients = ["a", "b", "c"]
        await asyncio.gather(*(ledger.record(each, 0, clients[n % 3]) for n, each in enumerate(made)))
        others = [database.ledger() for _ in range(4)]
        await asyncio.gather(*(others[n % 4].finish(end(each.request_id, n)) for n, each in enumerate(made)))
        assert await ledger.count_dead_letters() == 1_000
        await as_counted(database, ledger)

    run(scenario)


def test_a_request_that_comes_back_after_it_was_dropped_is_not_decided_again(sqlite_run: Run, decide: Decide) -> None:
    """The audit row of the embedded database is its decision."""
    first = decide(2_000)
    second = decide(9_000, request_id=first.request_id, status=Status.NOT_ALLOWED)

    async def scenario(database: Database) -> None:
        ledger, retention = database.ledger(), database.retention()
        await ledger.record(first, 1_000)
        await ledger.finish(end(first.request_id, 3_000, RequestStatus.COMPLETED))
        assert await retention.drop_finished(4_000, 10) == 1
        for recorded in (await ledger.recorded(first.request_id), await ledger.record(second, 8_000)):
            assert recorded is not None
            assert recorded.decision == first
            assert recorded.finished_at is not None
        assert [row.decision for row in await ledger.audit_after(0, 10)] == [first]
        assert await ledger.find(first.request_id) is None

    sqlite_run(scenario)


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(0, 12), max_size=6),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_each_that_is_too_much_is_taken_from_who_holds_most(held: dict[str, int], most: int, limit: int) -> None:
    left = dict(held)
    for _ in range(min(sum(held.values()) - most, limit)):
        left[min(left, key=lambda client: (-left[client], client))] -= 1
    lost = excess_by_client(held, most, limit)
    ours = {client: held[client] - lost.get(client, 0) for client in held}
    assert sorted(ours.values()) == sorted(left.values())  # among equals it may be another
    assert all(letters > 0 for letters in lost.values())


@pytest.mark.parametrize("held", [{}, {"a": 5}, {"a": 2, "b": 3}])
def test_nothing_is_too_much_within_the_limit(held: dict[str, int]) -> None:
    assert excess_by_client(held, 5, 100) == {}
