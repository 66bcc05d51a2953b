"""The promise of a queue and a ledger that are one file."""

from collections.abc import Callable
from typing import Protocol

from chargegate.ledger.records import Finished
from chargegate.model import Decision
from chargegate.queues.base import Delivery, Message
from chargegate.storage.group_commit import Then


class Together(Protocol):
    """A queue and a ledger in one file, where one commit changes both."""

    @property
    def waiting(self) -> int:
        """Messages that nobody has taken yet, with those that are being committed."""
        ...

    def put_decided(
        self, message: Message, decision: Decision, client: str, done: Callable[[Delivery | Exception], None]
    ) -> None:
        """Store a message that is new, and the decision of its client's request with its audit row. ``done`` is called
        once both are on disk, with the message as one that this process has taken; or with what ``Queue.put`` would
        have raised, and then neither is."""

    def end(self, delivery: Delivery, finished: Finished, then: Then) -> None:
        """``DecisionLedger.finish_soon`` and the message's ack."""
