"""Who may be called now: connection limits and a circuit per destination, and what waits for either.

A destination is a scheme, a host and a port. A callback that may not start is parked in its destination's line and
holds nothing but its memory. The circuit counts only failures to connect and to answer in time: many clients may
share one host, and one client's 500s must not keep the others waiting.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from chargegate.model import CallbackTarget, now_ms
from chargegate.observe import log

IN_LINE: Final = "in_line"  # parked until its destination has room
RESTING: Final = "resting"  # parked until the time of its next attempt
RUNNING: Final = "running"
ENDED: Final = "ended"

_REMEMBERED: Final = 10_000
_SWEEP_S: Final = 1.0
_What = TypeVar("_What")


class Callback:
    """One callback on its way. Its state is this module's; the rest is filled in by who makes and sends it."""

    __slots__ = (
        "attempts",
        "body",
        "deadline",
        "destination",
        "error",
        "last_status_code",
        "probing",
        "request_id",
        "state",
        "target",
        "traceparent",
        "work",
    )

    def __init__(
        self,
        request_id: str,
        target: CallbackTarget,
        body: bytes,
        *,
        traceparent: str,
        attempts: int,
        deadline: int,
        work: Any,
    ) -> None:
        self.request_id = request_id
        self.target = target
        self.destination = target.destination
        self.body = body
        self.traceparent = traceparent
        self.attempts = attempts
        # Given up when it passes before the next attempt. By the clock that nobody sets; it is asked for in Unix ms.
        self.deadline = time.monotonic() + (deadline - now_ms()) / 1000
        self.work = work  # whatever its owner needs when it ends
        self.error: str | None = None
        self.last_status_code: int | None = None
        self.state = ENDED
        self.probing = False


class _Destination:
    __slots__ = ("failures", "key", "line", "open", "probe_at", "probing", "running")

    def __init__(self, key: str) -> None:
        self.key = key
        self.line: deque[Callback] = deque()
        self.running = 0
        self.failures = 0
        self.open = False
        self.probing = False
        self.probe_at = 0.0

    @property
    def idle(self) -> bool:
        return not (self.line or self.running)


