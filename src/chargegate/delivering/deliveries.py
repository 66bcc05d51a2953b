"""The one owner of a callback: its state, its attempts, what it waits for, its deadline, and its end.

A callback that may not be sent now is parked: it holds no connection and no place in the concurrency limit, only
memory. Its message stays unacked in the queue.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from chargegate.concurrency import ConcurrencyLimit
from chargegate.delivering.destinations import Destinations
from chargegate.delivering.lines import Client, Destination
from chargegate.delivering.sender import Attempt, Outcome, Sender
from chargegate.delivering.shares import Shares
from chargegate.delivering.states import PARKED, TRANSITIONS, Callback, CallbackLimits, Connection, Event, State
from chargegate.model import now_ms
from chargegate.observe import Metrics, log

_SWEEP_S: Final = 1.0
_LONG_S: Final = 5.0
_PROMPT_S: Final = 2.0
_LATE_S: Final = 0.001  # the loop's clock and the monotonic clock differ by less, so that no timer rings too early
_TOO_LATE: Final = "deadline_exceeded"
_TOO_MANY: Final = "too_many_waiting"
# Every delivery needs these, and Python 3.11 looks them up slowly.
_STARTED, _SUCCEEDED, _DELIVERED = Event.STARTED, Event.SUCCEEDED, Outcome.DELIVERED

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
        callback is ``DELIVERED``, or ``GIVEN_UP`` with its ``error``. Both are called within a step."""
        self._sender = sender
        self._limits = limits
        self._concurrency = concurrency
        self._on_retry = on_retry
        self._on_end = on_end
        # More connections than places in the concurrency limit could not be used, and would make the reserve useless.
        self._shares = Shares(min(limits.max_connections, concurrency.count))
        self._destinations = Destinations(
            max_per_destination=limits.max_connections_per_destination,
            failure_threshold=limits.circuit_failures,
            probe_interval_ms=limits.circuit_probe_ms,
            forget_after_ms=limits.circuit_forget_ms,
            on_room=self._on_room,
            on_circuit=metrics.circuit("callbacks"),
        )
        self._delivered, self._retried, self._given_up, self._paused, self._not_sent = (
            metrics.deliveries.labels(outcome)
            for outcome in ("delivered", "retry", "dead_letter", "paused", "not_sent")
        )
        self._rng = random.Random()  # noqa: S311 - jitter
        self._loop = asyncio.get_running_loop()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self.overdue = 0  # callbacks that wait for a free connection, and nothing else, for more than five seconds

    @property
    def parked(self) -> int:
        """Callbacks that wait for a connection, a pause, a circuit or the time of their next attempt."""
        return self._shares.parked

    @property
    def open_circuits(self) -> int:
        """Destinations that are only probed, because they cannot be reached."""
        return self._destinations.open_circuits

    async def deliver(self, callback: Callback) -> None:
        """Take a callback over. To be called in a step of the concurrency limit, which makes the first attempt where
        that may start at once; otherwise the callback is parked."""
        if self._start(callback):
            await self._attempt(callback)

    def make_room(self) -> None:
        """Where too many callbacks are parked, give the newest up of those who have the most: first of the client, then
        of its destination. What these left waiting must not keep others from being served."""
        most = self._limits.max_parked
        if self.parked < most:
            return
        log.warning("too many callbacks wait, the newest are given up of the client that has the most")
        for callback in self._shares.newest_of_most(self.parked - most + 1 + most // 50):
            self._give_up_soon(callback, _TOO_MANY)
        self._start_waiting()

    def close(self) -> None:
        """Start nothing any more. What is parked stays in the queue."""
        self._closed = True
        waiting = [callback for line in self._shares.lines() for callback in line.waiting]
        for timer in (self._sweeper, *(callback.timer for callback in waiting)):
            if timer is not None:
                timer.cancel()
        self._destinations.close()

    def _apply(self, event: Event, callback: Callback) -> None:
        before = callback.state
        callback.state = after = TRANSITIONS[before][event]
        if callback.line is not None:
            self._shares.unpark(callback.line, callback, in_line=before is State.IN_LINE)
            if event is Event.ENDED:
                self._destinations.forget_if_idle(callback.line.destination)
            callback.line = None
            if callback.timer is not None:
                callback.timer.cancel()
                callback.timer = None
        if after in PARKED:
            destination = self._destinations.get(callback.target.destination)
            callback.line = self._shares.park(callback.client, destination, callback, in_line=after is State.IN_LINE)
            callback.parked_at = time.monotonic()

    def _start(self, callback: Callback) -> bool:
        """True: it has a connection and is to be attempted. False: it is parked, or given up as too late."""
        if callback.deadline <= time.monotonic():
            self._give_up_late(callback)
            self._start_waiting()
            return False
        destination = self._destinations.get(callback.target.destination)
        client = self._shares.client(callback.client)
        now = self._loop.time()
        proven = destination.proven(now)
        if destination.startable and self._shares.may_take(client, proven=proven):
            self._connect(callback, client, destination, proven=proven, now=now)
            return True
        self._line_up(Event.HELD_BACK, callback)
        return False

    def _connect(
        self, callback: Callback, client: Client, destination: Destination, *, proven: bool, now: float
    ) -> None:
        callback.connection = Connection(client, destination, proven, destination.open, destination.pauses, now)
        self._shares.take(client, proven=proven)
        self._destinations.take(destination)
        self._apply(_STARTED, callback)

    def _line_up(self, event: Event, callback: Callback) -> None:
        self._apply(event, callback)
        if callback.line is not None:
            self._shares.offer(callback.line.destination, self._loop.time())
        if self._sweeper is None and not self._closed:
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def _on_room(self, destination: Destination) -> None:
        self._shares.offer(destination, self._loop.time())
        self._start_waiting()

    def _start_waiting(self) -> None:
        """Start those that may start of all that wait in a line."""
        if self._closed:
            return
        monotonic, now = time.monotonic(), self._loop.time()
        while (line := self._shares.next_line(now)) is not None:
            callback: Callback = next(iter(line.in_line))
            if callback.deadline <= monotonic:
                self._give_up_late(callback)
            else:
                proven = line.destination.proven(now)
                self._connect(callback, line.client, line.destination, proven=proven, now=now)
                self._concurrency.run(self._attempt, callback)

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
        outcome = attempt.outcome
        callback.error = attempt.error
        if outcome is _DELIVERED:
            callback.last_status_code = attempt.status_code
            callback.attempts += 1
            self._apply(_SUCCEEDED, callback)
            self._give_back(callback, reachable=True)
            self._delivered.inc()
            await self._on_end(callback)
            log.info("callback delivered", request_id=callback.request_id, attempts=callback.attempts)
            return
        in_time = time.monotonic() < callback.deadline
        if outcome is Outcome.NOT_SENT:
            await self._was_not_sent(callback, in_time=in_time)
            return
        callback.last_status_code = attempt.status_code
        if outcome is Outcome.REFUSED:
            await self._refused(callback, attempt, in_time=in_time)
        else:
            await self._failed(callback, attempt, in_time=in_time)

    async def _was_not_sent(self, callback: Callback, *, in_time: bool) -> None:
        self._not_sent.inc()
        self._apply(Event.NOT_SENT if in_time else Event.ENDED, callback)
        self._give_back(callback, reachable=None)
        if in_time:
            self._wait(callback, self._limits.retries.unsent_ms(self._rng))
        else:
            await self._give_up(callback)

    async def _refused(self, callback: Callback, attempt: Attempt, *, in_time: bool) -> None:
        """The receiver wants to be left alone: it is, and this counts as no attempt."""
        self._paused.inc()
        pause_ms = self._limits.retries.pause_ms(attempt.retry_after, now_ms())
        if in_time:
            self._line_up(Event.PAUSED, callback)
        else:
            self._apply(Event.ENDED, callback)
        self._give_back(callback, reachable=True, pause_s=pause_ms / 1000)
        if not in_time:
            await self._give_up(callback)

    async def _failed(self, callback: Callback, attempt: Attempt, *, in_time: bool) -> None:
        probe = callback.connection is not None and callback.connection.probe
        reachable: bool | None = attempt.outcome is not Outcome.UNREACHABLE
        if attempt.outcome is Outcome.NO_ADDRESS:  # nobody was called, and no circuit keeps others from it
            reachable = False if probe else None
        if probe and not reachable and in_time:  # a failed probe counts as no attempt
            self._line_up(Event.HELD_BACK, callback)
            self._give_back(callback, reachable=False)
            return
        callback.attempts += 1
        wait_ms = None
        if in_time and attempt.outcome is not Outcome.GONE:
            wait_ms = self._limits.retries.wait_ms(callback.attempts, attempt.retry_after, now_ms(), self._rng)
        self._apply(Event.ENDED if wait_ms is None else Event.FAILED, callback)
        self._give_back(callback, reachable=reachable)
        if wait_ms is None:
            await self._give_up(callback)
            return
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
        self._wait(callback, wait_ms)

    def _give_back(self, callback: Callback, *, reachable: bool | None, pause_s: float | None = None) -> None:
        connection, callback.connection = callback.connection, None
        if connection is None:
            return
        destination, now = connection.destination, self._loop.time()
        self._shares.give_back(connection.client, proven=connection.proven)
        prompt = now - connection.started <= _PROMPT_S
        self._destinations.give_back(destination, probe=connection.probe, reachable=reachable, prompt=prompt)
        if pause_s is not None:
            self._destinations.pause(destination, pause_s, callback.error or "", pauses=connection.pauses)
        elif reachable:
            self._destinations.grow(destination)
        self._shares.offer(destination, now)
        self._start_waiting()
        self._destinations.forget_if_idle(destination)

    def _wait(self, callback: Callback, wait_ms: int) -> None:
        """Leave it parked until the time of its next attempt, or its deadline if that is sooner."""
        if not self._closed:
            seconds = min(wait_ms / 1000, callback.deadline - time.monotonic())
            callback.timer = self._loop.call_later(max(0.0, seconds) + _LATE_S, self._start_again, callback)

    def _start_again(self, callback: Callback) -> None:
        callback.timer = None
        if self._start(callback):
            self._concurrency.run(self._attempt, callback)

    def _give_up_late(self, callback: Callback) -> None:
        error = callback.error
        if error is None and callback.line is not None:
            error = self._destinations.waits_for(callback.line.destination)
        self._give_up_soon(callback, error or _TOO_LATE)

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
        """Give up what waited in a line past its deadline. One sweep of all lines costs less than a timer for each."""
        now = time.monotonic()
        late, self.overdue, any_in_line = self._shares.look_through(now, now - _LONG_S)
        for callback in late:
            self._give_up_late(callback)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep) if any_in_line else None
        self._start_waiting()
