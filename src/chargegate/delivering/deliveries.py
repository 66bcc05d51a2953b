"""The one owner of a callback: its state, its attempts, what it waits for, its deadline, and its end.

A callback that may not be sent now is parked: it holds no connection and no place in the concurrency limit, only
memory. Its message stays unacked in the queue.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from chargegate.concurrency import ConcurrencyLimit
from chargegate.delivering.dispatch import Dispatch
from chargegate.delivering.sender import Attempt, Outcome, Sender
from chargegate.delivering.states import Callback, CallbackLimits, Event
from chargegate.http1 import CallFailed
from chargegate.ledger.records import MAX_HISTORY, AttemptRecord
from chargegate.model import now_ms
from chargegate.observe import NO_SPAN, Metrics, log, trace_field, traced

_LATE_S: Final = 0.001  # the loop's clock and the monotonic clock differ by less, so that no timer rings too early
_TOO_LATE: Final = "deadline_exceeded"
_TOO_MANY: Final = "too_many_waiting"
# Every delivery needs these, and Python 3.11 looks them up slowly.
_SUCCEEDED, _DELIVERED = Event.SUCCEEDED, Outcome.DELIVERED

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
        on_delivered: Callable[[Callback], None] | None = None,
    ) -> None:
        """``on_retry``: an attempt failed and will be repeated; the wait begins once this returns. ``on_end``: the
        callback is ``DELIVERED``, or ``GIVEN_UP`` with its ``error``. Both are called within a step. ``on_delivered``
        is told in the place of ``on_end`` of one that is ``DELIVERED``, where nothing need be waited for; with it an
        attempt on a kept connection needs no task, which is a twentieth of what a request costs."""
        self._sender = sender
        self._limits = limits
        self._concurrency = concurrency
        self._on_retry = on_retry
        self._on_end = on_end
        self._dispatch = Dispatch(
            sender=sender,
            limits=limits,
            # More connections than places in the concurrency limit could not be used, and would make the reserve
            # useless.
            max_connections=min(limits.max_connections, concurrency.count),
            metrics=metrics,
            on_start=self._go,
            on_late=self._give_up_late,
        )
        self._delivered, self._retried, self._given_up, self._paused, self._not_sent = (
            metrics.deliveries.labels(outcome)
            for outcome in ("delivered", "retry", "dead_letter", "paused", "not_sent")
        )
        self._rng = random.Random()  # noqa: S311 - jitter
        self._loop = asyncio.get_running_loop()
        self._on_delivered = on_delivered
        self._without_task: dict[Callback, Callable[[], object]] = {}  # attempts, and how each is cancelled
        self._later: set[asyncio.Task[None]] = set()  # those of attempts that began without one
        self._closed = False

    @property
    def parked(self) -> int:
        """Callbacks that wait for a name, a connection, a pause, a circuit or the time of their next attempt."""
        return self._dispatch.parked

    @property
    def overdue(self) -> int:
        """Callbacks that wait for a free connection, and nothing else, for more than five seconds."""
        return self._dispatch.overdue

    @property
    def open_circuits(self) -> int:
        """Destinations that are only probed, because they cannot be reached."""
        return self._dispatch.open_circuits

    async def deliver(self, callback: Callback) -> None:
        """Take a callback over. To be called in a step of the concurrency limit, which makes the first attempt where
        that may start at once; otherwise the callback is parked."""
        if self._dispatch.start(callback) and not self._go_without_task(callback):
            await self._attempt(callback)

    def begin(self, callback: Callback) -> None:
        """As ``deliver``, outside of a step."""
        if self._dispatch.start(callback):
            self._go(callback)

    @property
    def has_room(self) -> bool:
        """Whether another callback may be taken over before ``make_room`` is asked."""
        return self.parked < self._limits.max_parked

    def make_room(self) -> None:
        """Where too many callbacks are parked, give the newest up of those who have the most: first of the client, then
        of its destination. What these left waiting must not keep others from being served."""
        if self.has_room:
            return
        most = self._limits.max_parked
        log.warning("too many callbacks wait, the newest are given up of the client that has the most")
        for callback in self._dispatch.newest_of_most(self.parked - most + 1 + most // 50):
            self._give_up_soon(callback, _TOO_MANY)
        self._dispatch.start_waiting()

    def close(self) -> None:
        """Start nothing any more, and cut off what is under way without a task. All that stays in the queue."""
        self._closed = True
        for cancel in (*self._without_task.values(), *(task.cancel for task in self._later)):
            cancel()
        self._dispatch.close()

    def _go(self, callback: Callback) -> None:
        """Make the attempt for which a connection was taken."""
        if not self._go_without_task(callback):
            self._concurrency.run(self._attempt, callback)

    def _go_without_task(self, callback: Callback) -> bool:
        connection = callback.connection
        if self._on_delivered is None or callback.span is not NO_SPAN or callback.deadline <= time.monotonic():
            return False
        if connection is None or isinstance(connection.way, CallFailed) or not self._concurrency.hold():
            return False
        at = now_ms()
        answered = partial(self._answered, callback, at, self._loop.time())
        cancel = self._sender.send_kept(
            callback.request_id, callback.target, callback.body, callback.traceparent, answered, at=at
        )
        if cancel is None:
            self._concurrency.give_back()
            return False
        self._without_task[callback] = cancel
        return True

    def _answered(self, callback: Callback, at: int, began: float, attempt: Attempt | None) -> None:
        """An attempt without a task has ended. What needs more than a delivery has a task from here on."""
        del self._without_task[callback]
        if self._closed:
            self._cut_off(callback)
            self._concurrency.give_back()
        elif attempt is not None and attempt.outcome is _DELIVERED and self._on_delivered is not None:
            self._concurrency.give_back()
            try:
                self._delivered_by(callback, attempt, at, began)
                self._on_delivered(callback)
                self._log_delivered(callback)
            except Exception:  # noqa: BLE001 - as in a step: it must not reach the connection that called
                self._concurrency.broke()
        else:
            more = self._attempt(callback) if attempt is None else self._came_of(callback, attempt, at, began)
            task = self._loop.create_task(self._concurrency.guarded(more))
            self._later.add(task)
            task.add_done_callback(self._has_ended)

    def _has_ended(self, task: "asyncio.Task[None]") -> None:
        self._later.discard(task)
        self._concurrency.give_back()

    def _cut_off(self, callback: Callback) -> None:
        self._dispatch.apply(Event.CANCELLED, callback)
        self._dispatch.give_back(callback, reachable=None)

    async def _attempt(self, callback: Callback) -> None:
        """One attempt, on the connection that was taken for it."""
        if callback.deadline <= time.monotonic():
            self._give_up_late(callback, None)
            self._dispatch.give_back(callback, reachable=None)
            return
        at, began = now_ms(), self._loop.time()
        connection = callback.connection
        way = connection.way if connection is not None else None
        try:
            attempt = await self._sender.send(
                callback.request_id, callback.target, callback.body, callback.traceparent, way
            )
        except BaseException:
            self._cut_off(callback)
            raise
        await self._came_of(callback, attempt, at, began)

    async def _came_of(self, callback: Callback, attempt: Attempt, at: int, began: float) -> None:
        """Go on with what came of an attempt."""
        outcome = attempt.outcome
        if callback.span is not NO_SPAN:  # the name of an enum's member is slow
            took_s = self._loop.time() - began
            callback.span.attempted(outcome.name.lower(), attempt.status_code, attempt.error, took_s)
        if outcome is _DELIVERED:
            self._delivered_by(callback, attempt, at, began)
            await self._on_end(callback)
            self._log_delivered(callback)
            return
        callback.error = attempt.error
        in_time = time.monotonic() < callback.deadline
        if outcome is Outcome.NOT_SENT or (outcome is Outcome.NAME_NEEDED and not in_time):
            await self._was_not_sent(callback, in_time=in_time)
            return
        if outcome is Outcome.NAME_NEEDED:
            self._dispatch.line_up(Event.HELD_BACK, callback)
            self._dispatch.give_back(callback, reachable=None)
            return
        callback.last_status_code = attempt.status_code
        if outcome is Outcome.REFUSED:
            await self._refused(callback, attempt, in_time=in_time)
        else:
            await self._failed(callback, attempt, at, began, in_time=in_time)

    def _delivered_by(self, callback: Callback, attempt: Attempt, at: int, began: float) -> None:
        callback.error = None
        callback.last_status_code = attempt.status_code
        self._count(callback, attempt, at, began)
        self._dispatch.apply(_SUCCEEDED, callback)
        self._dispatch.give_back(callback, reachable=True)
        self._delivered.inc()

    def _log_delivered(self, callback: Callback) -> None:
        fields = {"request_id": callback.request_id, "attempts": callback.attempts}
        log.step("callback delivered", traced(fields, callback.traceparent))

    def _count(self, callback: Callback, attempt: Attempt, at: int, began: float) -> None:
        """An attempt was made. ``at`` and ``began``: when, in Unix ms and by the clock of the event loop."""
        callback.attempts += 1
        # The time that a look-up takes would tell clients which names exist inside.
        took = 0 if attempt.outcome is Outcome.NO_ADDRESS else round((self._loop.time() - began) * 1000)
        callback.history.append(AttemptRecord(at, attempt.status_code, attempt.error, took))
        if len(callback.history) > MAX_HISTORY:
            del callback.history[:-MAX_HISTORY]

    async def _was_not_sent(self, callback: Callback, *, in_time: bool) -> None:
        self._not_sent.inc()
        self._dispatch.apply(Event.NOT_SENT if in_time else Event.ENDED, callback)
        self._dispatch.give_back(callback, reachable=None)
        if in_time:
            self._wait(callback, self._limits.retries.unsent_ms(self._rng))
        else:
            await self._give_up(callback)

    async def _refused(self, callback: Callback, attempt: Attempt, *, in_time: bool) -> None:
        """The receiver wants to be left alone: it is, and this counts as no attempt."""
        self._paused.inc()
        pause_ms = self._limits.retries.pause_ms(attempt.retry_after, now_ms())
        if in_time:
            self._dispatch.line_up(Event.PAUSED, callback)
        else:
            self._dispatch.apply(Event.ENDED, callback)
        self._dispatch.give_back(callback, reachable=True, pause_s=pause_ms / 1000)
        if not in_time:
            await self._give_up(callback)

    async def _failed(self, callback: Callback, attempt: Attempt, at: int, began: float, *, in_time: bool) -> None:
        probe = callback.connection is not None and callback.connection.probe
        reachable: bool | None = attempt.outcome is not Outcome.UNREACHABLE
        if attempt.outcome is Outcome.NO_ADDRESS:  # nobody was called, and no circuit keeps others from it
            reachable = False if probe else None
        if probe and not reachable and in_time:  # a failed probe counts as no attempt
            self._dispatch.line_up(Event.HELD_BACK, callback)
            self._dispatch.give_back(callback, reachable=False)
            return
        self._count(callback, attempt, at, began)
        wait_ms = None
        if in_time and attempt.outcome is not Outcome.GONE:
            wait_ms = self._limits.retries.wait_ms(callback.attempts, attempt.retry_after, now_ms(), self._rng)
        self._dispatch.apply(Event.ENDED if wait_ms is None else Event.FAILED, callback)
        self._dispatch.give_back(callback, reachable=reachable)
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
            **trace_field(callback.traceparent),
        )
        await self._on_retry(callback)
        self._dispatch.apply(Event.RECORDED, callback)
        self._wait(callback, wait_ms)

    def _wait(self, callback: Callback, wait_ms: int) -> None:
        """Leave it parked until the time of its next attempt, or its deadline if that is sooner."""
        if not self._closed:
            seconds = min(wait_ms / 1000, callback.deadline - time.monotonic())
            callback.timer = self._loop.call_later(max(0.0, seconds) + _LATE_S, self._start_again, callback)

    def _start_again(self, callback: Callback) -> None:
        callback.timer = None
        self.begin(callback)

    def _give_up_late(self, callback: Callback, held_back_by: str | None) -> None:
        self._give_up_soon(callback, callback.error or held_back_by or _TOO_LATE)

    def _give_up_soon(self, callback: Callback, error: str) -> None:
        callback.error = error
        self._dispatch.apply(Event.ENDED, callback)
        self._concurrency.run(self._give_up, callback)

    async def _give_up(self, callback: Callback) -> None:
        self._given_up.inc()
        log.warning(
            "callback given up: a dead letter",
            request_id=callback.request_id,
            attempts=callback.attempts,
            error=callback.error,
            **trace_field(callback.traceparent),
        )
        await self._on_end(callback)
