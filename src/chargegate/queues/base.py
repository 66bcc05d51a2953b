"""The promise that every queue makes."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta

from chargegate.storage.group_commit import GroupCommit
from chargegate.storage.unavailable import RaisedAs, Unavailable


class QueueFull(Exception):
    """The queue holds as many waiting messages as it was told to; nothing was stored."""

    def __init__(self) -> None:
        super().__init__("the queue is full")


class QueueUnavailable(Unavailable):
    """The queue cannot store or hand out messages now; nothing was stored. The message says why, without a secret."""


queue_unavailable: Final = RaisedAs(QueueUnavailable)

# Every database can keep values within these bounds.
RequestId = Annotated[str, Meta(pattern=r"\A[0-9a-f-]{36}\Z")]
StationId = Annotated[str, Meta(max_length=256)]
AcceptedAt = Annotated[int, Meta(ge=0, lt=2**53)]


class Message(msgspec.Struct, frozen=True, gc=False):
    """What a queue carries: an id, a key to partition by, when it was accepted (Unix ms), and a sealed body.

    ``traceparent`` is for backends whose messages have headers; the body holds it too, so that none must keep it.
    The bounds are checked where a message is converted from what others may have written to a broker.
    """

    request_id: RequestId
    station_id: StationId
    accepted_at: AcceptedAt
    body: bytes
    traceparent: str = ""


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A message that was handed out. ``fresh`` is True only if it was surely never handed out before."""

    message: Message
    handle: Any
    fresh: bool


class Waiting(msgspec.Struct, frozen=True):
    """A message that was found in the queue. ``taken``: a consumer has it already. ``body`` is its sealed part, which
    says whose it is."""

    station_id: str
    accepted_at: int
    taken: bool
    body: bytes


class Listed(msgspec.Struct, frozen=True):
    """A message in a list of those in the queue. After its ``place`` the list goes on."""

    place: str
    request_id: str
    waiting: Waiting


class Depth(msgspec.Struct, frozen=True):
    """How many messages no consumer has taken yet, and how long the oldest of them has waited."""

    waiting: int
    oldest_age_ms: int


class Capabilities(msgspec.Struct, frozen=True):
    """How backends differ. ``durable``: survives the death of this process. ``shared``: several processes may use it.
    ``find``: a waiting message can be looked up by its request id, and they can be listed."""

    durable: bool
    shared: bool
    find: bool


AFTER_ALL: Final = "~"
"""It is behind every request id in the order of their characters."""

Stored = Callable[[Exception | None], None]

_putting: set[asyncio.Task[None]] = set()


def put_in_task(put: Coroutine[Any, Any, None], done: Stored) -> None:
    """``put_then`` of a queue that has only ``put``."""

    def ended(task: asyncio.Task[None]) -> None:
        _putting.discard(task)
        error = QueueUnavailable("closed") if task.cancelled() else task.exception()
        if error is None or isinstance(error, Exception):
            done(error)

    task = asyncio.get_running_loop().create_task(put)
    _putting.add(task)  # the loop itself keeps no task alive
    task.add_done_callback(ended)


def put_by(group: GroupCommit[Message, Any], message: Message, done: Stored) -> None:
    """``put_then`` of a queue whose puts share commits, without a task for each. Where the group's answer is False, the
    queue is full."""

    def told(answer: Any) -> None:
        if answer is False:
            done(QueueFull())
        elif isinstance(answer, Unavailable) and not isinstance(answer, QueueUnavailable):
            done(QueueUnavailable(str(answer)))
        else:
            done(answer if isinstance(answer, Exception) else None)

    try:
        group.notify(message, told)
    except Unavailable as error:
        told(error)


class Queue(Protocol):
    """At-least-once transport of messages.

    - When ``put`` returns, the message survives what ``capabilities`` claims. When it raises, it was not stored,
      or the caller may safely put it again under the same request id.
    - A delivery that was not acked when its consumer died comes back.
    - Acks may come in any order, and never touch another delivery. A lost ack means one more delivery.
    - Two consumers never hold one message at the same time.
    - ``close`` flushes and may be called twice.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    async def put(self, message: Message) -> None:
        """Store a message. Raises ``QueueFull`` or ``QueueUnavailable``."""

    def put_then(self, message: Message, done: Stored) -> None:
        """As ``put``, for one that is no coroutine: ``done`` is called once the message is stored, with None, or with
        what ``put`` would have raised. It may be called before this returns, and this raises nothing."""

    async def receive(self, limit: int) -> list[Delivery]:
        """Wait until there is at least one message, and take up to ``limit``. Raises ``QueueUnavailable``."""
        ...

    async def ack(self, delivery: Delivery) -> None:
        """The message shall not come again. This does not wait for the disk or the network."""

    async def find(self, request_id: str) -> Waiting | None:
        """Look up a message that is not acked; None where there is none or the backend cannot tell."""

    async def unacked(self, limit: int, after: str | None) -> Sequence[Listed]:
        """Messages that are not acked, newest first, after the place of one of them. Its cost is that of what is
        returned. Empty where the backend has no ``find``."""
        ...

    async def depth(self) -> Depth:
        """How much is waiting. Where very many are, and counting them takes long, it may be some seconds old."""
        ...

    async def check(self) -> None:
        """Raises ``QueueUnavailable`` if messages could not be stored now."""

    async def close(self) -> None: ...
