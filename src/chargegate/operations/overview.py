"""How the service is doing, at a glance: what a dashboard shows first, and what is wrong in one sentence each.

Decisions come from the database's counts, which all processes share. What no database keeps, such as the queue's depth
some minutes ago, is looked at every few seconds by this process since its start.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from chargegate.ledger.anomalies import Anomalies
from chargegate.ledger.base import Ledger, LedgerUnavailable
from chargegate.ledger.counts import HOUR_MS, MINUTE_MS, DecisionCounts, UnitCounts
from chargegate.model import Millis, Status, now_ms
from chargegate.observe import Metrics, log
from chargegate.operations.health import Check, Component, ComponentStatus, check_all
from chargegate.operations.problems import Problem, Seen, problems
from chargegate.queues.base import Queue, QueueUnavailable

_LOOK_S: Final = 2.0
_KEPT_S: Final = 1.0
_LAST_MS: Final = 10_000
_DAY_STEP_MS: Final = 30 * MINUTE_MS
_DELIVERED: Final = 500


class Look(msgspec.Struct, frozen=True):
    """What was seen at one moment. None: it could not be seen. ``accepted`` counts since this process's start. The
    percentiles are of callbacks delivered within the minute before, from accepted to delivered."""

    timestamp: Millis
    accepted: int
    waiting: int | None
    oldest_age_ms: int | None
    dead_letters: int | None
    p50_ms: int | None
    p95_ms: int | None
    p99_ms: int | None


class Point(msgspec.Struct, frozen=True):
    """One length of time in a chart: decisions made in it, and what was last seen in it."""

    timestamp: Millis
    allowed: int
    not_allowed: int
    unknown: int
    invalid: int
    accepted: int | None
    waiting: int | None
    oldest_age_ms: int | None
    dead_letters: int | None
    p50_ms: int | None
    p95_ms: int | None
    p99_ms: int | None


class Series(msgspec.Struct, frozen=True):
    """Points one after another, oldest first, each ``step_ms`` long."""

    step_ms: int
    points: list[Point]


class Circuit(msgspec.Struct, frozen=True):
    """A circuit breaker of this process."""

    name: str
    state: str


class Lag(msgspec.Struct, frozen=True):
    """How far an audit sink of this process is behind."""

    sink: str
    seconds: float


class Rates(msgspec.Struct, frozen=True):
    """Each second, over the last ten. ``accepted`` counts this process alone."""

    accepted: float
    allowed: float
    not_allowed: float
    unknown: float
    invalid: float


class Overview(msgspec.Struct, frozen=True):
    """All of it, as it was at most a second ago. ``several_processes``: others may accept requests beside this one."""

    status: ComponentStatus
    timestamp: Millis
    several_processes: bool
    problems: list[Problem]
    components: dict[str, Component]
    per_second: Rates
    now: Look
    in_flight: int
    anomalies: int | None
    circuits: list[Circuit]
    sinks: list[Lag]
    hour: Series
    day: Series


class Overviews:
    """A task that looks at the queue and the latest callbacks, and answers made from what it saw."""

    def __init__(
        self,
        *,
        queue: Queue,
        ledger: Ledger,
        counts: DecisionCounts,
        anomalies: Anomalies,
        metrics: Metrics,
        components: Mapping[str, Check],
        oldest_question_ms: Callable[[], int],
        max_size: int,
    ) -> None:
        self._queue = queue
        self._ledger = ledger
        self._counts = counts
        self._anomalies = anomalies
        self._metrics = metrics
        self._components = components
        self._oldest_question_ms = oldest_question_ms
        self._max_size = max_size
        self._looks: deque[Look] = deque(maxlen=60)
        self._minutes: deque[Look] = deque(maxlen=24 * 60 + 1)
        self._lock = asyncio.Lock()
        self._made: tuple[float, Overview] | None = None
        self._day: tuple[float, list[UnitCounts]] = (0.0, [])
        self._task = asyncio.create_task(self._run())

    async def read(self) -> Overview:
        """The overview of now. It is made at most once a second, however many ask. Raises nothing for a part that is
        away."""
        async with self._lock:
            if self._made is None or time.monotonic() - self._made[0] >= _KEPT_S:
                self._made = time.monotonic(), await self._make()
            return self._made[1]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                self._note(await self._look())
            except Exception:  # noqa: BLE001 - whatever it is, the next look may succeed
                log.exception("the overview could not look")
            await asyncio.sleep(_LOOK_S)

    def _note(self, look: Look) -> None:
        self._looks.append(look)
        if self._minutes and self._minutes[-1].timestamp // MINUTE_MS == look.timestamp // MINUTE_MS:
            self._minutes[-1] = _worse(self._minutes[-1], look)
        else:
            self._minutes.append(look)

    async def _look(self) -> Look:
        now = now_ms()
        waiting = oldest = letters = None
        times: Sequence[int] = ()
        with contextlib.suppress(QueueUnavailable, TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                depth = await self._queue.depth()
                waiting, oldest = depth.waiting, depth.oldest_age_ms
        with contextlib.suppress(LedgerUnavailable, TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                letters = await self._ledger.count_dead_letters()
                times = sorted(await self._ledger.latest_delivered(now - MINUTE_MS, _DELIVERED))
        p50, p95, p99 = (times[min(len(times) - 1, int(share * len(times)))] if times else None for share in _SHARES)
        accepted = int(self._metrics.sampled("charging_requests_total", "outcome").get("accepted", 0))
        return Look(now, accepted, waiting, oldest, letters, p50, p95, p99)

    async def _make(self) -> Overview:
        (status, components), look = await asyncio.gather(check_all(self._components), self._look())
        self._note(look)
        now = look.timestamp
        minutes: list[UnitCounts] = []
        open_anomalies: int | None = None
        per_second: Mapping[str, float] = dict.fromkeys(Status, 0.0)
        with contextlib.suppress(LedgerUnavailable, TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                minutes = list(await self._counts.by_unit(MINUTE_MS, now - HOUR_MS, None, 70, None))
                open_anomalies = sum((await self._anomalies.count_open()).values())
                latest = await self._counts.latest(now - _LAST_MS)
                per_second = {name: round(latest[name] * 1000 / _LAST_MS, 2) for name in Status}
                if time.monotonic() - self._day[0] >= _DAY_KEPT_S or not self._day[1]:
                    day = await self._counts.by_unit(MINUTE_MS, now - 24 * HOUR_MS, None, 24 * 60 + 5, None)
                    self._day = time.monotonic(), list(day)
        recent = [one for one in minutes if one.start >= now - 2 * MINUTE_MS]
        earlier = next((one for one in self._looks if one.timestamp >= now - _LAST_MS), look)
        elapsed_s = max((look.timestamp - earlier.timestamp) / 1000, _LOOK_S)
        seen = Seen(
            components=components,
            waiting=look.waiting,
            oldest_age_ms=look.oldest_age_ms,
            max_size=self._max_size,
            oldest_question_ms=self._oldest_question_ms(),
            recent=recent,
            dead_letters=look.dead_letters,
            dead_letters_before=self._letters_before(now),
            anomalies=open_anomalies,
        )
        return Overview(
            status=status,
            timestamp=now,
            several_processes=self._queue.capabilities.shared,
            problems=problems(seen),
            components=components,
            per_second=Rates(
                accepted=round(max(0, look.accepted - earlier.accepted) / elapsed_s, 2),
                **{name.value: per_second[name] for name in Status},
            ),
            now=look,
            anomalies=open_anomalies,
            in_flight=int(self._metrics.sampled("requests_in_flight").get("", 0)),
            circuits=[
                Circuit(name, _STATES[int(value)])
                for name, value in self._metrics.sampled("circuit_breaker_state", "name").items()
            ],
            sinks=[
                Lag(name, round(value, 3))
                for name, value in self._metrics.sampled("audit_sink_lag_seconds", "sink").items()
            ],
            hour=self._series(MINUTE_MS, 60, now, minutes),
            day=self._series(_DAY_STEP_MS, 48, now, [*self._day[1], *minutes]),
        )

    def _letters_before(self, now: int) -> int | None:
        before = [one.dead_letters for one in self._minutes if one.timestamp <= now - MINUTE_MS]
        known = [each for each in [*before[-5:], *(one.dead_letters for one in self._looks)] if each is not None]
        return known[0] if known else None

    def _series(self, step: int, length: int, now: int, counted: Sequence[UnitCounts]) -> Series:
        first = (now // step - length + 1) * step
        by_minute = {one.start: one for one in counted if one.start >= first}
        decided: dict[int, dict[Status, int]] = {}
        for start, one in by_minute.items():
            into = decided.setdefault(start // step * step, dict.fromkeys(Status, 0))
            for name in Status:
                into[name] += getattr(one, name)
        seen: dict[int, list[Look]] = {}
        before: Look | None = None
        accepted: dict[int, int] = {}
        for look in self._minutes:
            start = look.timestamp // step * step
            seen.setdefault(start, []).append(look)
            accepted[start] = accepted.get(start, 0) + look.accepted - (before.accepted if before else 0)
            before = look
        nothing = dict.fromkeys(Status, 0)
        return Series(
            step,
            [
                _point(start, decided.get(start, nothing), accepted.get(start), seen.get(start, []))
                for start in range(first, first + length * step, step)
            ],
        )


_SHARES: Final = (0.5, 0.95, 0.99)
_STATES: Final = ("closed", "half_open", "open")
_DAY_KEPT_S: Final = 60.0
_MEASURED: Final = ("waiting", "oldest_age_ms", "dead_letters", "p50_ms", "p95_ms", "p99_ms")


def _worse(one: Look, later: Look) -> Look:
    """Two looks in one minute as one, so that no peak is lost."""

    def worst(name: str) -> int | None:
        return max((each for each in (getattr(one, name), getattr(later, name)) if each is not None), default=None)

    return msgspec.structs.replace(later, **{name: worst(name) for name in _MEASURED})


def _point(start: int, decided: Mapping[Status, int], accepted: int | None, looks: Sequence[Look]) -> Point:
    """Of what was seen in a length of time, the worst."""

    def worst(name: str) -> int | None:
        values = [getattr(look, name) for look in looks if getattr(look, name) is not None]
        return max(values, default=None)

    return Point(
        timestamp=start,
        allowed=decided[Status.ALLOWED],
        not_allowed=decided[Status.NOT_ALLOWED],
        unknown=decided[Status.UNKNOWN],
        invalid=decided[Status.INVALID],
        accepted=accepted,
        waiting=worst("waiting"),
        oldest_age_ms=worst("oldest_age_ms"),
        dead_letters=worst("dead_letters"),
        p50_ms=worst("p50_ms"),
        p95_ms=worst("p95_ms"),
        p99_ms=worst("p99_ms"),
    )
