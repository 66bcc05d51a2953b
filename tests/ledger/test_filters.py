"""Decisions by several filters at once, compared with a walk through all of them, on both databases."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargegate.ledger.records import DecisionFilter, Finished
from chargegate.model import Decision, Reason, RequestStatus, Status

STATIONS = [f"{number:08x}-0000-4000-8000-00000000000A" for number in range(3)]
REASONS = [Reason.TIMEOUT, Reason.CIRCUIT_OPEN, "driver_not_in_acl"]
CLIENTS = ["north", "south"]
FIRST = 1_700_000_000_000
SOME = 600  # more than are looked at to tell a rare filter from a common one

some_filters = st.builds(
    DecisionFilter,
    station_id=st.none() | st.sampled_from([*STATIONS, STATIONS[0].lower(), "none"]),
    status=st.none() | st.sampled_from(list(Status)),
    since=st.none() | st.integers(FIRST, FIRST + SOME),
    until=st.none() | st.integers(FIRST, FIRST + SOME),
    reason=st.none() | st.sampled_from(REASONS),
    client=st.none() | st.sampled_from([*CLIENTS, "west"]),
)


def made(rng: random.Random, decide: Callable[..., Decision]) -> list[tuple[Decision, str]]:
    def one(number: int) -> tuple[Decision, str]:
        status = rng.choices(list(Status), [8, 4, 2, 1])[0]
        reason = "" if status == Status.ALLOWED else rng.choice(REASONS)
        station = rng.choices(STATIONS, [20, 3, 1])[0]
        # Some were decided in one millisecond.
        decision = decide(FIRST + number // 2 * 2, station=station, status=status, reason=reason)
        return decision, rng.choices(["", *CLIENTS], [3, 10, 1])[0]

    return [one(number) for number in range(SOME)]


def expected(rows: list[tuple[Decision, str]], which: DecisionFilter) -> list[Decision]:
    def matches(decision: Decision, client: str) -> bool:
        wanted = [
            (which.station_id, decision.station_id.lower(), lambda text: text.lower()),
            (which.status, decision.status, str),
            (which.reason, decision.reason, str),
            (which.client, client, str),
        ]
        return (
            all(value is None or form(value) == has for value, has, form in wanted)
            and (which.since is None or decision.timestamp >= which.since)
            and (which.until is None or decision.timestamp < which.until)
        )

    found = [decision for decision, client in rows if matches(decision, client)]
    return sorted(found, key=lambda one: (one.timestamp, one.request_id), reverse=True)


def test_every_page_is_what_a_walk_finds(run: Callable[..., Any], decide: Callable[..., Decision]) -> None:
    async def scenario(database: Any) -> None:
        ledger = database.ledger()
        rows = made(random.Random(1), decide)
        await asyncio.gather(*(ledger.record(decision, 0, client) for decision, client in rows))
        loop = asyncio.get_running_loop()

        async def pages(which: DecisionFilter, limit: int) -> list[Decision]:
            found: list[Decision] = []
            while page := await ledger.decisions(
                which, limit, (found[-1].timestamp, found[-1].request_id) if found else None
            ):
                found += page
            return found

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(which=some_filters, limit=st.sampled_from([3, 50, SOME]))
        def check(which: DecisionFilter, limit: int) -> None:
            found = asyncio.run_coroutine_threadsafe(pages(which, limit), loop).result(60)
            assert found == expected(rows, which)

        await asyncio.to_thread(check)
        for limit in (None, 50):
            for client in CLIENTS:
                stats = await ledger.station_stats(None, None, client=client, limit=limit)
                assert sum(one.total for one in stats) == len(expected(rows, DecisionFilter(client=client)))

    run(scenario)


def test_what_was_dropped_belongs_to_nobody(run: Callable[..., Any], decide: Callable[..., Decision]) -> None:
    async def scenario(database: Any) -> None:
        ledger = database.ledger()
        rows = made(random.Random(2), decide)
        await asyncio.gather(*(ledger.record(decision, 0, client) for decision, client in rows))
        for decision, _ in rows:
            ended = Finished(decision.request_id, RequestStatus.COMPLETED, 1, 200, None, decision.timestamp, None)
            await ledger.finish(ended)
        month = 31 * 86_400_000
        late = decide(FIRST + 3 * month, station=STATIONS[0])
        await ledger.record(late, 0, "north")
        await ledger.drop_audit_before(FIRST + 2 * month)
        assert await ledger.decisions(DecisionFilter(client="north"), 50, None) == [late]
        assert await ledger.decisions(DecisionFilter(client="south"), 50, None) == []
        assert await ledger.decisions(DecisionFilter(reason=Reason.CIRCUIT_OPEN, client="north"), 50, None) == []
        for limit in (None, 50):
            [one] = await ledger.station_stats(None, None, client="north", limit=limit)
            assert (one.station_id, one.total) == (STATIONS[0].lower(), 1)

    run(scenario)
