"""receive, decide, record, deliver, ack.

A slot is held by what is under way: a decision, or one attempt at a callback. What waits, for a retry, a connection
or a circuit, holds none; its message stays unacked in the queue.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from chargegate.authorizers.base import Authorizer
from chargegate.authorizers.decider import Decider
from chargegate.delivering.destinations import Callback, Destinations
from chargegate.delivering.retry import RetryPolicy
from chargegate.delivering.sender import Attempt, Sender
from chargegate.keys import CannotOpen, KeyMissing, Keyring
from chargegate.ledger.base import Ledger, LedgerUnavailable
from chargegate.ledger.records import Finished, Recorded
from chargegate.model import (
    CallbackPayload,
    ChargingRequest,
    Decision,
    Invalid,
    Reason,
    RequestStatus,
    now_ms,
)
from chargegate.observe import Metrics, log
from chargegate.queues.base import Delivery, Queue, QueueUnavailable
from chargegate.queues.envelope import examine, unwrap
from chargegate.slots import Slots

T = TypeVar("T")

_BATCH: Final = 64
_PAUSE_S: Final = 1.0
_TOO_LATE: Final = "deadline_exceeded"
_encode = msgspec.json.Encoder().encode


class _Work:
    """What the worker remembers of a request until it is acked."""

    __slots__ = ("again", "created_at", "decision", "delivery")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.created_at = delivery.message.accepted_at
        self.decision: Decision | None = None
        self.again: list[Delivery] = []  # the same request handed out once more while it is under way


class Worker:
    """Works through a queue until it is drained. One decision per request, recorded before its callback is sent."""

    def __init__(
        self,
        *,
        queue: Queue,
        ledger: Ledger,
        authorizer: Authorizer,
        keyring: Keyring,
        sender: Sender,
        retries: RetryPolicy,
        metrics: Metrics,
        concurrency: int,
        max_age_ms: int,
        deadline_ms: int,
        max_parked: int,
        max_connections: int,
        max_connections_per_destination: int,
        circuit_failures: int,
        circuit_probe_ms: int,
    ) -> None:
        self._queue = queue
        self._ledger = ledger
        self._decider = Decider(authorizer, keyring, metrics, max_age_ms=max_age_ms)
        self._keyring = keyring
        self._sender = sender
        self._retries = retries
        self._metrics = metrics
        self._deadline = deadline_ms
        self._max_parked = max_parked
        self._destinations = Destinations(
            max_connections=max_connections,
            max_per_destination=max_connections_per_destination,
            failure_threshold=circuit_failures,
            probe_interval_ms=circuit_probe_ms,
            on_ready=lambda callback: self._slots.begin(self._resume, callback),
            on_expired=self._expired,
            on_circuit=metrics.circuit("callbacks"),
        )
        self._rng = random.Random()  # noqa: S311 - jitter
        self._under_way: dict[str, _Work] = {}
        self._unopened = 0
        self._room = asyncio.Event()
        self._slots = Slots(concurrency, self._room.set)
        self._receiver: asyncio.Task[None] | None = None
        self._delivered, self._retried, self._given_up = (
            metrics.deliveries.labels(outcome) for outcome in ("delivered", "retry", "dead_letter")
        )
        metrics.in_flight.set_function(lambda: len(self._under_way))

    @property
    def parked(self) -> int:
        """Callbacks that wait for a retry, a connection or a circuit."""
        return self._destinations.parked

    @property
    def open_circuits(self) -> int:
        """Destinations that are not being called because they cannot be reached."""
        return self._destinations.open_circuits

    @property
    def stuck(self) -> int:
        """Requests that this process could not open or handle. They stay in the queue and come back after a restart."""
        return self._unopened + self._slots.broken

    def start(self) -> None:
        self._receiver = asyncio.create_task(self._receive())

    async def drain(self, grace_s: float) -> None:
        """Take nothing more, let what is under way end within the time, cancel the rest. All of it stays queued."""
        if self._receiver is not None:
            self._receiver.cancel()
            await asyncio.gather(self._receiver, return_exceptions=True)
        await self._slots.end(grace_s)
        self._destinations.close()
        if self._under_way:
            log.info("left in the queue", requests=len(self._under_way))

    async def _receive(self) -> None:
        while True:
            full = self._destinations.parked >= self._max_parked
            if full and self._destinations.shed(1 + self._max_parked // 50):
                log.warning("too many callbacks wait, the longest line's newest are given up")
                continue
            if full or self._slots.free <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                deliveries = await self._queue.receive(min(self._slots.free, _BATCH))
            except QueueUnavailable as error:
                log.warning("queue unavailable", error=str(error))
                await asyncio.sleep(_PAUSE_S)
                continue
            except Exception:  # noqa: BLE001 - whatever it is, a worker that no longer receives would look well
                log.exception("the queue could not be read")
                await asyncio.sleep(_PAUSE_S)
                continue
            for delivery in deliveries:
                self._accept(delivery)

    def _accept(self, delivery: Delivery) -> None:
        request_id = delivery.message.request_id
        work = self._under_way.get(request_id)
        if work is not None:
            work.again.append(delivery)
            return
        work = self._under_way[request_id] = _Work(delivery)
        self._slots.begin(self._handle, work)

    async def _handle(self, work: _Work) -> None:
        callback = await self._prepare(work)
        if callback is not None and self._destinations.start(callback):
            await self._resume(callback)

    async def _prepare(self, work: _Work) -> Callback | None:
        """Decide, unless that was done before; the callback that is to be sent, or None where there is none."""
        message = work.delivery.message
        opened = True
        try:
            request, replayed_at = unwrap(self._keyring, message)
        except KeyMissing as error:
            self._unopened += 1
            log.error("request cannot be opened and stays in the queue", request_id=message.request_id, why=str(error))
            return None
        except (CannotOpen, Invalid) as error:
            request = ChargingRequest(message.request_id, message.station_id, "", "", message.accepted_at)
            replayed_at, opened = 0, isinstance(error, Invalid)
        target, broken = examine(request)
        recorded = None
        if replayed_at or not work.delivery.fresh:
            recorded = await self._persist(lambda: self._ledger.recorded(request.request_id))
        if recorded is None:
            decision = await self._decider.decide(request, malformed=bool(broken))
            recorded = await self._persist(lambda: self._ledger.record(decision, request.accepted_at))
            if recorded.decision == decision:
                self._decider.count(decision)
        if recorded.finished_at is not None:
            if replayed_at <= recorded.finished_at:
                await self._done(work)
                return None
            started_at = work.created_at = now_ms()
            await self._persist(lambda: self._ledger.restart(request.request_id, started_at))
            recorded = Recorded(recorded.decision, 0, started_at, None)
        work.decision = recorded.decision
        if target is None:
            sealed = message.body if opened else None
            await self._finish(work, RequestStatus.FAILED, 0, None, Reason.MALFORMED.value, sealed=sealed)
            return None
        return Callback(
            request.request_id,
            target,
            _encode(CallbackPayload(request.station_id, request.driver_token, recorded.decision.status)),
            traceparent=request.traceparent,
            attempts=recorded.attempts,
            deadline=recorded.started_at + self._deadline,
            work=work,
        )

    async def _resume(self, callback: Callback) -> None:
        """One attempt; its connection is taken already."""
        if callback.deadline <= time.monotonic():
            self._destinations.unused(callback)
            self._expired(callback)
            return
        try:
            attempt = await self._sender.send(callback)
        except BaseException:
            self._destinations.unused(callback)
            raise
        callback.error, callback.last_status_code = attempt.error, attempt.status_code
        if self._destinations.finished(callback, reachable=attempt.reachable):
            callback.attempts += 1
            await self._settle(callback, attempt)

    async def _settle(self, callback: Callback, attempt: Attempt) -> None:
        work = callback.work
        if attempt.delivered:
            self._delivered.inc()
            timed_out = work.decision.reason == Reason.TIMEOUT
            status = RequestStatus.TIMEOUT if timed_out else RequestStatus.COMPLETED
            await self._finish(work, status, callback.attempts, attempt.status_code, None, sealed=None)
            at = now_ms()
            self._metrics.end_to_end.observe((at - work.created_at) / 1000)
            log.info("callback delivered", request_id=callback.request_id, attempts=callback.attempts)
            return
        wait = None
        if not attempt.gone and time.monotonic() < callback.deadline:
            wait = self._retries.wait_ms(callback.attempts, attempt.retry_after, now_ms(), self._rng)
        if wait is None:
            await self._give_up(callback)
            return
        self._retried.inc()
        log.info(
            "callback failed, will be tried again",
            request_id=callback.request_id,
            attempts=callback.attempts,
            error=attempt.error,
            wait_ms=wait,
        )
        await self._persist(
            lambda: self._ledger.attempted(callback.request_id, callback.attempts, attempt.status_code, attempt.error)
        )
        self._destinations.retry(callback, wait)

    def _expired(self, callback: Callback) -> None:
        callback.error = callback.error or _TOO_LATE
        self._slots.begin(self._give_up, callback)

    async def _give_up(self, callback: Callback) -> None:
        self._given_up.inc()
        log.warning(
            "callback given up: a dead letter",
            request_id=callback.request_id,
            attempts=callback.attempts,
            error=callback.error,
        )
        work = callback.work
        await self._finish(
            work,
            RequestStatus.FAILED,
            callback.attempts,
            callback.last_status_code,
            callback.error,
            sealed=work.delivery.message.body,
        )

    async def _finish(
        self,
        work: _Work,
        status: RequestStatus,
        attempts: int,
        code: int | None,
        error: str | None,
        *,
        sealed: bytes | None,
    ) -> None:
        finished = Finished(work.delivery.message.request_id, status, attempts, code, error, now_ms(), sealed)
        await self._persist(lambda: self._ledger.finish(finished))
        await self._done(work)

    async def _done(self, work: _Work) -> None:
        await self._queue.ack(work.delivery)
        del self._under_way[work.delivery.message.request_id]
        for delivery in work.again:
            self._accept(Delivery(delivery.message, delivery.handle, fresh=False))

    async def _persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Nothing goes on before it is on disk: a full disk or a lost database makes this wait, holding its slot."""
        while True:
            try:
                return await write()
            except LedgerUnavailable as error:
                log.warning("ledger unavailable, waiting for it", error=str(error))
                await asyncio.sleep(_PAUSE_S)