class Destinations:
    """Limits, circuits and parking for all destinations of one process. Not for use from several threads."""

    def __init__(
        self,
        *,
        max_connections: int,
        max_per_destination: int,
        failure_threshold: int,
        probe_interval_ms: int,
        on_ready: Callable[[Callback], None],
        on_expired: Callable[[Callback], None],
        on_circuit: Callable[[str], None] = lambda _state: None,
    ) -> None:
        """``on_ready`` is told of a parked callback that may start now: its connection is taken. ``on_expired`` of one
        whose deadline passed before it could start. ``on_circuit``: ``open`` when the first circuit opens, ``closed``
        when none is open any more."""
        self._max = max_connections
        self._max_each = max_per_destination
        self._threshold = failure_threshold
        self._probe_interval = probe_interval_ms / 1000
        self._on_ready = on_ready
        self._on_expired = on_expired
        self._on_circuit = on_circuit
        self._loop = asyncio.get_running_loop()
        self._known: dict[str, _Destination] = {}
        self._remembered: dict[str, None] = {}  # destinations with nothing to do that failed lately, oldest first
        self._starved: dict[str, None] = {}  # destinations with a line that only the limit in all holds up, in turn
        self._sweeper: asyncio.TimerHandle | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._running = 0
        self._open = 0
        self.parked = 0

    @property
    def open_circuits(self) -> int:
        return self._open

    def start(self, callback: Callback) -> bool:
        """True: it may be sent now, and its connection is taken until ``finished``. False: it is parked, or was given
        up because its deadline has passed."""
        if callback.deadline <= time.monotonic():
            self._expire(callback)
            return False
        key = callback.destination
        destination = self._known.get(key)
        if destination is None:
            destination = self._known[key] = _Destination(key)
        self._remembered.pop(key, None)
        if not destination.line and self._free(destination):
            self._take(destination, callback)
            return True
        self._queue(destination, callback)
        self._pump(destination)
        return False

    def retry(self, callback: Callback, wait_ms: int) -> None:
        """Park it until the time of its next attempt, or its deadline if that is sooner."""
        callback.state = RESTING
        self.parked += 1
        self._later(min(wait_ms / 1000, callback.deadline - time.monotonic()), self._rested, callback)

    def finished(self, callback: Callback, *, reachable: bool) -> bool:
        """Give its connection back. ``reachable``: the destination was connected to and answered in time.

        Returns False if this was only a probe of a destination that is still unreachable: such an attempt is not
        counted, and the callback is parked again.
        """
        destination = self._known[callback.destination]
        again = callback.probing and not reachable and time.monotonic() < callback.deadline
        self._observe(destination, callback, reachable=reachable)
        if again:
            self._queue(destination, callback)
        self._give_back(destination, callback)
        return not again

    def unused(self, callback: Callback) -> None:
        """Give back a connection that was not used: nothing is learned of the destination."""
        destination = self._known[callback.destination]
        if callback.probing:
            callback.probing = destination.probing = False
            destination.probe_at = self._loop.time()
        self._give_back(destination, callback)

    def shed(self, count: int) -> int:
        """Give up the newest of the longest line, at most so many; how many there were. For when too many are parked:
        what one destination left waiting must not keep others from being served."""
        longest = max(self._known.values(), key=lambda destination: len(destination.line), default=None)
        shed = 0
        while longest is not None and longest.line and shed < count:
            callback = longest.line.pop()
            if callback.state == IN_LINE:
                callback.error = "too_many_waiting"
                self.parked -= 1
                self._expire(callback)
                shed += 1
        return shed

    def _give_back(self, destination: _Destination, callback: Callback) -> None:
        destination.running -= 1
        self._running -= 1
        if callback.state == RUNNING:
            callback.state = ENDED
        if destination.line:
            self._starved[destination.key] = None  # behind those whose turn it is
        else:
            self._rest(destination)
        while self._starved and self._running < self._max:
            key = next(iter(self._starved))
            del self._starved[key]
            if key in self._known:
                self._pump(self._known[key])

    def _rest(self, destination: _Destination) -> None:
        """Forget a destination with nothing to do, or remember that it failed; hostile clients name endless hosts."""
        if not destination.idle or self._known.get(destination.key) is not destination:
            return  # a timer may outlive what it was set for
        if not destination.failures:
            del self._known[destination.key]
            return
        self._remembered[destination.key] = None
        if len(self._remembered) > _REMEMBERED:
            oldest = next(iter(self._remembered))
            del self._remembered[oldest]
            self._close_circuit(self._known.pop(oldest))

    def _observe(self, destination: _Destination, callback: Callback, *, reachable: bool) -> None:
        probe, callback.probing = callback.probing, False
        if probe:
            destination.probing = False
        if reachable:
            destination.failures = 0
            self._close_circuit(destination)
            return
        destination.failures += 1
        if destination.open:
            if probe:
                self._await_probe(destination)
        elif destination.failures >= self._threshold:
            destination.open = True
            self._open += 1
            log.warning("destination unreachable, its callbacks wait", failures=destination.failures)
            if self._open == 1:
                self._on_circuit("open")
            destination.probe_at = self._loop.time() + self._probe_interval
            self._await_probe(destination)

    def _close_circuit(self, destination: _Destination) -> None:
        if destination.open:
            destination.open = False
            self._open -= 1
            log.info("destination reachable again")
            if not self._open:
                self._on_circuit("closed")

    def _await_probe(self, destination: _Destination) -> None:
        self._later(destination.probe_at - self._loop.time(), self._pump, destination)

    def _free(self, destination: _Destination) -> bool:
        if destination.open:
            return not destination.probing and self._loop.time() >= destination.probe_at and self._running < self._max
        return destination.running < self._max_each and self._running < self._max

    def _take(self, destination: _Destination, callback: Callback) -> None:
        destination.running += 1
        self._running += 1
        callback.state = RUNNING
        if destination.open:
            destination.probing = callback.probing = True
            destination.probe_at = self._loop.time() + self._probe_interval

    def _pump(self, destination: _Destination) -> None:
        """Start from a destination's line what may start."""
        line, now = destination.line, time.monotonic()
        while line:
            if line[0].state != IN_LINE:
                line.popleft()
            elif line[0].deadline <= now:
                self.parked -= 1
                self._expire(line.popleft())
            elif self._free(destination):
                callback = line.popleft()
                self._take(destination, callback)
                self.parked -= 1
                self._on_ready(callback)
            else:
                if self._running >= self._max:
                    self._starved[destination.key] = None
                return
        self._rest(destination)

    def _queue(self, destination: _Destination, callback: Callback) -> None:
        callback.state = IN_LINE
        self.parked += 1
        destination.line.append(callback)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Give up what waited in a line past its deadline. One look at all costs less than a timer for each."""
        now = time.monotonic()
        late = [c for d in self._known.values() for c in d.line if c.state == IN_LINE and c.deadline <= now]
        for callback in late:
            self.parked -= 1
            self._expire(callback)
        in_line = any(destination.line for destination in self._known.values())
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep) if in_line else None

    def _rested(self, callback: Callback) -> None:
        self.parked -= 1
        if self.start(callback):
            self._on_ready(callback)

    def _expire(self, callback: Callback) -> None:
        callback.state = ENDED
        self._on_expired(callback)

    def _later(self, seconds: float, do: Callable[[_What], None], what: _What) -> None:
        def ring() -> None:
            self._timers.discard(timer)
            do(what)

        # A thousandth later than asked, so that clocks which differ by less do not make it ring early.
        timer = self._loop.call_later(max(0.0, seconds) + 0.001, ring)
        self._timers.add(timer)

    def close(self) -> None:
        """Ring no more. What is parked stays where it came from."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
