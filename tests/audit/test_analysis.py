"""Recorded traffic with planted faults: what is found, when, and what is not."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from chargegate.audit.analysis import MOST_OPEN, Analysis
from chargegate.audit.rules import ALL, Thresholds
from chargegate.ledger.anomalies import Anomaly, AnomalyType, Look, Severity
from chargegate.ledger.counts import DAY_MS, HOUR_MS, MINUTE_MS
from chargegate.ledger.records import Finished
from chargegate.model import Decision, Reason, RequestStatus, Status, new_request_id, now_ms
from databases import Database, Run

pytestmark = pytest.mark.timeout(170)

LIMITS = Thresholds(
    timeouts_per_hour=100,
    station_error_rate=0.5,
    station_min_decisions=20,
    silence_hours=3,
    silence_min_usual=10,
    token_stations=5,
    token_window_ms=600_000,
    callback_failure_rate=0.5,
    callback_min_ended=20,
)
START = 1_700_000_000_000 // DAY_MS * DAY_MS
TODAY = START + 8 * DAY_MS
STEP = 5 * MINUTE_MS


def station(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-00000000000a"


def analysis(database: Database, tell: Any = None, **limits: Any) -> Analysis:
    return Analysis(
        database.counts(),
        database.anomalies(),
        database.ledger(),
        msgspec.structs.replace(LIMITS, **limits),
        tell=tell,
        keep_ms=100 * DAY_MS,
    )


def decision(
    at: int, where: int, status: Status = Status.ALLOWED, reason: str = "", token: str = "0" * 16, request_id: str = ""
) -> Decision:
    return Decision(request_id or new_request_id(), station(where), token, status, reason, 10, at)


async def record(database: Database, decisions: list[Decision], client: str = "") -> None:
    ledger = database.ledger()
    await asyncio.gather(*(ledger.record(one, one.timestamp, client) for one in decisions))


class Traffic:
    """Nine days of thirty stations: twenty are busy all day, five only in the day, five seldom. On the last day there
    are faults. ``planted`` are the anomalies that should be found, and the times within which they may begin."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.decisions: list[Decision] = []
        self.planted: dict[tuple[str, str], tuple[int, int]] = {}
        silent, broken = rng.sample(range(20), 2), rng.sample(range(20), 3)
        broken = [one for one in broken if one not in silent]
        silent_from = TODAY + 6 * HOUR_MS
        for hour in range(9 * 24):
            at = START + hour * HOUR_MS
            outage = 40 <= hour <= 44  # nothing at all, on the second day
            for where in range(30):
                daytime = 8 <= hour % 24 <= 18
                rate = 8 if where < 20 else 10 if where < 25 and daytime else 0.3 if where >= 25 else 0
                if outage or (where in silent and at >= silent_from):
                    rate = 0
                self._hour(rng, at, where, rate, broken=where in broken and 12 <= (at - TODAY) // HOUR_MS < 15)
        for where in silent:
            self.planted[AnomalyType.STATION_SILENT, station(where)] = (silent_from + 3 * HOUR_MS, TODAY + DAY_MS)
        for where in broken:
            errors = sum(
                d.station_id == station(where) and d.status is Status.UNKNOWN and d.timestamp >= TODAY
                for d in self.decisions
            )
            if errors >= 40:
                self.planted[AnomalyType.STATION_ERRORS, station(where)] = (TODAY + 12 * HOUR_MS, TODAY + 16 * HOUR_MS)
        token = f"{rng.getrandbits(64):016x}"
        at = TODAY + 20 * HOUR_MS
        self.decisions += [
            decision(at + n * 20_000, 500 + n, Status.NOT_ALLOWED, Reason.BLOCKED, token) for n in range(9)
        ]
        self.planted[AnomalyType.TOKEN_DENIED, token] = (at, at + 20 * MINUTE_MS)
        at = TODAY + 17 * HOUR_MS
        self.decisions += [decision(at + n * 2000, 1000 + n, Status.UNKNOWN, Reason.TIMEOUT) for n in range(140)]
        self.planted[AnomalyType.TIMEOUTS, ALL] = (at, at + 20 * MINUTE_MS)
        self.decisions.sort(key=lambda d: d.timestamp)

    def _hour(self, rng: random.Random, at: int, where: int, rate: float, *, broken: bool) -> None:
        count = int(rate) + (rng.random() < rate % 1) + (rng.randrange(-2, 3) if rate >= 5 else 0)
        for _ in range(count * (4 if broken else 1)):
            status, reason = Status.ALLOWED, ""
            if rng.random() < (0.85 if broken else 0.04):
                status, reason = Status.UNKNOWN, Reason.ERROR
            elif rng.random() < 0.1:
                status, reason = Status.NOT_ALLOWED, Reason.NOT_IN_ACL
            token = f"{rng.randrange(400):016x}"
            self.decisions.append(decision(at + rng.randrange(HOUR_MS), where, status, reason, token))


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (2, 3))])
def test_planted_faults_are_found_and_nothing_else(sqlite_run: Run, seed: int) -> None:
    """The figures in docs/audit.md."""
    traffic = Traffic(seed)

    async def scenario(database: Database) -> None:
        look_at = analysis(database)
        waiting: list[Decision] = []
        past = [d for d in traffic.decisions if d.timestamp < TODAY - 12 * HOUR_MS]
        await record(database, past)
        rest = iter(traffic.decisions[len(past) :])
        for now in range(TODAY - 12 * HOUR_MS, TODAY + DAY_MS + 1, STEP):
            for one in rest:
                waiting.append(one)
                if one.timestamp >= now:
                    break
            await record(database, [d for d in waiting if d.timestamp < now])
            waiting = [d for d in waiting if d.timestamp >= now]
            assert await look_at.look(now, STEP)
        found = await database.anomalies().list(None, None, 1000, None)
        true = {(one.type, one.subject) for one in found if _planted(traffic, one)}
        false = [one for one in found if not _planted(traffic, one)]
        assert true == set(traffic.planted), "recall"
        assert not false, "precision"
        assert len(found) == len(true), [(one.subject, one.since - TODAY, (one.until or 0) - TODAY) for one in found]
        lasting = {one.type for one in await database.anomalies().open()}
        assert AnomalyType.STATION_SILENT in lasting
        assert AnomalyType.STATION_ERRORS not in lasting
        assert AnomalyType.TIMEOUTS not in lasting

    sqlite_run(scenario)


