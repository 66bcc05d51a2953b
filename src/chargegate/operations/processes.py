"""What the processes of one service say of themselves to each other, through the database that they share, so that
any of them can tell how all are."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from chargegate.ledger.base import NamedValues
from chargegate.observe import Metrics
from chargegate.operations.health import Check, Component, check_all, worse
from chargegate.operations.troubles import Problem, Troubles
from chargegate.storage.recurring import Recurring
from chargegate.storage.unavailable import Unavailable

SILENT_MS: Final = 2500
"""A process that was not heard from for longer has ended, or cannot reach the database."""

_EVERY_S: Final = 1.0
_DISKS_S: Final = 3.0
_FORGOTTEN_MS: Final = 60_000
_PREFIX: Final = "process:"
_STATES: Final = ("closed", "half_open", "open")

Role = Literal["serve", "api", "worker"]


class Circuit(msgspec.Struct, frozen=True):
    """A circuit breaker, by its name."""

    name: str
    state: str


class Lag(msgspec.Struct, frozen=True):
    """How far an audit sink is behind."""

    sink: str
    seconds: float


class Report(msgspec.Struct, frozen=True):
    """How one process is. ``number`` is different each time. ``accepted`` and ``refused``, which is what was answered
    503, count since the process's start. ``troubles``: what is wrong by its own metrics."""

    role: Role
    number: int
    accepted: int
    in_flight: int
    oldest_question_ms: int
    components: dict[str, Component]
    circuits: list[Circuit]
    sinks: list[Lag]
    refused: int = 0
    troubles: list[Problem] = []


class Process(msgspec.Struct, frozen=True):
    """Another process, and for how long it has not been heard from, in ms."""

    name: str
    role: Role
    silent_ms: int

    @property
    def silent(self) -> bool:
        return self.silent_ms >= SILENT_MS

    @property
    def works(self) -> bool:
        """Whether there is a worker in it."""
        return self.role != "api"


class Reporter:
    """Says how this process is."""

    def __init__(self, *, role: Role, metrics: Metrics, oldest_question_ms: Callable[[], int]) -> None:
        self._role: Role = role
        self._metrics = metrics
        self._oldest_question_ms = oldest_question_ms
        self._number = time.time_ns()
        self._troubles = Troubles(from_start=True)
        self._disks_at = float("-inf")

    @property
    def accepted(self) -> int:
        """How many requests this process accepted since its start."""
        return int(self._metrics.sampled("charging_requests_total", "outcome").get("accepted", 0))

    @property
    def refused(self) -> int:
        """How many requests this process answered 503 since its start."""
        return int(self._metrics.sampled("charging_requests_total", "outcome").get("unavailable", 0))

    def report(self, components: Mapping[str, Component]) -> Report:
        """``components``: as they were found just now."""
        self._number += 1
        if time.monotonic() - self._disks_at >= _DISKS_S:  # each time it takes a thread
            self._disks_at = time.monotonic()
            self._metrics.disks.refresh()
        sampled = self._metrics.sampled
        circuits, lags = sampled("circuit_breaker_state", "name"), sampled("audit_sink_lag_seconds", "sink")
        return Report(
            role=self._role,
            number=self._number,
            accepted=self.accepted,
            in_flight=int(sampled("requests_in_flight").get("", 0)),
            oldest_question_ms=self._oldest_question_ms(),
            components=dict(components),
            circuits=[Circuit(name, _STATES[int(value)]) for name, value in circuits.items()],
            sinks=[Lag(name, round(value, 3)) for name, value in lags.items()],
            refused=self.refused,
            troubles=self._troubles.found(sampled),
        )


class Reporting:
    """Tells the others every second how this process is, until ``close``, which takes back what was told last."""

    def __init__(self, reporter: Reporter, components: Mapping[str, Check], values: NamedValues, name: str) -> None:
        """``components``: those of this process that the others do not have themselves."""
        self._reporter = reporter
        self._components = components
        self._values = values
        self._name = _PREFIX + name
        self._recurring = Recurring(self._send, 0.0, "this process could not say how it is")

    async def _send(self) -> float:
        _, components = await check_all(self._components)
        await self._values.put_value(self._name, _encode(self._reporter.report(components)).decode())
        return _EVERY_S

    async def close(self) -> None:
        """While the database is away nothing can be taken back: the others take this process for one that died."""
        await self._recurring.close()
        with contextlib.suppress(Unavailable):
            await self._values.drop_values([self._name])


