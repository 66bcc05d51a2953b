"""The names that callbacks wait for: how many are looked up at once, and whose is next.

A name server that is silent holds a look-up for about ten seconds, and strangers choose the names. So look-ups are
shared out like connections: a client may begin another one while it has fewer under way than are free, and the client
that has the fewest goes first. Destinations that answered lately go before others.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from chargegate.delivering.lines import Destination
from chargegate.model import CallbackTarget

MAX_LOOK_UPS: Final = 4096
"""Look-ups under way at once. 2,000 that nobody answers cost 9 MB and 0.4 s of processor time."""

_FACTOR: Final = 1  # of what is free
_FACTOR_OF_PROVEN_ONES: Final = 3

_Waiting = OrderedDict[Destination, CallbackTarget]


class _Asker:
    """What a client has under way, and what waits for its turn: names of proven destinations, and others."""

    __slots__ = ("others", "proven", "running")

    def __init__(self) -> None:
        self.running = 0
        self.proven: _Waiting = OrderedDict()
        self.others: _Waiting = OrderedDict()

    def waiting(self, *, proven: bool) -> _Waiting:
        return self.proven if proven else self.others


class LookUps:
    """Looks names up. A destination is ``nameless`` from the moment it is asked for until the look-up has ended."""

    def __init__(
        self,
        look_up: Callable[[CallbackTarget], Awaitable[None]],
        on_end: Callable[[Destination], None],
        most: int = MAX_LOOK_UPS,
    ) -> None:
        """``look_up`` does one, and raises nothing. ``on_end``: one for this destination ended, whatever came of it."""
        self._look_up = look_up
        self._on_end = on_end
        self._free = most
        self._askers: dict[str, _Asker] = {}
        self._running: dict[Destination, asyncio.Task[None]] = {}

    def ask(self, client: str, destination: Destination, target: CallbackTarget, *, proven: bool) -> None:
        """Have the destination's name looked up, in this client's turn if that comes before another's who asks too."""
        destination.nameless = True
        if destination in self._running:
            return
        asker = self._askers.get(client)
        if asker is None:
            asker = self._askers[client] = _Asker()
        asker.waiting(proven=proven).setdefault(destination, target)
        self._begin_next()

    def forget(self, destination: Destination) -> None:
        """Nobody waits for it any more. A look-up that is under way goes on."""
        destination.nameless = False
        for name, asker in list(self._askers.items()):
            asker.proven.pop(destination, None)
            asker.others.pop(destination, None)
            self._forget_if_idle(name, asker)

    def close(self) -> None:
        """Begin nothing more, and end what is under way."""
        self._askers.clear()
        for task in self._running.values():
            task.cancel()

    def _begin_next(self) -> None:
        while found := self._next():
            name, asker, waiting = found
            destination, target = waiting.popitem(last=False)
            if destination.nameless and destination not in self._running:
                asker.running += 1
                self._free -= 1
                self._running[destination] = asyncio.create_task(self._run(name, asker, destination, target))
            else:
                self._forget_if_idle(name, asker)

    def _next(self) -> tuple[str, _Asker, _Waiting] | None:
        """Whose look-up is to begin now, and from which of its lines it is taken."""
        for proven, factor in ((True, _FACTOR_OF_PROVEN_ONES), (False, _FACTOR)):
            askers = [each for each in self._askers.items() if each[1].waiting(proven=proven)]
            if askers:
                name, asker = min(askers, key=lambda each: each[1].running)
                if asker.running < factor * self._free:
                    return name, asker, asker.waiting(proven=proven)
        return None

    async def _run(self, name: str, asker: _Asker, destination: Destination, target: CallbackTarget) -> None:
        try:
            await self._look_up(target)
        finally:
            del self._running[destination]
            asker.running -= 1
            self._free += 1
            destination.nameless = False
            self._forget_if_idle(name, asker)
        self._on_end(destination)
        self._begin_next()

    def _forget_if_idle(self, name: str, asker: _Asker) -> None:
        if not (asker.running or asker.proven or asker.others) and self._askers.get(name) is asker:
            del self._askers[name]
