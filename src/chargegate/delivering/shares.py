"""Who gets the next connection: two pools, which are shared out between clients and destinations.

Half of all connections are a reserve that only proven destinations may use, so that destinations which never answer
cannot hold up those that do. In each pool a client may take another connection while it holds less than a multiple of
what is free there. A destination may hold as many as are free, unless it is the only one in use. This is the dynamic
threshold of Choudhury and Hahne ("Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998): something
always stays free for a client or a destination that comes new, and the share of each follows from how many there are.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final

from chargegate.delivering.lines import Client, Destination, Line

_FACTOR: Final = 4  # of what is free in all, where there are several clients
_FACTOR_ALONE: Final = 9  # where there is one: a tenth stays free for the next
_UNPROVEN_EVERY: Final = 8  # this start of a client is one to an unproven destination, even where proven ones wait


class Shares:
    """The connections of one process, who holds them, and who waits for them."""

    def __init__(self, max_connections: int) -> None:
        self._max = max_connections
        self._max_unproven = max_connections - max_connections // 2
        self._clients: dict[str, Client] = {}
        self._ready: OrderedDict[Client, None] = OrderedDict()  # clients with a destination that could take a callback
        self.running = 0
        self.unproven = 0
        self.parked = 0

    def client(self, name: str) -> Client:
        """The client of this name. It is the same object for as long as it holds or waits for anything."""
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = Client(name)
        return client

    @property
    def any_ready(self) -> bool:
        """Whether a client has a destination that could take a callback of its."""
        return bool(self._ready)

    def lines(self) -> Iterator[Line]:
        """All lines. They must not be changed meanwhile."""
        for client in self._clients.values():
            yield from client.lines.values()

    def may_take(self, client: Client, destination: Destination, *, proven: bool) -> bool:
        """Whether the client may take a connection to the destination now, which is proven or not."""
        free = self._max - self.running
        if client.running >= (_FACTOR if len(self._clients) > 1 else _FACTOR_ALONE) * free:
            return False
        if destination.running >= free and not self._may_hold_another(destination, client):
            return False
        return proven or client.unproven < self._max_unproven - self.unproven

    def take(self, client: Client, *, proven: bool) -> None:
        client.running += 1
        self.running += 1
        if not proven:
            client.unproven += 1
            self.unproven += 1

    def give_back(self, client: Client, *, proven: bool) -> None:
        client.running -= 1
        self.running -= 1
        if not proven:
            client.unproven -= 1
            self.unproven -= 1
        self._forget_if_idle(client)

    def park(self, name: str, destination: Destination, callback: Any, *, in_line: bool) -> Line:
        """Put a callback at the end of its client's line at the destination, or beside the line until its time."""
        client = self.client(name)
        line = client.lines.get(destination)
        if line is None:
            line = client.lines[destination] = destination.lines[client] = Line(client, destination)
        (line.in_line if in_line else line.waiting)[callback] = None
        client.parked += 1
        self.parked += 1
        return line

    def unpark(self, line: Line, callback: Any, *, in_line: bool) -> None:
        """Take a callback out of its line."""
        client, destination = line.client, line.destination
        del (line.in_line if in_line else line.waiting)[callback]
        client.parked -= 1
        self.parked -= 1
        if not line.in_line:
            client.ready.pop(destination, None)
            client.ready_unproven.pop(destination, None)
        if not line:
            del client.lines[destination], destination.lines[client]
            self._forget_if_idle(client)

    def offer(self, destination: Destination, now: float) -> None:
        """Say that the destination may have become able to take a callback, or has become proven."""
        if not destination.lines or not destination.startable:
            return
        proven = destination.proven(now)
        for client, line in destination.lines.items():
            if line.in_line:
                (client.ready_unproven if proven else client.ready).pop(destination, None)
                (client.ready if proven else client.ready_unproven).setdefault(destination)
                self._ready.setdefault(client)

    def next_line(self, now: float) -> Line | None:
        """The line whose first callback is to start now; None where nobody may start. Of the clients it is the one
        that holds the fewest, its destinations take turns, and at one destination the clients take turns."""
        chosen, found = None, None
        for client in tuple(self._ready):
            if chosen is not None and client.running >= chosen.running:
                continue
            destination = self._next_destination(client, now)
            if destination is not None:
                chosen, found = client, destination
        if chosen is None or found is None:
            return None
        self._ready.move_to_end(chosen)
        proven = found in chosen.ready  # as it was found just now
        (chosen.ready if proven else chosen.ready_unproven).move_to_end(found)
        chosen.turn += 1
        if len(found.lines) == 1:
            return found.lines[chosen]
        line = next(
            each for each in found.lines.values() if each.in_line and self.may_take(each.client, found, proven=proven)
        )
        found.lines.move_to_end(line.client)
        return line

    def look_through(self, now: float, long_ago: float) -> tuple[list[Any], int, bool]:
        """Of those in line: the ones past their deadline, how many have waited since before ``long_ago`` though their
        destination would take them, and whether there are any. Times are the monotonic clock's."""
        late, overdue, any_in_line = [], 0, False
        for line in self.lines():
            startable = line.destination.startable
            for callback in line.in_line:
                any_in_line = True
                if callback.deadline <= now:
                    late.append(callback)
                elif startable and callback.parked_at < long_ago:
                    overdue += 1
        return late, overdue, any_in_line

    def newest_of_most(self, count: int) -> list[Any]:
        """So many parked callbacks that others may go before: each is the newest of the longest line of the client
        that has the most of them."""
        parked = {client: client.parked for client in self._clients.values() if client.parked}
        lines: dict[Client, list[tuple[int, int, Line]]] = {}
        newest: dict[Line, list[Any]] = {}
        chosen: list[Any] = []
        while parked and len(chosen) < count:
            client = max(parked, key=parked.__getitem__)
            if client not in lines:
                lines[client] = [(-len(line), number, line) for number, line in enumerate(client.lines.values())]
                heapq.heapify(lines[client])
            length, number, line = lines[client][0]
            if line not in newest:
                newest[line] = sorted(line, key=lambda callback: int(callback.deadline_ms))
            chosen.append(newest[line].pop())
            heapq.heapreplace(lines[client], (length + 1, number, line))
            parked[client] -= 1
            if not parked[client]:
                del parked[client]
        return chosen

    def _next_destination(self, client: Client, now: float) -> Destination | None:
        """The destination that the client's next callback goes to, if it may have a connection for that."""
        proven = self._first(client, now, proven=True) if client.ready else None
        unproven = None
        if client.ready_unproven:
            unproven = self._first(client, now, proven=False)
            proven = proven or self._first(client, now, proven=True)
        if not client.ready and not client.ready_unproven:
            self._ready.pop(client, None)
        if proven is not None and not self.may_take(client, proven, proven=True):
            proven = None
        if unproven is not None and not self.may_take(client, unproven, proven=False):
            unproven = None
        unproven_first = client.turn % _UNPROVEN_EVERY == _UNPROVEN_EVERY - 1
        return unproven or proven if unproven_first else proven or unproven

    def _first(self, client: Client, now: float, *, proven: bool) -> Destination | None:
        """The first that may hold another connection, of the client's destinations that are said to be proven, or not.
        Those that no longer are what they are said to be are dropped, or moved."""
        ready, other = client.ready, client.ready_unproven
        if not proven:
            ready, other = other, ready
        if not ready:
            return None
        found, changed = None, []
        for destination in ready:
            if not destination.startable or destination.proven(now) != proven:
                changed.append(destination)
            elif self._may_hold_another(destination, client):
                found = destination
                break
        for destination in changed:
            del ready[destination]
            if destination.startable:
                other[destination] = None
        return found

    def _may_hold_another(self, destination: Destination, client: Client) -> bool:
        """A destination holds as many as are free. It may be more where it is the only one, or a client's first."""
        running = destination.running
        return running < self._max - self.running or running == self.running or not client.running

    def _forget_if_idle(self, client: Client) -> None:
        if not client.running and not client.lines:
            self._ready.pop(client, None)
            del self._clients[client.name]
