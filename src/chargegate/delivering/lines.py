"""Who waits for what: clients, destinations, and the line of each client at each destination.

``Shares`` and ``Destinations`` change these records, and nobody else does.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final

_FAILURES_OF_A_PROVEN_ONE: Final = 2


class Client:
    """What one client holds and waits for.

    ``running``: its connections, ``unproven``: those of them that are to destinations which were not proven when the
    connection was taken. ``ready`` and ``ready_unproven`` are the destinations that could take one of its callbacks
    now, in turn; only the shares hold these callbacks up.
    """

    __slots__ = ("lines", "name", "parked", "ready", "ready_unproven", "running", "turn", "unproven")

    def __init__(self, name: str) -> None:
        self.name = name
        self.running = 0
        self.unproven = 0
        self.parked = 0
        self.turn = 0
        self.lines: dict[Destination, Line] = {}
        self.ready: OrderedDict[Destination, None] = OrderedDict()
        self.ready_unproven: OrderedDict[Destination, None] = OrderedDict()


class Destination:
    """One scheme, host and port: its lines, how much of it is in use, its pause and its circuit.

    ``limit``: how many attempts it takes at once now. ``timer`` runs while it is paused, or waits for its next probe.
    ``pauses`` counts its pauses, and ``paused_by`` is the error that began the last one. While it is ``nameless``, its
    callbacks wait for a look-up; ``unresolved`` is the error of the last one, if that had no answer. ``late`` are those
    of its running attempts that no longer are prompt. Times are the event loop's.
    """

    __slots__ = (
        *("failures", "idle", "key", "late", "limit", "lines", "nameless", "open", "paused_by", "paused_until"),
        *("pauses", "probe_at", "probing", "proven_until", "rests_until", "running", "timer", "unresolved"),
    )

    def __init__(self, key: str, limit: int) -> None:
        self.key = key
        self.lines: OrderedDict[Client, Line] = OrderedDict()  # whose turn is next stands first
        self.limit: float = limit
        self.running = 0
        self.late = 0
        self.failures = 0
        self.open = False
        self.probing = False
        self.probe_at = 0.0
        self.proven_until = 0.0
        self.pauses = 0
        self.paused_until = 0.0
        self.paused_by: str | None = None
        self.nameless = False
        self.unresolved: str | None = None
        self.rests_until = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.idle: OrderedDict[Destination, None] | None = None  # where it is remembered while it has nothing to do

    @property
    def startable(self) -> bool:
        """Whether it takes another attempt now. While its circuit is open, the only one is a probe."""
        if self.timer is not None or self.nameless:
            return False
        return not self.probing if self.open else self.running < int(self.limit)

    def proven(self, now: float) -> bool:
        """Whether it answered promptly of late, has not failed again and again since then, and does not seem to hang:
        more than half of its attempts under way are late."""
        if now >= self.proven_until or self.failures >= _FAILURES_OF_A_PROVEN_ONE:
            return False
        return not self.late or 2 * self.late <= self.running


class Line:
    """The parked callbacks of one client for one destination: those in line for a connection, first come first served,
    and those that wait for the time of their next attempt."""

    __slots__ = ("client", "destination", "in_line", "waiting")

    def __init__(self, client: Client, destination: Destination) -> None:
        self.client = client
        self.destination = destination
        self.in_line: OrderedDict[Any, None] = OrderedDict()
        self.waiting: dict[Any, None] = {}

    def __len__(self) -> int:
        return len(self.in_line) + len(self.waiting)

    def __iter__(self) -> Iterator[Any]:
        yield from self.waiting
        yield from self.in_line
