"""What each destination takes now: its limit, its pause after a refusal, its circuit, and whether it is proven.

A destination is a scheme, a host and a port. The circuit counts only failures to connect and to answer in time: many
clients may share one host, and the 500s of one client's receiver must not keep the callbacks of the others waiting.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, ValuesView
from typing import Final

from chargegate.delivering.lines import Destination
from chargegate.model import NO_USABLE_ADDRESS
from chargegate.observe import log

_MAX_REMEMBERED: Final = 10_000
_PROVEN_FOR_S: Final = 300.0
_LATE_S: Final = 0.001  # the loop's clock counts milliseconds, and no timer may ring too early


class Destinations:
    """All destinations of one process. It is not for use from several threads."""

    def __init__(
        self,
        *,
        max_per_destination: int,
        failure_threshold: int,
        probe_interval_ms: int,
        forget_after_ms: int,
        on_room: Callable[[Destination], None],
        on_circuit: Callable[[str], None],
    ) -> None:
        """``on_room(destination)``: a pause or the wait for a probe is over. ``on_circuit``: ``open`` when the first
        circuit opens, ``closed`` when the last one closes."""
        self._max_each = max_per_destination
        self._threshold = failure_threshold
        self._probe_interval = probe_interval_ms / 1000
        self._forget_after = forget_after_ms / 1000
        self._on_room = on_room
        self._on_circuit = on_circuit
        self._loop = asyncio.get_running_loop()
        self._known: dict[str, Destination] = {}
        # Idle ones, those idle for the longest first. Failing ones cannot push out those that answered.
        self._answering: OrderedDict[Destination, None] = OrderedDict()
        self._failing: OrderedDict[Destination, None] = OrderedDict()
        self._open_idle: OrderedDict[Destination, float] = OrderedDict()  # and since when
        self._forgetting: asyncio.TimerHandle | None = None
        self.open_circuits = 0

    def get(self, key: str) -> Destination:
        """The destination of this name. It is the same object for as long as it has a line or a connection."""
        destination = self._known.get(key)
        if destination is None:
            destination = self._known[key] = Destination(key, self._max_each)
        elif destination.idle is not None:
            del destination.idle[destination]
            destination.idle = None
            if destination.open:
                del self._open_idle[destination]
        return destination

    def all(self) -> ValuesView[Destination]:
        return self._known.values()

    def take(self, destination: Destination) -> None:
        """An attempt begins. The destination is ``startable``."""
        destination.running += 1
        destination.unresolved = None
        if destination.open:
            destination.probing = True

    def give_back(
        self, destination: Destination, *, probe: bool, reachable: bool | None, prompt: bool = True, late: bool = False
    ) -> None:
        """An attempt ended, which was counted as ``late`` or not. ``reachable``: the destination was connected to and
        answered in time, whatever it said, and ``prompt``: within a short time; None: nothing was sent, or it is not
        known. To be followed by ``forget_if_idle``."""
        destination.running -= 1
        if late:
            destination.late -= 1
        if probe:
            destination.probing = False
        if reachable:
            destination.failures = 0
            destination.proven_until = self._loop.time() + _PROVEN_FOR_S if prompt else 0.0
            if destination.open:
                log.info("destination reachable again")
                self._close(destination)
        elif reachable is not None:
            self._failed(destination, probe=probe)

    def grow(self, destination: Destination) -> None:
        """It answered and did not refuse: it may get a little more at once."""
        if destination.limit < self._max_each:
            destination.limit = min(self._max_each, destination.limit + 1 / destination.limit)

    def pause(self, destination: Destination, seconds: float, error: str, *, pauses: int) -> None:
        """It asked to wait. ``pauses``: its pauses when the attempt began. An attempt that was under way when a pause
        began is no second refusal, but it may make that pause longer."""
        now = self._loop.time()
        destination.paused_until = max(destination.paused_until, now + seconds)
        if destination.pauses == pauses:
            destination.pauses += 1
            destination.paused_by = error
            destination.limit = max(1.0, destination.limit / 2)
            log.info("destination asks to wait, its callbacks wait", error=error, wait_ms=round(seconds * 1000))
        self._hold(destination)

    def unresolved(self, destination: Destination, seconds: float, error: str) -> None:
        """No name server answers for its name. It is to be asked again after a while."""
        destination.unresolved = error
        destination.rests_until = self._loop.time() + seconds
        self._hold(destination)

    def waits_for(self, destination: Destination) -> str | None:
        """The error that holds the destination's callbacks back, if that is a pause or its name."""
        if destination.paused_until > self._loop.time():
            return destination.paused_by
        return destination.unresolved or (NO_USABLE_ADDRESS if destination.nameless else None)

    def forget_if_idle(self, destination: Destination) -> None:
        """Forget a destination that has nothing to do. The last 10,000 that answered are remembered, and as many that
        failed, because hostile clients name hosts without end. An open circuit that nobody asks for is closed after a
        while."""
        if destination.lines or destination.running or destination.idle is not None:
            return
        if destination.failures:
            idle = self._failing
        elif destination.proven_until or destination.limit < self._max_each:
            idle = self._answering
        else:
            self._forget(destination)
            return
        idle[destination] = None
        destination.idle = idle
        if destination.open:
            self._open_idle[destination] = self._loop.time()
            if self._forgetting is None:
                self._forgetting = self._loop.call_later(self._forget_after, self._forget_circuits)
        if len(idle) > _MAX_REMEMBERED:
            self._forget(next(iter(idle)))

    def close(self) -> None:
        """No timer rings any more."""
        for destination in self._known.values():
            if destination.timer is not None:
                destination.timer.cancel()
        if self._forgetting is not None:
            self._forgetting.cancel()

    def _forget(self, destination: Destination) -> None:
        del self._known[destination.key]
        if destination.idle is not None:
            del destination.idle[destination]
            destination.idle = None
        if destination.open:
            self._open_idle.pop(destination, None)
            log.info("destination forgotten, no callback asks for it any more")
            self._close(destination)
        if destination.timer is not None:
            destination.timer.cancel()

    def _forget_circuits(self) -> None:
        self._forgetting = None
        now = self._loop.time()
        while self._open_idle:
            destination, since = next(iter(self._open_idle.items()))
            if since + self._forget_after > now:
                self._forgetting = self._loop.call_at(since + self._forget_after + _LATE_S, self._forget_circuits)
                return
            self._forget(destination)

    def _failed(self, destination: Destination, *, probe: bool) -> None:
        destination.failures += 1
        if not destination.open:
            if destination.failures < self._threshold:
                return
            destination.open = True
            self.open_circuits += 1
            log.warning("destination unreachable, its callbacks wait", failures=destination.failures)
            if self.open_circuits == 1:
                self._on_circuit("open")
        elif not probe:
            return
        destination.probe_at = self._loop.time() + self._probe_interval
        self._hold(destination)

    def _close(self, destination: Destination) -> None:
        destination.open = False
        self.open_circuits -= 1
        if not self.open_circuits:
            self._on_circuit("closed")
        self._hold(destination)

    def _hold(self, destination: Destination) -> None:
        """Let the destination rest until its pause is over, and until the time of its next probe or look-up."""
        if destination.timer is not None:
            destination.timer.cancel()
            destination.timer = None
        probe_at = destination.probe_at if destination.open else 0.0
        until = max(destination.paused_until, destination.rests_until, probe_at)
        wait = until - self._loop.time()
        if wait > 0:
            destination.timer = self._loop.call_later(wait + _LATE_S, self._rested, destination)

    def _rested(self, destination: Destination) -> None:
        destination.timer = None
        self._on_room(destination)
