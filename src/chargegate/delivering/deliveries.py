"""The one owner of a callback: its state, its attempts, what it waits for, its deadline, and its end.

A callback that may not be sent now is parked: it holds no connection and no place in the concurrency limit, only
memory. Its message stays unacked in the queue.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Final, TypeVar

import msgspec

from chargegate.concurrency import ConcurrencyLimit
from chargegate.delivering.destinations import Destination, Destinations
from chargegate.delivering.retry import RetryPolicy
from chargegate.delivering.sender import Attempt, Sender
from chargegate.model import CallbackTarget, now_ms
from chargegate.observe import Metrics, log

T = TypeVar("T")

_SWEEP_S: Final = 1.0
_TOO_LATE: Final = "deadline_exceeded"
_TOO_MANY: Final = "too_many_waiting"


class State(IntEnum):
    """Where a callback stands."""

    NEW = 0
    IN_LINE = 1  # parked until its destination has a connection for it
    RUNNING = 2  # an attempt is under way, on a connection
    RECORDING = 3  # an attempt failed and will be repeated; that is being persisted
    WAITING = 4  # parked until the time of its next attempt
    DELIVERED = 5
    GIVEN_UP = 6
    LEFT = 7  # its attempt was cancelled; its message comes back from the queue


class Event(IntEnum):
    """What happens to a callback."""

    STARTED = 0  # it got a connection
    HELD_BACK = 1  # there is no connection for it, or its probe found the destination still unreachable
    SUCCEEDED = 2
    FAILED = 3  # and another attempt will follow
    RECORDED = 4  # the failed attempt is persisted
    ENDED = 5  # no attempt is left, its deadline passed, or too many are parked
    CANCELLED = 6  # the attempt was cut off by a shutdown or a defect


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.NEW: {Event.STARTED: State.RUNNING, Event.HELD_BACK: State.IN_LINE, Event.ENDED: State.GIVEN_UP},
    State.IN_LINE: {Event.STARTED: State.RUNNING, Event.ENDED: State.GIVEN_UP},
    State.RUNNING: {
        Event.HELD_BACK: State.IN_LINE,
        Event.SUCCEEDED: State.DELIVERED,
        Event.FAILED: State.RECORDING,
        Event.ENDED: State.GIVEN_UP,
        Event.CANCELLED: State.LEFT,
    },
    State.RECORDING: {Event.RECORDED: State.WAITING},
    State.WAITING: {Event.STARTED: State.RUNNING, Event.HELD_BACK: State.IN_LINE, Event.ENDED: State.GIVEN_UP},
    State.DELIVERED: {},
    State.GIVEN_UP: {},
    State.LEFT: {},
}
_PARKED: Final = frozenset({State.IN_LINE, State.WAITING})


class CallbackLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How often, how long and how many callbacks are tried. Times are in ms."""

    retries: RetryPolicy
    deadline_ms: int
    max_parked: int
    max_connections: int
    max_connections_per_destination: int
    circuit_failures: int
    circuit_probe_ms: int


class Callback(msgspec.Struct, eq=False):
    """One callback, from its first attempt to its end. Only ``Deliveries`` changes it.

    ``attempts``: those that were made, also by an earlier process. ``deadline_ms``: when it is given up, in Unix ms.
    """

    request_id: str
    target: CallbackTarget
    body: bytes
    traceparent: str
    attempts: int
    deadline_ms: int
    deadline: float = 0.0  # the same by the monotonic clock, which nobody can set
    state: State = State.NEW
    probing: bool = False
    error: str | None = None
    last_status_code: int | None = None

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + (self.deadline_ms - now_ms()) / 1000


Hook = Callable[[Callback], Awaitable[None]]


