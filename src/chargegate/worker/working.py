"""The worker: receive, decide, record, deliver, ack.

A request is acked once its callback was delivered or given up. Until then its message stays in the queue, and comes
back if this process dies.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple

import msgspec

from chargegate.authorizers.decider import Decider
from chargegate.concurrency import ConcurrencyLimit
from chargegate.delivering.deliveries import Deliveries
from chargegate.delivering.sender import Sender
from chargegate.delivering.states import Callback, CallbackLimits
from chargegate.keys import KeyMissing, Keyring
from chargegate.ledger.base import DecisionLedger, LedgerUnavailable
from chargegate.ledger.records import Recorded
from chargegate.ledger.rows import attempts_of, replayed, replays_of
from chargegate.model import CallbackPayload, CallbackTarget, ChargingRequest, Decision, now_ms, within
from chargegate.observe import NO_SPAN, NO_TRACING, Metrics, Tracing, log, trace_field
from chargegate.queues.base import Delivery, Queue, QueueUnavailable
from chargegate.queues.envelope import Opened, open_message, seal_dead_letter
from chargegate.together import Together
from chargegate.worker.in_flight import PAUSE_S, InFlight, Work, persist

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_MAX_BATCH: Final = 64
_encode = msgspec.json.Encoder().encode


class Worker:
    """Works through a queue until it is drained. One decision per request, recorded before its callback is sent."""

    def __init__(
        self,
        *,
        queue: Queue,
        ledger: DecisionLedger,
        decider: Decider,
        keyring: Keyring,
        sender: Sender,
        limits: CallbackLimits,
        concurrency: int,
        metrics: Metrics,
        tracing: Tracing = NO_TRACING,
        together: Together | None = None,
    ) -> None:
        """``concurrency``: how many decisions and attempts at callbacks run at once. ``together``: the queue and the
        ledger, where they are in one file."""
        self._queue = queue
        self._ledger = ledger
        self._decider = decider
        self._keyring = keyring
        self._tracing = tracing
        self._deadline_ms = limits.deadline_ms
        self._room = asyncio.Event()
        self._concurrency = ConcurrencyLimit(concurrency, self._room.set)
        self._in_flight = InFlight(
            queue=queue, ledger=ledger, keyring=keyring, together=together, metrics=metrics, again=self._accept
        )
        self._deliveries = Deliveries(
            sender=sender,
            limits=limits,
            concurrency=self._concurrency,
            metrics=metrics,
            on_retry=self._in_flight.attempted,
            on_end=self._in_flight.ended,
            on_delivered=self._in_flight.delivered,
        )
        self._last: set[asyncio.Task[None]] = set()  # steps of requests that were recorded during a drain
        self._unopened = 0
        self._taking = False
        self._receiver: asyncio.Task[None] | None = None

    @property
    def parked(self) -> int:
        """Callbacks that wait for a retry, a connection, a pause or a circuit."""
        return self._deliveries.parked

    @property
    def overdue(self) -> int:
        """Callbacks that have waited for long because all connections that they may have are in use."""
        return self._deliveries.overdue

    @property
    def open_circuits(self) -> int:
        """Destinations that are only probed, because they cannot be reached."""
        return self._deliveries.open_circuits

    @property
    def stuck(self) -> int:
        """Requests that this process could not open or handle. They stay in the queue and come back after a restart."""
        return self._unopened + self._concurrency.failed

    @property
    def oldest_question_ms(self) -> int:
        """For how long the authorizer has not answered, where it owes an answer."""
        return self._decider.oldest_question_ms

    @property
    def room(self) -> int:
        """How many messages more would be decided now, without waiting for others to end."""
        return self._concurrency.free if self._taking and self._deliveries.has_room else 0

    def take_decided(
        self, delivery: Delivery, request: ChargingRequest, target: CallbackTarget, decision: Decision
    ) -> None:
        """Take over a request whose decision was recorded when its message was put."""
        self._decider.count(decision, request.traceparent)
        work = self._in_flight.begin(delivery)
        work.request, work.decision = request, decision
        if self._taking:  # else it stays in the queue, as what a drain leaves there
            self._deliveries.begin(self._callback(request, target, Recorded(decision, 0, decision.timestamp, None)))

    def start(self) -> None:
        self._taking = True
        self._receiver = asyncio.create_task(self._receive())
        self._in_flight.start()

    async def drain(self, grace_s: float) -> None:
        """Take nothing more, let what runs end within the time, and cancel the rest. What has no end stays queued."""
        self._taking = False
        self._concurrency.stop()
        if self._receiver is not None:
            self._receiver.cancel()
            await asyncio.gather(self._receiver, return_exceptions=True)
        ends = time.monotonic() + grace_s
        await self._concurrency.drain(grace_s)
        for task in self._last:
            task.cancel()
        await asyncio.gather(*self._last, return_exceptions=True)
        self._deliveries.close()
        await self._in_flight.drain(max(0.0, ends - time.monotonic()))
        if self._in_flight:
            log.info("left in the queue", requests=len(self._in_flight))

    async def _receive(self) -> None:
        while True:
            self._deliveries.make_room()
            if self._concurrency.free <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                deliveries = await self._queue.receive(min(self._concurrency.free, _MAX_BATCH))
            except QueueUnavailable as error:
                log.warning("queue unavailable", error=str(error))
                await asyncio.sleep(PAUSE_S)
                continue
            except Exception:  # noqa: BLE001 - a worker that stopped receiving would look healthy
                log.exception("the queue could not be read")
                await asyncio.sleep(PAUSE_S)
                continue
            for delivery in deliveries:
                self._accept(delivery)

    def _accept(self, delivery: Delivery) -> None:
        work = self._in_flight.begin_once(delivery)
        if work is not None and not self._handle_at_once(work):
            self._concurrency.run(self._handle, work)

    def _handle_at_once(self, work: Work) -> bool:
        """Do as ``_handle`` for a new request whose verdict is in memory, without a task of its own: that is a tenth of
        what a worker spends on it. False: nothing was done."""
        if not (work.delivery.fresh and self._taking and self._concurrency.free > 0):
            return False
        try:
            work.opened = opened = open_message(self._keyring, work.delivery.message)
        except KeyMissing:
            return False
        request, target = opened.request, opened.target
        if target is None or opened.malformed or opened.replayed_at or request.traced:
            return False
        work.made = decision = self._decider.decide_at_once(request)
        if decision is None or not self._concurrency.hold():
            return False
        recorded = partial(self._recorded, work, decision, request, target)
        try:
            self._ledger.record_then(decision, request.accepted_at, request.client, recorded)
        except LedgerUnavailable as error:
            recorded(error)
        return True

    def _recorded(
        self,
        work: Work,
        decision: Decision,
        request: ChargingRequest,
        target: CallbackTarget,
        recorded: Recorded | Exception,
    ) -> None:
        """A decision that was made without a task is on disk; or else its request is handled in a step after all."""
        taking = self._taking
        if taking:
            self._concurrency.give_back()
        try:
            if not isinstance(recorded, Recorded) or recorded.decision != decision or recorded.finished_at is not None:
                self._go_on(self._handle, work)
                return
            work.request, work.decision = request, decision
            self._decider.count(decision, request.traceparent)
            callback = self._callback(request, target, recorded)
            if taking:
                self._deliveries.begin(callback)
            else:
                self._go_on(self._deliveries.deliver, callback)
        except Exception:  # noqa: BLE001 - as in a step: it must not reach the commit that called
            self._concurrency.broke()

    def _go_on(self, step: Callable[[T], Coroutine[Any, Any, None]], argument: T) -> None:
        """Run the rest of what began without a task as a step. A drain waits for it too: it still has its place."""
        if self._taking:
            self._concurrency.run(step, argument)
            return
        task = asyncio.create_task(self._concurrency.guarded(step(argument)))
        self._last.add(task)
        task.add_done_callback(self._last.discard)
        task.add_done_callback(lambda _: self._concurrency.give_back())

    async def _handle(self, work: Work) -> None:
        """Decide, record, and hand the callback over to the deliveries."""
        message = work.delivery.message
        try:
            opened = work.opened or open_message(self._keyring, message)
        except KeyMissing as error:
            self._unopened += 1
            log.error("request cannot be opened and stays in the queue", request_id=message.request_id, why=str(error))
            return
        if opened.fault:
            log.warning("request is not as it was accepted: malformed", request_id=message.request_id, why=opened.fault)
        self._tracing.received(opened.request, message.accepted_at)
        recorded = await self._decide(work, opened)
        if recorded is None:
            await self._in_flight.ack(work)
            return
        work.decision = recorded.decision
        work.request = request = opened.request
        target = opened.target
        if target is None:
            sealed = seal_dead_letter(self._keyring, request, recorded.decision) if opened.known else None
            await self._in_flight.end_malformed(work, sealed)
            return
        await self._deliveries.deliver(self._callback(request, target, recorded))

    def _callback(self, request: ChargingRequest, target: CallbackTarget, recorded: Recorded) -> Callback:
        span = self._tracing.delivering(request)
        return Callback(
            request.request_id,
            target,
            _encode(CallbackPayload(request.station_id, request.driver_token, recorded.decision.status)),
            request.traceparent if span is NO_SPAN else within(span.traceparent, request.traceparent),
            recorded.attempts,
            recorded.started_at + self._deadline_ms,
            client=request.client,
            span=span,
            history=list(attempts_of(recorded.history)),
            replays=replays_of(recorded.history),
        )

    async def _decide(self, work: Work, opened: Opened) -> Recorded | None:
        """The request's one decision, which is made and recorded unless that was done before; None where its callback
        has ended already, or a replay comes after the retention of its request."""
        request, recorded = opened.request, None
        if opened.replayed_at or not work.delivery.fresh:
            recorded = await persist(self._ledger.recorded, request.request_id)
            if recorded is None and opened.replayed_at:
                log.warning(
                    "not sent again: the decision is no longer known",
                    request_id=request.request_id,
                    **trace_field(request.traceparent),
                )
                return None
        if recorded is None:
            decision = work.made or await self._ask(request, malformed=opened.malformed)
            span = self._tracing.recording(request)
            recorded = await persist(self._ledger.record, decision, request.accepted_at, request.client)
            span.ended()
            if recorded.decision == decision:
                self._decider.count(decision, request.traceparent)
        if recorded.finished_at is None:
            return recorded
        if opened.replayed_at <= recorded.finished_at:
            return None
        started_at = work.created_at = now_ms()
        history = replayed(recorded.history, started_at)
        await persist(self._ledger.restart, request.request_id, started_at, history)
        return Recorded(recorded.decision, 0, started_at, None, history)

    async def _ask(self, request: ChargingRequest, *, malformed: bool) -> Decision:
        """The decider's decision. The authorizer is told of the span that it works in, where there is one."""
        span = self._tracing.deciding(request)
        if span is not NO_SPAN:
            request = msgspec.structs.replace(request, traceparent=within(span.traceparent, request.traceparent))
        decision = await self._decider.decide(request, malformed=malformed)
        span.decided(decision.status, decision.reason)
        return decision
