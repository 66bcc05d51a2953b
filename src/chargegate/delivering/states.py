"""A callback and its states, and the table of what can happen to it."""

import asyncio
import time
from enum import IntEnum
from typing import Final

import msgspec

from chargegate.delivering.lines import Client, Destination, Line
from chargegate.delivering.retry import RetryPolicy
from chargegate.delivering.sender import Way
from chargegate.ledger.records import AttemptRecord
from chargegate.model import CallbackTarget, now_ms
from chargegate.observe import NO_SPAN, Span


class State(IntEnum):
    """Where a callback stands."""

    NEW = 0
    IN_LINE = 1  # parked until its destination has a connection for it
    RUNNING = 2  # an attempt is under way, on a connection
    RECORDING = 3  # an attempt failed and will be repeated; that is being persisted
    WAITING = 4  # parked until the time of its next attempt
    DELIVERED = 5
    GIVEN_UP = 6
    LEFT = 7  # its attempt was cancelled; its message comes back from the queue


class Event(IntEnum):
    """What happens to a callback."""

    STARTED = 0  # it got a connection
    HELD_BACK = 1  # it needs a connection or a name first, or its probe found the destination still unreachable
    PAUSED = 2  # the receiver asked to wait, which costs no attempt
    NOT_SENT = 3  # nothing was sent, which costs no attempt either
    SUCCEEDED = 4
    FAILED = 5  # and another attempt will follow
    RECORDED = 6  # the failed attempt is persisted
    ENDED = 7  # no attempt is left, its deadline passed, or too many are parked
    CANCELLED = 8  # the attempt was cut off by a shutdown or a defect


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.NEW: {Event.STARTED: State.RUNNING, Event.HELD_BACK: State.IN_LINE, Event.ENDED: State.GIVEN_UP},
    State.IN_LINE: {Event.STARTED: State.RUNNING, Event.ENDED: State.GIVEN_UP},
    State.RUNNING: {
        Event.HELD_BACK: State.IN_LINE,
        Event.PAUSED: State.IN_LINE,
        Event.NOT_SENT: State.WAITING,
        Event.SUCCEEDED: State.DELIVERED,
        Event.FAILED: State.RECORDING,
        Event.ENDED: State.GIVEN_UP,
        Event.CANCELLED: State.LEFT,
    },
    State.RECORDING: {Event.RECORDED: State.WAITING},
    State.WAITING: {Event.STARTED: State.RUNNING, Event.HELD_BACK: State.IN_LINE, Event.ENDED: State.GIVEN_UP},
    State.DELIVERED: {},
    State.GIVEN_UP: {},
    State.LEFT: {},
}
PARKED: Final = frozenset({State.IN_LINE, State.WAITING})


class CallbackLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How often, how long and how many callbacks are tried. Times are in ms."""

    retries: RetryPolicy
    deadline_ms: int
    max_parked: int
    max_connections: int
    max_connections_per_destination: int
    circuit_failures: int
    circuit_probe_ms: int
    circuit_forget_ms: int


class Connection(msgspec.Struct, eq=False):
    """What an attempt was given, as things stood when it began. ``late``: it is no longer prompt."""

    client: Client
    destination: Destination
    proven: bool
    probe: bool
    pauses: int
    started: float
    way: Way
    late: bool = False


class Callback(msgspec.Struct, eq=False):
    """One callback, from its first attempt to its end. Only ``Deliveries`` changes it.

    ``attempts``: those that were made, also by an earlier process. ``deadline_ms``: when it is given up, in Unix ms.
    ``client``: the name of the client that sent the request; connections and room are shared out between these.
    ``span`` is told of every attempt.
    ``history``: the newest attempts, also those before a replay. ``replays``: when it was sent again, in Unix ms.
    """

    request_id: str
    target: CallbackTarget
    body: bytes
    traceparent: str
    attempts: int
    deadline_ms: int
    client: str = ""
    span: Span = NO_SPAN
    history: list[AttemptRecord] = []
    replays: tuple[int, ...] = ()
    deadline: float = 0.0  # the same by the monotonic clock, which nobody can set
    state: State = State.NEW
    error: str | None = None
    last_status_code: int | None = None
    line: Line | None = None  # while it is parked
    parked_at: float = 0.0
    timer: asyncio.TimerHandle | None = None  # while it waits for the time of its next attempt
    connection: Connection | None = None  # while an attempt is under way

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + (self.deadline_ms - now_ms()) / 1000