class Deliveries:
    """Delivers callbacks, or gives them up. Each attempt is a step of the concurrency limit."""

    def __init__(
        self,
        *,
        sender: Sender,
        limits: CallbackLimits,
        concurrency: ConcurrencyLimit,
        metrics: Metrics,
        on_retry: Hook,
        on_end: Hook,
    ) -> None:
        """``on_retry``: an attempt failed and will be repeated; the wait begins once this returns. ``on_end``: the
        callback is ``DELIVERED``, or ``GIVEN_UP`` with its ``error``."""
        self._sender = sender
        self._limits = limits
        self._concurrency = concurrency
        self._on_retry = on_retry
        self._on_end = on_end
        self._destinations = Destinations(
            max_connections=limits.max_connections,
            max_per_destination=limits.max_connections_per_destination,
            failure_threshold=limits.circuit_failures,
            probe_interval_ms=limits.circuit_probe_ms,
            on_room=self._start_line,
            on_probe_in=lambda seconds, destination: self._later(seconds, self._start_line, destination),
            on_circuit=metrics.circuit("callbacks"),
        )
        self._delivered, self._retried, self._given_up = (
            metrics.deliveries.labels(outcome) for outcome in ("delivered", "retry", "dead_letter")
        )
        self._rng = random.Random()  # noqa: S311 - jitter
        self._loop = asyncio.get_running_loop()
        self._timers: set[asyncio.TimerHandle] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self.parked = 0  # callbacks that wait for a connection, a circuit or the time of their next attempt

    @property
    def open_circuits(self) -> int:
        """Destinations that are only probed, because they cannot be reached."""
        return self._destinations.open_circuits

    async def deliver(self, callback: Callback) -> None:
        """Take a callback over. To be called in a step of the concurrency limit, which makes the first attempt where
        that may start at once; otherwise the callback is parked."""
        if self._start(callback):
            await self._attempt(callback)

    def make_room(self) -> bool:
        """Whether another callback may come. Where too many are parked, the newest of the longest line are given up:
        what one destination left waiting must not keep others from being served."""
        while self.parked >= self._limits.max_parked:
            longest = max((destination.line for destination in self._destinations.all()), key=len, default=None)
            given_up, at_most = 0, 1 + self._limits.max_parked // 50
            while longest and given_up < at_most:
                callback = longest.pop()
                if callback.state is State.IN_LINE:
                    self._give_up_soon(callback, _TOO_MANY)
                    given_up += 1
            if not given_up:
                return False
            log.warning("too many callbacks wait, the longest line's newest are given up")
        return True

    def close(self) -> None:
        """Start nothing any more. What is parked stays in the queue."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _apply(self, event: Event, callback: Callback) -> None:
        before = callback.state
        callback.state = after = TRANSITIONS[before][event]
        if before in _PARKED:
            self.parked -= 1
        if after in _PARKED:
            self.parked += 1

    def _start(self, callback: Callback) -> bool:
        """True: it has a connection and is to be attempted. False: it is parked, or given up as too late."""
        if callback.deadline <= time.monotonic():
            self._give_up_late(callback)
            return False
        destination = self._destinations.get(callback.target.destination)
        if not destination.line and self._destinations.take(destination):
            self._started(callback, destination)
            return True
        self._line_up(callback, destination)
        self._start_line(destination)
        return False

    def _started(self, callback: Callback, destination: Destination) -> None:
        self._apply(Event.STARTED, callback)
        callback.probing = destination.open

    def _line_up(self, callback: Callback, destination: Destination) -> None:
        self._apply(Event.HELD_BACK, callback)
        destination.line.append(callback)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def _start_line(self, destination: Destination) -> None:
        """Start what may start of those that wait for this destination."""
        line, now = destination.line, time.monotonic()
        while line:
            callback = line[0]
            if callback.state is not State.IN_LINE:
                line.popleft()  # it was given up meanwhile
            elif callback.deadline <= now:
                line.popleft()
                self._give_up_late(callback)
            elif self._destinations.take(destination):
                line.popleft()
                self._started(callback, destination)
                self._concurrency.run(self._attempt, callback)
            else:
                return
        self._destinations.forget_if_idle(destination)

    async def _attempt(self, callback: Callback) -> None:
        """One attempt, on the connection that was taken for it."""
        if callback.deadline <= time.monotonic():
            self._give_up_late(callback)
            self._give_back(callback, reachable=None)
            return
        try:
            attempt = await self._sender.send(callback.request_id, callback.target, callback.body, callback.traceparent)
        except BaseException:
            self._apply(Event.CANCELLED, callback)
            self._give_back(callback, reachable=None)
            raise
        callback.error, callback.last_status_code = attempt.error, attempt.status_code
        if attempt.delivered:
            callback.attempts += 1
            self._apply(Event.SUCCEEDED, callback)
            self._give_back(callback, reachable=True)
            self._delivered.inc()
            await self._on_end(callback)
            log.info("callback delivered", request_id=callback.request_id, attempts=callback.attempts)
        else:
            await self._failed(callback, attempt)

    async def _failed(self, callback: Callback, attempt: Attempt) -> None:
        in_time = time.monotonic() < callback.deadline
        if callback.probing and not attempt.reachable and in_time:  # a failed probe counts as no attempt
            self._line_up(callback, self._destinations.get(callback.target.destination))
            self._give_back(callback, reachable=False)
            return
        callback.attempts += 1
        wait_ms = None
        if in_time and not attempt.gone:
            wait_ms = self._limits.retries.wait_ms(callback.attempts, attempt.retry_after, now_ms(), self._rng)
        self._apply(Event.ENDED if wait_ms is None else Event.FAILED, callback)
        self._give_back(callback, reachable=attempt.reachable)
        if wait_ms is None:
            await self._give_up(callback)
        else:
            await self._retry(callback, wait_ms)

    def _give_back(self, callback: Callback, *, reachable: bool | None) -> None:
        probe, callback.probing = callback.probing, False
        destination = self._destinations.get(callback.target.destination)
        self._destinations.give_back(destination, probe=probe, reachable=reachable)

    async def _retry(self, callback: Callback, wait_ms: int) -> None:
        """Park it until the time of its next attempt, or its deadline if that is sooner."""
        self._retried.inc()
        log.info(
            "callback failed, will be tried again",
            request_id=callback.request_id,
            attempts=callback.attempts,
            error=callback.error,
            wait_ms=wait_ms,
        )
        await self._on_retry(callback)
        self._apply(Event.RECORDED, callback)
        self._later(min(wait_ms / 1000, callback.deadline - time.monotonic()), self._start_again, callback)

    def _start_again(self, callback: Callback) -> None:
        if self._start(callback):
            self._concurrency.run(self._attempt, callback)

    def _give_up_late(self, callback: Callback) -> None:
        self._give_up_soon(callback, callback.error or _TOO_LATE)

    def _give_up_soon(self, callback: Callback, error: str) -> None:
        callback.error = error
        self._apply(Event.ENDED, callback)
        self._concurrency.run(self._give_up, callback)

    async def _give_up(self, callback: Callback) -> None:
        self._given_up.inc()
        log.warning(
            "callback given up: a dead letter",
            request_id=callback.request_id,
            attempts=callback.attempts,
            error=callback.error,
        )
        await self._on_end(callback)

    def _sweep(self) -> None:
        """Give up what waited in a line past its deadline. One look at all costs less than a timer for each."""
        now = time.monotonic()
        lines = [destination.line for destination in self._destinations.all() if destination.line]
        for callback in [callback for line in lines for callback in line]:
            if callback.state is State.IN_LINE and callback.deadline <= now:
                self._give_up_late(callback)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep) if lines else None

    def _later(self, seconds: float, act: Callable[[T], None], what: T) -> None:
        def ring() -> None:
            self._timers.discard(timer)
            act(what)

        # A thousandth later than asked, so that clocks which differ by less do not make it ring early.
        timer = self._loop.call_later(max(0.0, seconds) + 0.001, ring)
        self._timers.add(timer)
