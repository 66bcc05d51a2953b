"""Turns names into addresses with c-ares, in the event loop: there is no thread that a silent name server could hold.

c-ares reads ``/etc/hosts`` and ``/etc/resolv.conf`` with its search domains, and asks for IPv4 and IPv6 addresses at
once. ``docs/decisions/0013-names-and-answers.md`` says why it is used as it is here.
"""

import asyncio
import re
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import pycares

from chargegate.http1.connection import CallFailed, ConnectFailed, NotSent
from chargegate.model import IPAddress

MAX_ADDRESSES: Final = 16
"""Addresses of one name that are used."""

_LEAST_TTL_S: Final = 1.0
_MOST_TTL_S: Final = 60.0
_FAILURE_TTL_S: Final = 1.0
_REMEMBERED: Final = 10_000
_FIRST_TRY_S: Final = 0.5  # each next round of tries waits twice as long
_ROUNDS: Final = 4
_LIMIT_S: Final = 10.0  # for a question and all its tries
_TICK_S: Final = 0.125
_UNSORTED: Final = 1 << 7  # ARES_AI_NOSORT; c-ares would open a socket for each address to sort them
_HOSTS: Final = Path("/etc/hosts")
_LOCALHOST = re.compile(r"(?:.*\.)?localhost\.?", re.IGNORECASE).fullmatch
_INVALID = re.compile(r"(?:.*\.)?invalid\.?", re.IGNORECASE).fullmatch
_NO_SUCH_NAME: Final = frozenset(
    {pycares.errno.ARES_ENOTFOUND, pycares.errno.ARES_ENODATA, pycares.errno.ARES_EBADNAME, pycares.errno.ARES_ENONAME}
)

Outcome = list[IPAddress] | CallFailed
"""The addresses of a name, at least one, or why there are none."""

_Answered = Callable[[Any, int | None], None]
_UNKNOWN: Final[tuple[float, Outcome | None]] = (0.0, None)


class Resolver:
    """Resolves names, each once for all that wait for it. It is for use on one event loop.

    An answer is kept for its time to live, but at least one second and at most 60. A failure is kept for one second.
    A question that has no answer after about ten seconds is cancelled.
    """

    def __init__(self, servers: Sequence[str] = ()) -> None:
        """``servers``: the addresses of the name servers to ask, each with ``:port`` if that is not 53. Where there are
        none, ``/etc/resolv.conf`` names them."""
        self._servers = list(servers)
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._channel: _Channel | None = None
        self._channels: dict[_Channel, asyncio.TimerHandle] = {}  # and what will end them
        self._closed = False
        self._under_way: dict[str, asyncio.Future[Outcome]] = {}
        self._kept: OrderedDict[str, tuple[float, Outcome]] = OrderedDict()

    async def resolve(self, host: str) -> list[IPAddress]:
        """The addresses of a name, at least one.

        Raises ``ConnectFailed("name_not_resolved")`` where a name server said that there are none, and
        ``NotSent("name_not_resolved")`` where none said anything of use.
        """
        known = self.known(host)
        if known is not None:
            return _given(known)
        question = self._under_way.get(host)
        if question is None:
            question = self._under_way[host] = self._loop.create_future()
            self._ask(host)
        return _given(await asyncio.shield(question))  # whoever stops waiting leaves the answer to the others

    def known(self, host: str) -> Outcome | None:
        """What a name server said of the name, while that is kept; None where it would have to be asked."""
        until, outcome = self._kept.get(host, _UNKNOWN)
        return outcome if self._now() < until else None

    def close(self) -> None:
        """End every question. It may be called twice."""
        self._closed = True
        for channel in list(self._channels):
            self._end(channel)

    def _ask(self, host: str) -> None:
        if _INVALID(host):  # nobody may own it (RFC 6761, 6.4)
            self._answered(host, None, pycares.errno.ARES_ENOTFOUND)
            return
        # A dot at the end keeps search domains away, but c-ares does not know localhost by it.
        name = host.removesuffix(".") if _LOCALHOST(host) else host
        try:
            if self._closed:
                raise pycares.AresError
            self._current_channel().ask(name, partial(self._answered, host))
        except pycares.AresError:  # the channel could not be opened
            self._answered(host, None, pycares.errno.ARES_ECONNREFUSED)
        except ValueError:  # it is no name at all
            self._answered(host, None, pycares.errno.ARES_EBADNAME)

    def _answered(self, host: str, result: Any, error: int | None) -> None:
        outcome: Outcome
        kept_s = _FAILURE_TTL_S
        if error is None and result.nodes:
            outcome = _addresses(host, result.nodes)
            ttl = min(record.ttl for record in (*result.nodes, *result.cnames))
            kept_s = min(max(float(ttl), _LEAST_TTL_S), _MOST_TTL_S)
        elif error is None or error in _NO_SUCH_NAME:
            outcome = ConnectFailed("name_not_resolved")
        else:
            outcome = NotSent("name_not_resolved")
        self._kept[host] = self._now() + kept_s, outcome
        self._kept.move_to_end(host)
        if len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)
        question = self._under_way.pop(host)
        if not question.done():
            question.set_result(outcome)

    def _current_channel(self) -> "_Channel":
        """A channel takes questions for a second, and is ended when the last of them has had its time.

        c-ares keeps answers too, some for an hour, and pycares cannot turn that off. A new channel knows none of them.
        It also reads ``/etc/resolv.conf`` again, and asks from another port, which is harder to forge answers for.
        """
        now = self._now()
        if self._channel is None or now - self._channel.opened_at >= _FAILURE_TTL_S:
            channel = self._channel = _Channel(self._loop, self._servers)
            self._channels[channel] = self._loop.call_later(_FAILURE_TTL_S + _LIMIT_S, self._end, channel)
        return self._channel

    def _end(self, channel: "_Channel") -> None:
        self._channels.pop(channel).cancel()
        if channel is self._channel:
            self._channel = None
        channel.end()


