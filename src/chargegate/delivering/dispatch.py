"""Which callback starts now: it needs a destination that takes it, a name that is known, and a connection.

What cannot start is parked in its client's line at its destination. It holds nothing there but memory, and starts in
its turn. A name is looked up before a connection is taken, so that a silent name server holds no connections.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

from chargegate.delivering.destinations import Destinations
from chargegate.delivering.lines import Client, Destination
from chargegate.delivering.lookups import LookUps
from chargegate.delivering.sender import Sender, Way, told
from chargegate.delivering.shares import Shares
from chargegate.delivering.states import PARKED, TRANSITIONS, Callback, CallbackLimits, Connection, Event, State
from chargegate.http1 import CallFailed, NotSent
from chargegate.observe import Metrics

_SWEEP_S: Final = 1.0
_LONG_S: Final = 5.0
_PROMPT_S: Final = 2.0
# Every delivery needs these, and Python 3.11 looks them up slowly.
_STARTED, _HELD_BACK, _ENDED, _IN_LINE = Event.STARTED, Event.HELD_BACK, Event.ENDED, State.IN_LINE


class Dispatch:
    """Starts callbacks as connections become free, and moves them from state to state."""

    def __init__(
        self,
        *,
        sender: Sender,
        limits: CallbackLimits,
        max_connections: int,
        metrics: Metrics,
        on_start: Callable[[Callback], None],
        on_late: Callable[[Callback, str | None], None],
    ) -> None:
        """``on_start(callback)``: one that was parked has its connection. ``on_late(callback, error)``: its deadline
        passed, and ``error`` is what held it back, where that is known."""
        self._way = sender.way
        self._unsent_ms = limits.retries.unsent_ms
        self._on_start = on_start
        self._on_late = on_late
        self._shares = Shares(max_connections)
        self._destinations = Destinations(
            max_per_destination=limits.max_connections_per_destination,
            failure_threshold=limits.circuit_failures,
            probe_interval_ms=limits.circuit_probe_ms,
            forget_after_ms=limits.circuit_forget_ms,
            on_room=self._on_room,
            on_circuit=metrics.circuit("callbacks"),
        )
        self._look_ups = LookUps(sender.look_up, self._on_room)
        self._not_sent = metrics.deliveries.labels("not_sent")
        self._rng = random.Random()  # noqa: S311 - jitter
        self._loop = asyncio.get_running_loop()
        self._running: dict[Callback, Connection] = {}  # the oldest first
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self.overdue = 0  # callbacks that wait for a free connection, and nothing else, for more than five seconds

    @property
    def parked(self) -> int:
        """Callbacks that wait for a name, a connection, a pause, a circuit or the time of their next attempt."""
        return self._shares.parked

    @property
    def open_circuits(self) -> int:
        """Destinations that are only probed, because they cannot be reached."""
        return self._destinations.open_circuits

    def start(self, callback: Callback) -> bool:
        """True: it has a connection and is to be attempted. False: it is parked, or too late."""
        if callback.deadline <= time.monotonic():
            self._too_late(callback)
            self.start_waiting()
            return False
        destination = self._destinations.get(callback.target.destination)
        client = self._shares.client(callback.client)
        now = self._loop.time()
        proven = destination.proven(now)
        if destination.startable:
            way = self._way(callback.target)
            if way is None or type(way) is NotSent:
                self._wait_for_name(callback, destination, way, proven=proven)
            elif self._shares.may_take(client, destination, proven=proven):
                self._connect(callback, client, destination, way, proven=proven, now=now)
                return True
        elif destination.nameless:
            self._look_ups.ask(callback.client, destination, callback.target, proven=proven)
        self.line_up(_HELD_BACK, callback)
        return False

    def line_up(self, event: Event, callback: Callback) -> None:
        """Park a callback at the end of its line."""
        self.apply(event, callback)
        if callback.line is not None:
            self._shares.offer(callback.line.destination, self._loop.time())
        self._sweep_later()

    def start_waiting(self) -> None:
        """Start those that may start of all that wait in a line."""
        if self._closed or not self._shares.any_ready:
            return
        monotonic, now = time.monotonic(), self._loop.time()
        while (line := self._shares.next_line(now)) is not None:
            callback: Callback = next(iter(line.in_line))
            destination = line.destination
            proven = destination.proven(now)
            if callback.deadline <= monotonic:
                self._too_late(callback)
                continue
            way = self._way(callback.target)
            if way is None or type(way) is NotSent:
                self._wait_for_name(callback, destination, way, proven=proven)
            else:
                self._connect(callback, line.client, destination, way, proven=proven, now=now)
                self._on_start(callback)

    def give_back(self, callback: Callback, *, reachable: bool | None, pause_s: float | None = None) -> None:
        """An attempt ended. ``reachable``: see ``Destinations.give_back``. ``pause_s``: the receiver asked to wait."""
        connection = self._running.pop(callback, None)
        if connection is None:
            return
        callback.connection = None
        destination, now = connection.destination, self._loop.time()
        self._shares.give_back(connection.client, proven=connection.proven)
        prompt = now - connection.started <= _PROMPT_S
        self._destinations.give_back(
            destination, probe=connection.probe, reachable=reachable, prompt=prompt, late=connection.late
        )
        if pause_s is not None:
            self._destinations.pause(destination, pause_s, callback.error or "", pauses=connection.pauses)
        elif reachable:
            self._destinations.grow(destination)
        if destination.nameless and reachable:
            destination.nameless = False  # the connection may have been kept, and then the next one needs no name
        if destination.lines:
            self._shares.offer(destination, now)
        self.start_waiting()
        self._destinations.forget_if_idle(destination)

    def apply(self, event: Event, callback: Callback) -> None:
        """Something happened to a callback. It leaves its line, or is parked, as its new state wants."""
        before = callback.state
        callback.state = after = TRANSITIONS[before][event]
        if callback.line is not None:
            destination = callback.line.destination
            self._shares.unpark(callback.line, callback, in_line=before is _IN_LINE)
            if event is _ENDED:
                if destination.nameless and not destination.lines:
                    self._look_ups.forget(destination)
                self._destinations.forget_if_idle(destination)
            callback.line = None
            if callback.timer is not None:
                callback.timer.cancel()
                callback.timer = None
        if after in PARKED:
            destination = self._destinations.get(callback.target.destination)
            callback.line = self._shares.park(callback.client, destination, callback, in_line=after is _IN_LINE)
            callback.parked_at = time.monotonic()

    def newest_of_most(self, count: int) -> list[Callback]:
        """So many parked callbacks that others may go before. See ``Shares.newest_of_most``."""
        return self._shares.newest_of_most(count)

    def close(self) -> None:
        """Start nothing any more."""
        self._closed = True
        waiting = [callback for line in self._shares.lines() for callback in line.waiting]
        for timer in (self._sweeper, *(callback.timer for callback in waiting)):
            if timer is not None:
                timer.cancel()
        self._look_ups.close()
        self._destinations.close()

    def _wait_for_name(
        self, callback: Callback, destination: Destination, failure: CallFailed | None, *, proven: bool
    ) -> None:
        """The destination takes nothing until its name was looked up, or for a while where no name server answers."""
        if failure is None:
            self._look_ups.ask(callback.client, destination, callback.target, proven=proven)
        else:
            self._not_sent.inc()
            self._destinations.unresolved(destination, self._unsent_ms(self._rng) / 1000, told(failure))

    def _connect(
        self, callback: Callback, client: Client, destination: Destination, way: Way, *, proven: bool, now: float
    ) -> None:
        connection = Connection(client, destination, proven, destination.open, destination.pauses, now, way)
        callback.connection = self._running[callback] = connection
        self._shares.take(client, proven=proven)
        self._destinations.take(destination)
        self.apply(_STARTED, callback)
        if self._sweeper is None:
            self._sweep_later()

    def _on_room(self, destination: Destination) -> None:
        self._shares.offer(destination, self._loop.time())
        self.start_waiting()

    def _too_late(self, callback: Callback) -> None:
        line = callback.line
        self._on_late(callback, self._destinations.waits_for(line.destination) if line is not None else None)

    def _sweep_later(self) -> None:
        if self._sweeper is None and not self._closed:
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Give up what waited in a line past its deadline, and count the attempts that do not end. One sweep of all
        costs less than a timer for each."""
        self._sweeper = None
        self._count_late_attempts()
        now = time.monotonic()
        late, self.overdue, any_in_line = self._shares.look_through(now, now - _LONG_S)
        for callback in late:
            self._too_late(callback)
        if any_in_line or self._running:
            self._sweep_later()
        self.start_waiting()

    def _count_late_attempts(self) -> None:
        long_ago = self._loop.time() - _PROMPT_S
        for connection in self._running.values():
            if connection.started > long_ago:
                break
            if not connection.late:
                connection.late = True
                connection.destination.late += 1