def _planted(traffic: Traffic, one: Anomaly) -> bool:
    first, last = traffic.planted.get((one.type, one.subject), (0, 0))
    return first <= one.since <= last


def test_a_weekend_and_an_outage_are_nobodys_silence(run: Run) -> None:
    async def scenario(database: Database) -> None:
        week = [
            decision(START + day * DAY_MS + minute * MINUTE_MS, where)
            for day in range(7)
            for where in range(3)
            for minute in range(540, 720, 15)
            if not (where == 0 and day == 0)  # the seventh day before is without any
        ]
        today = START + 7 * DAY_MS
        await record(database, week)
        look_at, anomalies = analysis(database), database.anomalies()
        assert await look_at.look(today + 720 * MINUTE_MS, 1)
        assert await anomalies.open() == []  # all are silent: there was an outage
        await record(database, [decision(today + minute * MINUTE_MS, 2) for minute in range(540, 720, 5)])
        assert await look_at.look(today + 725 * MINUTE_MS, 1)
        assert [one.subject for one in await anomalies.open()] == [station(1)]
        await look_at.look(today + 1200 * MINUTE_MS, 1)  # in the evening it is usually silent
        assert [one.subject for one in await anomalies.open()] == [station(1)]
        await record(database, [decision(today + 1210 * MINUTE_MS, 1)])
        await look_at.look(today + 1215 * MINUTE_MS, 1)
        assert await anomalies.open() == []
        [ended] = await anomalies.list(AnomalyType.STATION_SILENT, False, 10, None)
        assert ended.until == today + 1215 * MINUTE_MS

    run(scenario)


def test_callbacks_of_one_client_fail(run: Run) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        for client, failing in (("north", 15), ("south", 3), ("east", 5)):
            made = [decision(TODAY, 1) for _ in range(24 if client != "east" else 5)]
            await record(database, made, client)
            for number, one in enumerate(made):
                status = RequestStatus.FAILED if number < failing else RequestStatus.COMPLETED
                await ledger.finish(Finished(one.request_id, status, 3, 500, "http_500", TODAY + 5, None))
        await analysis(database).look(TODAY + MINUTE_MS, 1)
        [one] = await database.anomalies().open()
        assert (one.type, one.subject, one.severity) == (AnomalyType.CALLBACKS, "north", Severity.WARNING)
        assert (one.value, one.threshold) == (0.625, 0.5)

    run(scenario)


def test_one_process_looks_and_another_takes_over(run: Run) -> None:
    async def scenario(database: Database) -> None:
        first, second = analysis(database), analysis(database)
        assert await first.look(TODAY, 1000)
        assert not await second.look(TODAY + 999, 1000)
        assert await first.look(TODAY + 999, 1000)
        assert await second.look(TODAY + 1999, 1000)
        assert not await first.look(TODAY + 2000, 1000)
        assert await first.look(TODAY - 5000, 1000), "a turn taken by a clock that was ahead counts for nothing"
        anomalies = database.anomalies()
        assert not await anomalies.change("somebody", Look([], [], []), tell=True)

    run(scenario)


def many(count: int, at: int, token: Callable[[int], str], stations: int = 5) -> list[Decision]:
    return [
        decision(at, 100 + where, Status.NOT_ALLOWED, Reason.NOT_IN_ACL, token(number))
        for number in range(count)
        for where in range(stations)
    ]


