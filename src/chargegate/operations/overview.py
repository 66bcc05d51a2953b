"""How the service is doing, at a glance: what a dashboard shows first, and what is wrong in one sentence each.

Decisions come from the database's counts, which all processes share, and the other processes' states from what they
say of themselves there. What no database keeps, such as the queue's depth some minutes ago, is looked at every few
seconds by this process since its start.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from chargegate.ledger.anomalies import SEVERITIES, Anomalies, Severity
from chargegate.ledger.base import Ledger, LedgerUnavailable
from chargegate.ledger.counts import HOUR_MS, MINUTE_MS, DecisionCounts, UnitCounts
from chargegate.model import Millis, Status, now_ms
from chargegate.observe import log
from chargegate.operations.health import Check, Component, ComponentStatus, check_all, status_of
from chargegate.operations.looks import RECENT_MS, SLOW_ANSWER_MS, Look, Looks, Series, percentiles
from chargegate.operations.problems import Seen, problems
from chargegate.operations.processes import SILENT_MS, Circuit, Lag, Process, Processes, Report, Reporter, together
from chargegate.operations.troubles import Problem
from chargegate.queues.base import Queue, QueueUnavailable

_LOOK_S: Final = 2.0
_KEPT_S: Final = 0.5
_LAST_MS: Final = 10_000
_AGAIN_MS: Final = 2 * MINUTE_MS
"""How far back each look counts decisions anew."""

_DAY_STEP_MS: Final = 30 * MINUTE_MS
_DAY_READ_S: Final = 3600.0
_DELIVERED: Final = 500
_LETTERS: Final = 50


class Rates(msgspec.Struct, frozen=True):
    """Each second, over the last ten."""

    accepted: float
    allowed: float
    not_allowed: float
    unknown: float
    invalid: float


class Overview(msgspec.Struct, frozen=True):
    """All of it, as it was at most half a second ago. ``processes``: the others of this service. Of circuits, sinks
    and components that several processes have, the worst is shown."""

    status: ComponentStatus
    timestamp: Millis
    problems: list[Problem]
    components: dict[str, Component]
    processes: list[Process]
    per_second: Rates
    now: Look
    in_flight: int
    anomalies: int | None
    circuits: list[Circuit]
    sinks: list[Lag]
    hour: Series
    day: Series


class _Seen(NamedTuple):
    """What the database says, each None where it is away. ``minutes``: decisions in each minute that was asked for.
    ``latest``: how many there were of each status in the last ten seconds, where that was asked for."""

    others: list[Process] | None = None
    dead_letters: int | None = None
    delivered_ms: Sequence[int] = ()
    minutes: Sequence[UnitCounts] | None = None
    anomalies: int | None = None
    critical_anomalies: int = 0
    latest: Mapping[str, int] | None = None


class Overviews:
    """A task that looks at the queue and the latest callbacks, and answers made from what it saw."""

    def __init__(
        self,
        *,
        queue: Queue,
        ledger: Ledger,
        counts: DecisionCounts,
        anomalies: Anomalies,
        components: Mapping[str, Check],
        reporter: Reporter,
        processes: Processes | None,
        max_size: int,
    ) -> None:
        """``processes`` is None where this process is the only one."""
        self._queue = queue
        self._ledger = ledger
        self._counts = counts
        self._anomalies = anomalies
        self._components = components
        self._reporter = reporter
        self._processes = processes
        self._max_size = max_size
        self._looks = Looks()
        self._lock = asyncio.Lock()
        self._made: tuple[float, Overview] | None = None
        self._day: dict[int, UnitCounts] = {}  # each minute by its start
        self._day_read_at = float("-inf")
        self._others: list[Process] | None = None
        self._task = asyncio.create_task(self._run())

    async def read(self) -> Overview:
        """The overview of now. It is made at most twice a second, however many ask. Raises nothing for a part that is
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
                await self._look(_AGAIN_MS)
                await self._read_day()
            except Exception:  # noqa: BLE001 - whatever it is, the next look may succeed
                log.exception("the overview could not look")
            await asyncio.sleep(_LOOK_S)

    async def _look(self, span_ms: int, *, latest: bool = False) -> tuple[Look, _Seen]:
        """Look at what is now, and note it. ``span_ms``: how far back decisions are asked for."""
        now = now_ms()
        (waiting, oldest), seen = await asyncio.gather(self._queued(), self._recorded(now, span_ms, latest=latest))
        self._others = seen.others
        accepted, refused = self._reporter.accepted, self._reporter.refused
        if self._processes is not None:
            accepted, refused = accepted + self._processes.accepted, refused + self._processes.refused
        report = self._together({})
        p50, p95, p99 = percentiles(sorted(seen.delivered_ms))
        look = Look(
            timestamp=now,
            accepted=accepted,
            refused=refused,
            waiting=waiting,
            oldest_age_ms=oldest,
            dead_letters=seen.dead_letters,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            open_circuits=sum(circuit.state != "closed" for circuit in report.circuits),
            sink_lag_ms=max((round(lag.seconds * 1000) for lag in report.sinks), default=0),
            anomalies=seen.anomalies,
        )
        minutes = seen.minutes
        if minutes is not None:
            self._day |= {one.start: one for one in minutes}
            minutes = [one for one in minutes if one.start >= now - _AGAIN_MS]
        self._looks.note(look, minutes)
        return look, seen

    async def _queued(self) -> tuple[int | None, int | None]:
        with contextlib.suppress(QueueUnavailable, TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                depth = await self._queue.depth()
                return depth.waiting, depth.oldest_age_ms
        return None, None

    async def _recorded(self, now: int, span_ms: int, *, latest: bool) -> _Seen:
        """What the database says, asked for by three at a time: whoever looks does not wait for one answer after the
        other, and does not take all connections from those who write."""

        async def processes_and_letters() -> tuple[list[Process] | None, int]:
            others = [] if self._processes is None else await self._processes.read()
            return others, await self._ledger.count_dead_letters()

        async def delivered_and_anomalies() -> tuple[Sequence[int], int, int]:
            delivered = await self._ledger.latest_delivered(now - MINUTE_MS, _DELIVERED)
            kinds = await self._anomalies.count_open()
            critical = sum(kinds.get(kind, 0) for kind, how in SEVERITIES.items() if how is Severity.CRITICAL)
            return delivered, sum(kinds.values()), critical

        async def decided() -> tuple[Sequence[UnitCounts], Mapping[str, int] | None]:
            minutes = await self._counts.by_unit(MINUTE_MS, now - span_ms, None, span_ms // MINUTE_MS + 10, None)
            return minutes, await self._counts.latest(now - _LAST_MS) if latest else None

        with contextlib.suppress(LedgerUnavailable, TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                (others, letters), (delivered, anomalies, critical), (minutes, newest) = await asyncio.gather(
                    processes_and_letters(), delivered_and_anomalies(), decided()
                )
                return _Seen(others, letters, delivered, minutes, anomalies, critical, newest)
        return _Seen(None if self._processes is not None else [])

    async def _read_day(self) -> None:
        """What was decided in each minute of the last day. After the first time the looks keep it up to date, but for
        what is recorded minutes after its time."""
        if time.monotonic() - self._day_read_at < _DAY_READ_S:
            return
        first = now_ms() - 24 * HOUR_MS
        with contextlib.suppress(LedgerUnavailable, TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                day = await self._counts.by_unit(MINUTE_MS, first, None, 24 * 60 + 5, None)
                self._day = {one.start: one for one in day}
                self._day_read_at = time.monotonic()

    async def _make(self) -> Overview:
        (_, components), (look, seen), _ = await asyncio.gather(
            check_all(self._components), self._look(HOUR_MS, latest=True), self._read_day()
        )
        now = look.timestamp
        latest = seen.latest or dict.fromkeys(Status, 0)
        letters = self._looks.more_dead_letters()
        why_letters: str | None = None
        if letters:
            with contextlib.suppress(LedgerUnavailable, TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    why_letters = await self._why_given_up(now)
        report = self._together(components)
        earlier = self._looks.since(now - _LAST_MS)
        refused, offered = self._looks.refused()
        elapsed_s = max((now - earlier.timestamp) / 1000, _LOOK_S)
        return Overview(
            status=status_of(report.components),
            timestamp=now,
            problems=problems(
                Seen(
                    components=report.components,
                    waiting=look.waiting,
                    oldest_age_ms=look.oldest_age_ms,
                    max_size=self._max_size,
                    oldest_question_ms=report.oldest_question_ms,
                    recent=self._looks.recent(),
                    workers=self._workers(),
                    given_up=letters,
                    why_given_up=why_letters,
                    anomalies=look.anomalies,
                    critical_anomalies=seen.critical_anomalies,
                    refused=refused,
                    offered=offered,
                    unanswered=self._looks.unanswered(),
                    slow=sum(ms > SLOW_ANSWER_MS for ms in seen.delivered_ms),
                    delivered=len(seen.delivered_ms),
                    troubles=report.troubles,
                )
            ),
            components=report.components,
            processes=self._others or [],
            per_second=Rates(
                accepted=round(max(0, look.accepted - earlier.accepted) / elapsed_s, 2),
                **{name.value: round(latest[name] * 1000 / _LAST_MS, 2) for name in Status},
            ),
            now=look,
            anomalies=look.anomalies,
            in_flight=report.in_flight,
            circuits=report.circuits,
            sinks=report.sinks,
            hour=self._looks.series(MINUTE_MS, 60, now, seen.minutes or []),
            day=self._looks.series(_DAY_STEP_MS, 48, now, list(self._day.values())),
        )

    def _together(self, components: Mapping[str, Component]) -> Report:
        """What all processes say. ``components``: those of this one."""
        others = [] if self._processes is None else self._processes.reports()
        return together(self._reporter.report(components), others)

    async def _why_given_up(self, now: int) -> str | None:
        """The error that most of the newest dead letters have."""
        letters = await self._ledger.dead_letters(now - RECENT_MS, None, _LETTERS, None)
        errors = Counter(letter.last_error for letter in letters if letter.last_error)
        return errors.most_common(1)[0][0] if errors else None

    def _workers(self) -> list[Process] | None:
        """The other processes that work; None where they are not known, also because they can be heard only since just
        now."""
        if self._others is None or (self._processes is not None and self._processes.readable_ms < SILENT_MS):
            return None
        return [each for each in self._others if each.works]
