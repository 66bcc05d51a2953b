"""Decides requests as they come in, where nobody need be asked, so that a request and its decision are one commit.

That is so where one process accepts and works, its queue and its database are one file, and the driver's verdict is
known in memory. A request is decided at once only while it would be taken from the queue at once. So all that the queue
promises stays as it is, and what is in the file after a crash is what a worker would have left there.
"""

from functools import partial

from chargegate.authorizers.decider import Decider
from chargegate.model import CallbackTarget, ChargingRequest, Decision
from chargegate.queues.base import Delivery, Stored
from chargegate.queues.envelope import Carried
from chargegate.together import Together
from chargegate.worker import Worker


class AtOnce:
    """Puts a message together with its decision, which saves the message's turn in the queue and a commit."""

    def __init__(self, together: Together, decider: Decider, worker: Worker) -> None:
        self._together = together
        self._decider = decider
        self._worker = worker
        self._promised = 0  # places of the worker, for those that are being committed

    def put_then(self, message: Carried, done: Stored) -> bool:
        """As ``Queue.put_then``. False: nothing was done, because the message has to wait for its turn, or somebody
        must be asked."""
        opened = message.opened
        if opened is None or opened.target is None or opened.request.traced:
            return False
        if self._worker.room <= self._promised + self._together.waiting:
            return False
        request = opened.request
        decision = self._decider.decide_at_once(request)
        if decision is None:
            return False
        self._promised += 1
        committed = partial(self._committed, done, request, opened.target, decision)
        try:
            self._together.put_decided(message, decision, request.client, committed)
        except BaseException:
            self._promised -= 1
            raise
        return True

    def _committed(
        self,
        done: Stored,
        request: ChargingRequest,
        target: CallbackTarget,
        decision: Decision,
        answer: Delivery | Exception,
    ) -> None:
        self._promised -= 1
        if isinstance(answer, Exception):
            done(answer)
        else:
            done(None)
            self._worker.take_decided(answer, request, target, decision)
