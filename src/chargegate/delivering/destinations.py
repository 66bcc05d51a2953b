"""How many attempts each destination may have now: connection limits, and a circuit breaker for each destination.

A destination is a scheme, a host and a port. The circuit counts only failures to connect and to answer in time: many
clients may share one host, and the 500s of one client's receiver must not keep the callbacks of the others waiting.
"""

import asyncio
from collections import deque
from collections.abc import Callable, ValuesView
from typing import Any, Final

from chargegate.observe import log

_MAX_REMEMBERED: Final = 10_000


class Destination:
    """One destination. ``line`` is what waits for a connection to it, filled and emptied by ``Deliveries``; all other
    fields are written by ``Destinations`` alone."""

    __slots__ = ("failures", "key", "line", "open", "probe_at", "probing", "running")

    def __init__(self, key: str) -> None:
        self.key = key
        self.line: deque[Any] = deque()
        self.running = 0
        self.failures = 0
        self.open = False
        self.probing = False
        self.probe_at = 0.0


class Destinations:
    """All destinations of one process. It is not for use from several threads."""

    def __init__(
        self,
        *,
        max_connections: int,
        max_per_destination: int,
        failure_threshold: int,
        probe_interval_ms: int,
        on_room: Callable[[Destination], None],
        on_probe_in: Callable[[float, Destination], None],
        on_circuit: Callable[[str], None],
    ) -> None:
        """``on_room(destination)``: its line may go on. ``on_probe_in(seconds, destination)``: its line may go on after
        so many seconds. ``on_circuit``: ``open`` when the first circuit opens, ``closed`` when the last one closes."""
        self._max = max_connections
        self._max_each = max_per_destination
        self._threshold = failure_threshold
        self._probe_interval = probe_interval_ms / 1000
        self._on_room = on_room
        self._on_probe_in = on_probe_in
        self._on_circuit = on_circuit
        self._loop = asyncio.get_running_loop()
        self._known: dict[str, Destination] = {}
        self._remembered: dict[Destination, None] = {}  # idle ones that failed lately, oldest first
        self._starved: dict[Destination, None] = {}  # those whose line only the limit in all holds up, in turn
        self.running = 0
        self.open_circuits = 0

    def get(self, key: str) -> Destination:
        """The destination of this name. It is the same object for as long as it has a line or a connection."""
        destination = self._known.get(key)
        if destination is None:
            destination = self._known[key] = Destination(key)
        elif self._remembered:
            self._remembered.pop(destination, None)
        return destination

    def all(self) -> ValuesView[Destination]:
        return self._known.values()

    def take(self, destination: Destination) -> bool:
        """Take a connection, to be given back; False if none is free. At a destination with an open circuit the only
        connection is that of a probe."""
        if self.running >= self._max:
            self._starved[destination] = None
            return False
        if destination.open:
            now = self._loop.time()
            if destination.probing or now < destination.probe_at:
                return False
            destination.probing = True
            destination.probe_at = now + self._probe_interval
        elif destination.running >= self._max_each:
            return False
        destination.running += 1
        self.running += 1
        return True

    def give_back(self, destination: Destination, *, probe: bool, reachable: bool | None) -> None:
        """Give a connection back. ``reachable``: the destination was connected to and answered in time, whatever it
        said; None: nothing was sent."""
        destination.running -= 1
        self.running -= 1
        if probe:
            destination.probing = False
        if reachable:
            destination.failures = 0
            if destination.open:
                self._close(destination)
        elif reachable is not None:
            self._failed(destination, probe=probe)
        elif probe:
            destination.probe_at = self._loop.time()
        if destination.line:
            self._starved[destination] = None  # behind those whose turn it is
        else:
            self.forget_if_idle(destination)
        while self._starved and self.running < self._max:
            starved = next(iter(self._starved))
            del self._starved[starved]
            self._on_room(starved)

    def forget_if_idle(self, destination: Destination) -> None:
        """Forget a destination that has nothing to do; of those that failed lately the last 10,000 are remembered,
        because hostile clients name hosts without end."""
        if destination.line or destination.running or self._known.get(destination.key) is not destination:
            return  # a timer may outlive the destination that it was set for
        if not destination.failures:
            del self._known[destination.key]
            return
        self._remembered[destination] = None
        if len(self._remembered) > _MAX_REMEMBERED:
            oldest = next(iter(self._remembered))
            del self._remembered[oldest], self._known[oldest.key]
            if oldest.open:
                self._close(oldest)

    def _failed(self, destination: Destination, *, probe: bool) -> None:
        destination.failures += 1
        now = self._loop.time()
        if not destination.open:
            if destination.failures < self._threshold:
                return
            destination.open = True
            destination.probe_at = now + self._probe_interval
            self.open_circuits += 1
            log.warning("destination unreachable, its callbacks wait", failures=destination.failures)
            if self.open_circuits == 1:
                self._on_circuit("open")
        elif not probe:
            return
        self._on_probe_in(destination.probe_at - now, destination)

    def _close(self, destination: Destination) -> None:
        destination.open = False
        self.open_circuits -= 1
        log.info("destination reachable again")
        if not self.open_circuits:
            self._on_circuit("closed")