class Processes:
    """The other processes, as they were heard from last."""

    def __init__(self, values: NamedValues, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``name``: that of this process."""
        self._values = values
        self._own = _PREFIX + name
        self._clock = clock
        self._heard: dict[str, tuple[Report, float]] = {}
        self._accepted = 0
        self._refused = 0
        self._readable_since: float | None = None

    @property
    def readable_ms(self) -> int:
        """For how long they could be heard without a break. After a break, those that were silent in it may live."""
        return 0 if self._readable_since is None else round((self._clock() - self._readable_since) * 1000)

    @property
    def accepted(self) -> int:
        """How many requests the others accepted, as far as this process saw it."""
        return self._accepted

    @property
    def refused(self) -> int:
        """How many requests the others answered 503, as far as this process saw it."""
        return self._refused

    async def read(self) -> list[Process]:
        """All others, by their names. One that was not heard from for a minute is forgotten if any other like it is
        there. Raises ``LedgerUnavailable``."""
        try:
            texts = await self._values.values_of(_PREFIX)
        except BaseException:  # also a time limit
            self._readable_since = None
            raise
        texts.pop(self._own, None)
        now = self._clock()
        if self._readable_since is None:
            self._readable_since = now
        for key in self._heard.keys() - texts.keys():
            del self._heard[key]
        for key, text in texts.items():
            self._hear(key, text, now)
        found = {
            key: Process(key.removeprefix(_PREFIX), report.role, round((now - at) * 1000))
            for key, (report, at) in sorted(self._heard.items())
        }
        heard = {each.works for each in found.values() if not each.silent}
        forgotten = [key for key, each in found.items() if each.silent_ms >= _FORGOTTEN_MS and each.works in heard]
        if forgotten:
            await self._values.drop_values(forgotten)
        return [each for key, each in found.items() if key not in forgotten]

    def _hear(self, key: str, text: str, now: float) -> None:
        try:
            report = _decode(text)
        except msgspec.MsgspecError:  # another release's
            return
        before = self._heard.get(key)
        if before is not None and before[0].number == report.number:
            return
        if before is not None:  # what it accepted before this process looked is not known to be new
            self._accepted += max(0, report.accepted - before[0].accepted)
            self._refused += max(0, report.refused - before[0].refused)
        name = key.removeprefix(_PREFIX)
        troubles = [
            msgspec.structs.replace(each, text=f"{each.text.rstrip('.')} (process {name}).") for each in report.troubles
        ]
        self._heard[key] = msgspec.structs.replace(report, troubles=troubles), now

    def reports(self) -> list[tuple[Report, int]]:
        """What those say that are heard from, and how old that is, in ms."""
        now = self._clock()
        ages = [(report, round((now - at) * 1000)) for report, at in self._heard.values()]
        return [(report, age) for report, age in ages if age < SILENT_MS]


def together(own: Report, others: Sequence[tuple[Report, int]]) -> Report:
    """One report of all: of what several say, the worst. ``accepted`` and ``refused`` are this process's own."""
    components, circuits, lags = dict(own.components), _states(own), {lag.sink: lag.seconds for lag in own.sinks}
    in_flight, oldest, troubles = own.in_flight, own.oldest_question_ms, list(own.troubles)
    for report, age in others:
        for name, component in report.components.items():
            components[name] = worse(components[name], component) if name in components else component
        for name, state in _states(report).items():
            circuits[name] = max(state, circuits.get(name, 0))
        for lag in report.sinks:
            lags[lag.sink] = max(lag.seconds, lags.get(lag.sink, 0.0))
        in_flight += report.in_flight
        troubles += report.troubles
        if report.oldest_question_ms:
            oldest = max(oldest, report.oldest_question_ms + age)
    return msgspec.structs.replace(
        own,
        components=components,
        circuits=[Circuit(name, _STATES[state]) for name, state in circuits.items()],
        sinks=[Lag(name, seconds) for name, seconds in lags.items()],
        in_flight=in_flight,
        oldest_question_ms=oldest,
        troubles=troubles,
    )


def _states(report: Report) -> dict[str, int]:
    return {circuit.name: _STATES.index(circuit.state) for circuit in report.circuits}


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Report).decode