class _Channel:
    """c-ares's sockets and timers, moved by the event loop. Raises ``AresError`` where it cannot be opened."""

    def __init__(self, loop: asyncio.AbstractEventLoop, servers: Sequence[str]) -> None:
        self.opened_at = loop.time()
        self._loop = loop
        self._watched: dict[int, tuple[bool, bool]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._questions = 0
        self._ares: pycares.Channel | None = pycares.Channel(
            timeout=_FIRST_TRY_S, tries=_ROUNDS, servers=servers or None, sock_state_cb=self._watch
        )

    def ask(self, name: str, answered: _Answered) -> None:
        """Ask for a name's addresses. ``answered`` is called once, perhaps before this returns. Raises ``ValueError``
        for what is no name."""
        if self._ares is None:
            raise pycares.AresError
        self._questions += 1

        def ended(result: Any, error: int | None) -> None:
            self._questions -= 1
            answered(result, error)

        try:
            self._ares.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=_UNSORTED, callback=ended)
        except BaseException:
            self._questions -= 1
            raise
        if self._timer is None and self._questions:
            self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        """Let c-ares see that time passes for questions that nobody answers."""
        self._timer = None
        if self._ares is not None and self._questions:
            self._timer = self._loop.call_later(_TICK_S, self._tick)
            self._ares.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)

    def _watch(self, fd: int, readable: bool, writable: bool) -> None:
        """c-ares says what it waits for on a socket."""
        ares = self._ares
        if ares is None:
            return  # a thread of pycares frees what is left of a channel that was ended
        was_readable, was_writable = self._watched.pop(fd, (False, False))
        if readable or writable:
            self._watched[fd] = readable, writable
        if readable and not was_readable:
            self._loop.add_reader(fd, ares.process_fd, fd, pycares.ARES_SOCKET_BAD)
        elif was_readable and not readable:
            self._loop.remove_reader(fd)
        if writable and not was_writable:
            self._loop.add_writer(fd, ares.process_fd, pycares.ARES_SOCKET_BAD, fd)
        elif was_writable and not writable:
            self._loop.remove_writer(fd)

    def end(self) -> None:
        """Cancel what is under way, whose callers are told so."""
        ares = self._ares
        if ares is None:
            return
        ares.cancel()
        self._ares = None
        for fd, (readable, writable) in self._watched.items():
            if readable:
                self._loop.remove_reader(fd)
            if writable:
                self._loop.remove_writer(fd)
        self._watched.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ares.close()


def _given(outcome: Outcome) -> list[IPAddress]:
    """The addresses, or an exception of its own for each that asked."""
    if isinstance(outcome, CallFailed):
        raise type(outcome)(outcome.reason)
    return outcome


def _addresses(host: str, nodes: Sequence[Any]) -> list[IPAddress]:
    """The addresses in an answer, both families in turn, beginning with IPv6 (RFC 8305, 4)."""
    families: dict[int, list[IPAddress]] = {socket.AF_INET6: [], socket.AF_INET: []}
    for node in nodes:
        place = node.addr[0].decode() if isinstance(node.addr[0], bytes) else str(node.addr[0])
        kind = IPv6Address if node.family == socket.AF_INET6 else IPv4Address
        families[node.family].append(kind(place))
    sixes, fours = families.values()
    if sixes and fours and _LOCALHOST(host) and not _lists_v6_loopback():
        sixes = []
    in_turn = [address for pair in zip_longest(sixes, fours) for address in pair if address is not None]
    return list(dict.fromkeys(in_turn))[:MAX_ADDRESSES]


def _lists_v6_loopback() -> bool:
    """c-ares knows two addresses of localhost by itself (RFC 6761, 6.3). People expect those of their hosts file."""
    try:
        lines = _HOSTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split()[:1] == ["::1"] for line in lines)
