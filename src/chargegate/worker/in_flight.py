"""What a worker has taken, until it has ended: the end of its callback is recorded, and its message is acked."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar, TypeVarTuple

from chargegate.delivering.states import Callback, State
from chargegate.keys import Keyring
from chargegate.ledger.base import DecisionLedger, LedgerUnavailable
from chargegate.ledger.records import Finished
from chargegate.ledger.rows import history_text
from chargegate.model import ChargingRequest, Decision, Reason, RequestStatus, now_ms
from chargegate.observe import Metrics, log
from chargegate.queues.base import Delivery, Queue
from chargegate.queues.envelope import Opened, seal_dead_letter
from chargegate.together import Together

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Every delivery needs these, and Python 3.11 looks them up slowly.
_TIMEOUT, _COMPLETED, _TIMED_OUT = Reason.TIMEOUT, RequestStatus.COMPLETED, RequestStatus.TIMEOUT

PAUSE_S: Final = 1.0
"""Until what was away is asked again."""


class Work:
    """What the worker remembers of a request until it is acked."""

    __slots__ = ("created_at", "decision", "delivery", "made", "opened", "redelivered", "request")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.created_at = delivery.message.accepted_at
        self.opened: Opened | None = None
        self.made: Decision | None = None  # a decision that is not known to be recorded
        self.request: ChargingRequest
        self.decision: Decision
        self.redelivered: list[Delivery] = []  # the same request handed out once more meanwhile


class InFlight:
    """The requests of a worker that have no end yet."""

    def __init__(
        self,
        *,
        queue: Queue,
        ledger: DecisionLedger,
        keyring: Keyring,
        together: Together | None,
        metrics: Metrics,
        again: Callable[[Delivery], None],
    ) -> None:
        """``again`` is given what was handed out once more meanwhile, when the request has ended."""
        self._queue = queue
        self._ledger = ledger
        self._keyring = keyring
        self._together = together
        self._end_to_end = metrics.end_to_end
        self._again = again
        self._works: dict[str, Work] = {}
        self._finishing = 0  # callbacks that were delivered, until their messages are acked
        self._finished: deque[Work] = deque()  # those of them whose end is on disk
        self._any_finished, self._none_finishing = asyncio.Event(), asyncio.Event()
        self._acker: asyncio.Task[None] | None = None
        metrics.in_flight.set_function(lambda: len(self._works))

    def __len__(self) -> int:
        return len(self._works)

    def begin(self, delivery: Delivery) -> Work:
        work = self._works[delivery.message.request_id] = Work(delivery)
        return work

    def begin_once(self, delivery: Delivery) -> Work | None:
        """None where the same request is in flight: this delivery waits for its end."""
        known = self._works.get(delivery.message.request_id)
        if known is None:
            return self.begin(delivery)
        known.redelivered.append(delivery)
        return None

    def start(self) -> None:
        self._acker = asyncio.create_task(self._ack_finished())

    async def drain(self, grace_s: float) -> None:
        """Wait for the ends of callbacks that were delivered, as long as the time allows."""
        if self._finishing:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._none_finishing.wait(), grace_s)
        if self._acker is not None:
            self._acker.cancel()
            await asyncio.gather(self._acker, return_exceptions=True)

    async def end_malformed(self, work: Work, dead_letter: bytes | None) -> None:
        """End a request that has no callback to send. ``dead_letter`` is what it was, sealed."""
        reason = Reason.MALFORMED.value
        ended = Finished(work.request.request_id, RequestStatus.FAILED, 0, None, reason, now_ms(), dead_letter)
        await persist(self._ledger.finish, ended)
        await self.ack(work)

    async def attempted(self, callback: Callback) -> None:
        await persist(
            self._ledger.attempted,
            callback.request_id,
            callback.attempts,
            callback.last_status_code,
            callback.error,
            history_text(callback.history, callback.replays),
        )

    async def ended(self, callback: Callback) -> None:
        if callback.state is State.DELIVERED:
            self.delivered(callback)
            return
        work = self._works[callback.request_id]
        callback.span.ended(callback.error)
        sealed = seal_dead_letter(self._keyring, work.request, work.decision)
        await persist(self._ledger.finish, _finished(callback, RequestStatus.FAILED, sealed))
        await self.ack(work)

    def delivered(self, callback: Callback) -> None:
        """Nobody waits for this: a crash before it is on disk repeats the callback."""
        work = self._works[callback.request_id]
        callback.span.ended()
        ended = _finished(callback, _TIMED_OUT if work.decision.reason == _TIMEOUT else _COMPLETED, None)
        self._finishing += 1
        self._none_finishing.clear()
        if self._together is not None:
            self._together.end(work.delivery, ended, partial(self._has_ended, work))
        else:
            self._ledger.finish_soon(ended, partial(self._is_finished, work))
        self._end_to_end.observe((ended.at - work.created_at) / 1000)

    def _is_finished(self, work: Work) -> None:
        self._finished.append(work)
        self._any_finished.set()

    async def _ack_finished(self) -> None:
        """Ack the messages whose callback's end is on disk, many at a time."""
        while True:
            await self._any_finished.wait()
            self._any_finished.clear()
            while self._finished:
                work = self._finished.popleft()
                try:
                    await self.ack(work)
                except Exception:  # noqa: BLE001 - as in a step: one message's defect must not keep the others
                    log.exception("request left in the queue by a defect")
                self._finished_one()

    def _has_ended(self, work: Work) -> None:
        self._forget(work)
        self._finished_one()

    def _finished_one(self) -> None:
        self._finishing -= 1
        if not self._finishing:
            self._none_finishing.set()

    async def ack(self, work: Work) -> None:
        await self._queue.ack(work.delivery)
        self._forget(work)

    def _forget(self, work: Work) -> None:
        """Its message was acked."""
        del self._works[work.delivery.message.request_id]
        for delivery in work.redelivered:
            self._again(Delivery(delivery.message, delivery.handle, fresh=False))


async def persist(write: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """Nothing goes on before it is on disk: a full disk or a lost database makes this wait, within its step."""
    while True:
        try:
            return await write(*args)
        except LedgerUnavailable as error:
            log.warning("ledger unavailable, waiting for it", error=str(error))
            await asyncio.sleep(PAUSE_S)


def _finished(callback: Callback, status: RequestStatus, sealed: bytes | None) -> Finished:
    return Finished(
        callback.request_id,
        status,
        callback.attempts,
        callback.last_status_code,
        callback.error,
        now_ms(),
        sealed,
        history_text(callback.history, callback.replays),
    )
