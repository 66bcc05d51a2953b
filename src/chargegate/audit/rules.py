"""What is unusual in the audit: the rules, as far as they are about numbers. See ``analysis``."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec

from chargegate.ledger.anomalies import Anomalies, Anomaly, AnomalyType
from chargegate.ledger.counts import DAY_MS, HOUR_MS, MINUTE_MS, DecisionCounts

ALL: Final = "authorization"
"""The subject of what is about all decisions."""

_CANDIDATES: Final = 500
_LEAVES_AT: Final = 0.8
"""An anomaly goes on until its value is below this share of the threshold, so that it does not end and begin again
and again."""

_SAMPLES_LEFT: Final = 0.5
"""As before, of the least number of samples."""

_USUAL_DAYS: Final = range(1, 8)
_ENOUGH_TRAFFIC: Final = 0.5
"""Where all together have less than this share of their usual decisions, a station's silence is not its own."""


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """When something is unusual; see docs/configuration.md, section analysis."""

    timeouts_per_hour: int
    station_error_rate: float
    station_min_decisions: int
    silence_hours: int
    silence_min_usual: int
    token_stations: int
    token_window_ms: int
    callback_failure_rate: float
    callback_min_ended: int


class Finding(msgspec.Struct, frozen=True):
    """Something unusual at this moment."""

    type: AnomalyType
    subject: str
    description: str
    value: float
    threshold: float
    request_id: str = ""


Key = tuple[AnomalyType, str]