def test_a_client_who_makes_many_anomalies_hides_nobody_elses(run: Run) -> None:
    async def scenario(database: Database) -> None:
        await record(database, many(MOST_OPEN + 30, TODAY, lambda n: f"{n:016x}", 6), "flood")
        await record(database, many(3, TODAY, lambda n: f"f{n:015x}"), "quiet")
        look_at, anomalies = analysis(database), database.anomalies()
        await look_at.look(TODAY + 1000, 1)
        open_ = await anomalies.open()
        assert len(open_) == MOST_OPEN
        assert {f"f{n:015x}" for n in range(3)} <= {one.subject for one in open_}
        await record(database, many(30, TODAY + 2000, lambda n: f"e{n:015x}", 9), "flood")
        await look_at.look(TODAY + 3000, 1)
        assert {one.subject for one in await anomalies.open()} == {one.subject for one in open_}

    run(scenario)


def test_each_change_is_told_once_in_order_and_again_only_where_it_did_not_arrive(run: Run) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    works = [True]

    async def tell(message_id: str, body: bytes) -> bool:
        told.append((message_id, msgspec.json.decode(body)))
        return works[0]

    async def scenario(database: Database) -> None:
        look_at = analysis(database, tell, timeouts_per_hour=2)
        await record(database, [decision(TODAY, 1, Status.UNKNOWN, Reason.TIMEOUT) for _ in range(3)])
        await look_at.look(TODAY + 1, 1)
        works[0] = False
        assert not await look_at.tell_all()
        works[0] = True
        assert await analysis(database, tell).tell_all()  # after a restart
        assert await look_at.tell_all()
        await look_at.look(TODAY + 2, 1)
        await look_at.look(TODAY + 2 * HOUR_MS, 1)
        assert await look_at.tell_all()
        assert await look_at.tell_all()
        assert [body["type"] for _, body in told] == ["anomaly.opened", "anomaly.opened", "anomaly.resolved"]
        assert told[0] == told[1]
        assert told[0][0] != told[2][0]
        assert told[2][1]["data"]["until"]
        quiet = analysis(database, timeouts_per_hour=2)  # nobody wants to be told
        await record(database, [decision(TODAY + DAY_MS, 1, Status.UNKNOWN, Reason.TIMEOUT) for _ in range(3)])
        await quiet.look(TODAY + DAY_MS + 1, 1)
        assert await look_at.tell_all()
        assert len(told) == 3

    run(scenario)


def test_two_processes_do_not_tell_the_same_where_the_receiver_takes_long(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time goes on only once the first process has renewed its turn, so that no busy machine makes it lose one."""
    for_ms = 300
    told: list[str] = []
    clock = [now_ms()]
    renewals = [0]
    answers = asyncio.Event()

    def looked_at() -> int:
        renewals[0] += 1
        return clock[0]

    async def tell(message_id: str, _: bytes) -> bool:
        told.append(message_id)
        await answers.wait()
        return True

    async def scenario(database: Database) -> None:
        await record(database, [decision(clock[0] - 1000, 1, Status.UNKNOWN, Reason.TIMEOUT) for _ in range(3)])
        first, second = (analysis(database, tell, timeouts_per_hour=2) for _ in range(2))
        assert await first.look(clock[0], for_ms)
        monkeypatch.setattr("chargegate.audit.analysis.now_ms", looked_at)
        telling = asyncio.create_task(first.tell_all(for_ms))
        for _ in range(5):
            clock[0] += for_ms - 50
            begun = renewals[0]
            while renewals[0] < begun + 2:  # the one before it is stored by then
                assert not telling.done()
                await asyncio.sleep(0.01)
            assert not await second.look(clock[0], for_ms)
        answers.set()
        assert await telling
        assert len(told) == 1

    run(scenario)


def test_the_list_is_paged_and_filtered(run: Run) -> None:
    async def scenario(database: Database) -> None:
        anomalies = database.anomalies()
        await anomalies.take_turn("me", TODAY, 1000)
        made = [
            Anomaly(
                new_request_id(),
                list(AnomalyType)[n % 5],
                Severity.WARNING,
                f"s{n}",
                TODAY + n // 3,
                None,
                "x",
                1.5,
                1.0,
            )
            for n in range(20)
        ]
        assert await anomalies.change("me", Look(made, [], []), tell=False)
        ended = [msgspec.structs.replace(one, until=TODAY + 99) for one in made[:7]]
        assert await anomalies.change("me", Look([], [], ended), tell=False)
        paged: list[Anomaly] = []
        while page := await anomalies.list(None, None, 3, (paged[-1].since, paged[-1].id) if paged else None):
            paged += page
        assert [one.id for one in paged] == [
            one.id for one in sorted(made, key=lambda one: (one.since, one.id), reverse=True)
        ]
        assert len(await anomalies.list(None, True, 100, None)) == 13
        assert len(await anomalies.list(AnomalyType.TIMEOUTS, False, 100, None)) == 2
        assert await anomalies.count_open() == Counter(one.type.value for one in made[7:])
        assert await anomalies.drop_ended(TODAY + 99, 100) == 0
        assert await anomalies.drop_ended(TODAY + 100, 5) == 5
        assert await anomalies.drop_ended(TODAY + 100, 5) == 2

    run(scenario)
