"""What was seen at one moment after another, and the charts that are made of it."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from chargegate.ledger.counts import MINUTE_MS, UnitCounts
from chargegate.model import Millis, Status

RECENT_MS: Final = 30_000
"""What happened within so much time is told as going on."""

SLOW_ANSWER_MS: Final = 5000
"""The objective: an answer is delivered within so much time from its request."""

_SHARES: Final = (0.5, 0.95, 0.99)
_MEASURED: Final = (
    "waiting", "oldest_age_ms", "dead_letters", "p50_ms", "p95_ms", "p99_ms",
    "open_circuits", "sink_lag_ms", "anomalies",
)  # fmt: skip
_COUNTED: Final = ("total", "unknown", "timeouts", "errors", "circuit_open", "expired_in_queue")


class Look(msgspec.Struct, frozen=True):
    """What was seen at one moment. None: it could not be seen. ``accepted`` counts since this process began to look,
    and so does ``refused``, which are requests that were answered 503.
    The percentiles are of callbacks delivered within the minute before, from accepted to delivered. ``open_circuits``:
    those that are not closed. ``sink_lag_ms``: of the audit sink that is furthest behind. ``anomalies``: those that go
    on."""

    timestamp: Millis
    accepted: int
    refused: int
    waiting: int | None
    oldest_age_ms: int | None
    dead_letters: int | None
    p50_ms: int | None
    p95_ms: int | None
    p99_ms: int | None
    open_circuits: int
    sink_lag_ms: int
    anomalies: int | None


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
    open_circuits: int | None
    sink_lag_ms: int | None
    anomalies: int | None


class Series(msgspec.Struct, frozen=True):
    """Points one after another, oldest first, each ``step_ms`` long."""

    step_ms: int
    points: list[Point]


class Recent(NamedTuple):
    """Decisions of the last half minute, and how many were ``unknown`` for each reason."""

    total: int
    unknown: int
    timeouts: int
    errors: int
    circuit_open: int
    expired_in_queue: int


def percentiles(times: Sequence[int]) -> list[int | None]:
    """p50, p95 and p99 of times that are sorted; None each where there are none."""
    return [times[min(len(times) - 1, int(share * len(times)))] if times else None for share in _SHARES]


class Looks:
    """The looks of the last minute at least, and for each minute of the last day the worst that was seen in it.
    Decisions are told minute by minute, and what is new since half a minute ago follows from what was told then."""

    def __init__(self) -> None:
        self._looks: deque[Look] = deque(maxlen=400)
        self._minutes: deque[Look] = deque(maxlen=24 * 60 + 1)
        self._told: deque[tuple[int, dict[int, UnitCounts]]] = deque()

    def note(self, look: Look, minutes: Sequence[UnitCounts] | None) -> None:
        """``minutes``: the decisions of the last minutes, the current one included; None where they are not known."""
        if self._looks and look.timestamp < self._looks[-1].timestamp - RECENT_MS:
            self._forget_what_is_later(look.timestamp)
        self._looks.append(look)
        if self._minutes and self._minutes[-1].timestamp // MINUTE_MS == look.timestamp // MINUTE_MS:
            self._minutes[-1] = _worse(self._minutes[-1], look)
        else:
            self._minutes.append(look)
        if minutes is not None:
            self._told.append((look.timestamp, {one.start: one for one in minutes}))
        while len(self._told) > 1 and self._told[1][0] <= look.timestamp - RECENT_MS:
            self._told.popleft()

    def _forget_what_is_later(self, now: int) -> None:
        """The clock was set back: what was seen before would be recent until it has caught up."""
        self._looks.clear()
        self._told.clear()
        while self._minutes and self._minutes[-1].timestamp > now:
            self._minutes.pop()

    def since(self, at: int) -> Look:
        """The first look since then. There must be one."""
        return next((look for look in self._looks if look.timestamp >= at), self._looks[-1])

    def recent(self) -> Recent:
        """What was decided since half a minute ago, or since the first look."""
        if not self._told:
            return Recent(0, 0, 0, 0, 0, 0)
        (_, then), (_, now) = self._told[0], self._told[-1]

        def more(name: str) -> int:
            return sum(max(0, getattr(one, name) - getattr(then.get(start), name, 0)) for start, one in now.items())

        return Recent(*map(more, _COUNTED))

    def refused(self) -> tuple[int, int]:
        """How many requests were answered 503 since half a minute ago, and how many of those and accepted ones there
        were."""
        first, last = self.since(self._looks[-1].timestamp - RECENT_MS), self._looks[-1]
        refused = last.refused - first.refused
        return refused, refused + last.accepted - first.accepted

    def unanswered(self) -> int:
        """How many requests were accepted from a minute ago to half a minute ago, if no callback was delivered since a
        minute ago; else, and where that is not known, 0."""
        first, last = self._looks[0], self._looks[-1]
        known = last.dead_letters is not None and first.timestamp <= last.timestamp - MINUTE_MS
        if not known or last.p50_ms is not None:
            return 0
        return self._accepted_by(last.timestamp - RECENT_MS) - self._accepted_by(last.timestamp - MINUTE_MS)

    def _accepted_by(self, at: int) -> int:
        return next((look.accepted for look in reversed(self._looks) if look.timestamp <= at), 0)

    def more_dead_letters(self) -> int:
        """How many more there are than half a minute ago; 0 where that is not known."""
        first = self._looks[-1].timestamp - RECENT_MS
        known = [look.dead_letters for look in self._looks if look.timestamp >= first and look.dead_letters is not None]
        return max(0, known[-1] - known[0]) if known else 0

    def series(self, step: int, length: int, now: int, counted: Sequence[UnitCounts]) -> Series:
        """``length`` points of ``step`` ms each, the last of which holds ``now``."""
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


def _worse(one: Look, later: Look) -> Look:
    """Two looks in one minute as one, so that no peak is lost."""
    return msgspec.structs.replace(later, **_worst([one, later]))


def _worst(looks: Sequence[Look]) -> dict[str, Any]:
    values = {name: [getattr(look, name) for look in looks] for name in _MEASURED}
    return {name: max((each for each in seen if each is not None), default=None) for name, seen in values.items()}


def _point(start: int, decided: Mapping[Status, int], accepted: int | None, looks: Sequence[Look]) -> Point:
    """Of what was seen in a length of time, the worst."""
    return Point(
        timestamp=start,
        allowed=decided[Status.ALLOWED],
        not_allowed=decided[Status.NOT_ALLOWED],
        unknown=decided[Status.UNKNOWN],
        invalid=decided[Status.INVALID],
        accepted=accepted,
        **_worst(looks),
    )