class Rules:
    """Looks at the counts. A look takes time with the number of stations that are active, not of decisions."""

    def __init__(self, counts: DecisionCounts, anomalies: Anomalies, limits: Thresholds) -> None:
        self._counts = counts
        self._anomalies = anomalies
        self._limits = limits

    async def find(self, now: int, open_: Mapping[Key, Anomaly]) -> list[Finding]:
        """What is unusual at that time (Unix ms). ``open_`` is what was so at the last look. Raises
        ``LedgerUnavailable``."""
        rules: Sequence[Callable[[int, Mapping[Key, Anomaly]], Awaitable[list[Finding]]]] = (
            self._timeouts,
            self._erring_stations,
            self._silent_stations,
            self._denied_tokens,
            self._failing_callbacks,
        )
        return [finding for rule in rules for finding in await rule(now, open_)]

    async def _timeouts(self, now: int, open_: Mapping[Key, Anomaly]) -> list[Finding]:
        limit = self._limits.timeouts_per_hour
        timeouts = (await self._counts.total(now - HOUR_MS, now)).timeouts
        if not _exceeds(timeouts, limit, (AnomalyType.TIMEOUTS, ALL) in open_):
            return []
        return [Finding(AnomalyType.TIMEOUTS, ALL, f"{timeouts} authorization timeouts in an hour", timeouts, limit)]

    async def _erring_stations(self, now: int, open_: Mapping[Key, Anomaly]) -> list[Finding]:
        limit, least = self._limits.station_error_rate, self._limits.station_min_decisions
        errors = max(1, int(least * _SAMPLES_LEFT * limit * _LEAVES_AT))
        found = []
        for suspect in await self._anomalies.erring_stations(now - HOUR_MS, errors, _CANDIDATES):
            exact = await self._counts.by_station(now - HOUR_MS, now, station_id=suspect.subject)
            goes_on = (AnomalyType.STATION_ERRORS, suspect.subject) in open_
            if not exact or exact[0].total < _least(least, goes_on):
                continue
            rate = (exact[0].unknown + exact[0].invalid) / exact[0].total
            if _exceeds(rate, limit, goes_on):
                text = f"{rate:.0%} of {exact[0].total} decisions in an hour are errors"
                found.append(Finding(AnomalyType.STATION_ERRORS, suspect.subject, text, round(rate, 4), limit))
        return found

    async def _silent_stations(self, now: int, open_: Mapping[Key, Anomaly]) -> list[Finding]:
        """A station is compared with itself in the same hours of each of the last seven days, and of the same day of
        the week."""
        hours, least = self._limits.silence_hours, self._limits.silence_min_usual
        this_hour = now // HOUR_MS * HOUR_MS
        window = [this_hour - hour * HOUR_MS for hour in range(1, hours + 1)]
        usual = [start - day * DAY_MS for day in _USUAL_DAYS for start in window]
        week_before = [start - 7 * DAY_MS for start in window]
        silent = await self._anomalies.silent_stations(usual, week_before, [*window, this_hour], least, _CANDIDATES)
        found = await self._silent_still(now, open_)
        if not silent or not await self._traffic_is_usual(window):
            return found
        goes_on = {finding.subject for finding in found}
        for suspect in silent:
            if suspect.subject in goes_on:
                continue
            mean = suspect.number / len(_USUAL_DAYS)
            text = f"no decision in {hours} hours, in which there are {mean:.0f} on other days"
            found.append(Finding(AnomalyType.STATION_SILENT, suspect.subject, text, 0, round(mean, 1)))
        return found

    async def _silent_still(self, now: int, open_: Mapping[Key, Anomaly]) -> list[Finding]:
        """Also at hours at which a station is usually silent; but what has been silent for a week is gone for good."""
        still = []
        for (kind, station), one in open_.items():
            if kind is not AnomalyType.STATION_SILENT or now - one.since >= 7 * DAY_MS:
                continue
            if not await self._counts.by_station(one.since, now, station_id=station):
                still.append(Finding(kind, station, one.description, one.value, one.threshold))
        return still

    async def _traffic_is_usual(self, window: Sequence[int]) -> bool:
        since, until = min(window), max(window) + HOUR_MS
        now = (await self._counts.total(since, until)).total
        before = [(await self._counts.total(since - d * DAY_MS, until - d * DAY_MS)).total for d in _USUAL_DAYS]
        return now > _ENOUGH_TRAFFIC * sum(before) / len(before)

    async def _denied_tokens(self, now: int, open_: Mapping[Key, Anomaly]) -> list[Finding]:
        limit, window = self._limits.token_stations, self._limits.token_window_ms
        least = max(2, int(limit * _LEAVES_AT))
        found = []
        for suspect in await self._anomalies.denied_tokens(now - window, now, least, _CANDIDATES):
            needed = least if (AnomalyType.TOKEN_DENIED, suspect.subject) in open_ else limit
            if suspect.number >= needed:
                text = f"denied at {suspect.number:.0f} stations within {_lasting(window)}"
                kind = AnomalyType.TOKEN_DENIED
                found.append(Finding(kind, suspect.subject, text, suspect.number, limit, suspect.request_id))
        return found

    async def _failing_callbacks(self, now: int, open_: Mapping[Key, Anomaly]) -> list[Finding]:
        limit, least = self._limits.callback_failure_rate, self._limits.callback_min_ended
        found = []
        for one in await self._counts.callbacks(now - HOUR_MS):
            ended = one.delivered + one.failed
            rate = one.failed / ended if ended else 0.0
            goes_on = (AnomalyType.CALLBACKS, one.client) in open_
            if ended >= _least(least, goes_on) and _exceeds(rate, limit, goes_on):
                text = f"{rate:.0%} of {ended} callbacks since the last full hour but one were given up"
                found.append(Finding(AnomalyType.CALLBACKS, one.client, text, round(rate, 4), limit))
        return found


def _lasting(ms: int) -> str:
    """A time as people say it, to the millisecond."""
    for unit, name in ((MINUTE_MS, "minute"), (1000, "second")):
        if ms % unit == 0:
            number = ms // unit
            return f"{number} {name}" + ("" if number == 1 else "s")
    return f"{ms} ms"


def _least(samples: int, goes_on: bool) -> float:
    return samples * _SAMPLES_LEFT if goes_on else samples


def _exceeds(value: float, limit: float, goes_on: bool) -> bool:
    return value > limit * _LEAVES_AT if goes_on else value > limit
