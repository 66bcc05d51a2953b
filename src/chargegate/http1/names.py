"""Names to addresses, by c-ares in the event loop: no thread that a silent name server could hold.

pycares is used directly, because aiodns runs c-ares in a thread of its own. c-ares reads ``/etc/hosts`` and
``/etc/resolv.conf`` with its search domains, and asks for IPv4 and IPv6 addresses at once.
"""

import asyncio
import os
import re
import socket
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

import pycares

from chargegate.http1.connection import CallFailed, ConnectFailed, NotSent
from chargegate.model import IPAddress

_LEAST_TTL_S: Final = 1.0
_MOST_TTL_S: Final = 60.0
_FAILURE_TTL_S: Final = 1.0
_REMEMBERED: Final = 10_000
_FIRST_TRY_S: Final = 2.0
_TRIES: Final = 2
_TICK_S: Final = 0.25
_SETTINGS: Final = "/etc/resolv.conf"
_HOSTS: Final = "/etc/hosts"
_LOCALHOST = re.compile(r"(?:.*\.)?localhost\.?", re.IGNORECASE).fullmatch
_NO_SUCH_NAME: Final = frozenset(
    {pycares.errno.ARES_ENOTFOUND, pycares.errno.ARES_ENODATA, pycares.errno.ARES_EBADNAME, pycares.errno.ARES_ENONAME}
)

_Outcome = list[IPAddress] | CallFailed


class Resolver:
    """Resolves names, once for all that wait for the same. Use it on one event loop.

    An answer is kept for its time to live, at least one second and at most 60; a failure for one second. A look-up
    that nobody waits for any more ends by itself when its tries are over.
    """

    def __init__(self, servers: Sequence[str] = ()) -> None:
        """``servers``: addresses to ask, with ``:port`` if it is not 53; without any, as ``/etc/resolv.conf`` says."""
        self._servers = list(servers)
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._channel: pycares.Channel | None = None
        self._settings_of = 0.0
        self._read_at = 0.0
        self._sockets: dict[int, tuple[bool, bool]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._under_way: dict[str, asyncio.Future[_Outcome]] = {}
        self._kept: OrderedDict[str, tuple[float, _Outcome]] = OrderedDict()

    async def resolve(self, host: str) -> list[IPAddress]:
        """The addresses of a name, at least one. Raises ``ConnectFailed("name_not_resolved")`` where there are none,
        and ``NotSent("name_not_resolved")`` where no name server said so."""
        until, known = self._kept.get(host, (0.0, None))
        if known is not None and self._now() < until:
            return _given(known)
        looking = self._under_way.get(host)
        if looking is None:
            looking = self._under_way[host] = self._loop.create_future()
            self._ask(host)
        return _given(await asyncio.shield(looking))  # whoever gives up waiting takes nobody else's answer along

    def _ask(self, host: str) -> None:
        try:
            self._opened().getaddrinfo(
                host.removesuffix("."), None, type=socket.SOCK_STREAM, callback=partial(self._answered, host)
            )
        except (pycares.AresError, UnicodeError, ValueError):
            self._answered(host, None, pycares.errno.ARES_EBADNAME)

    def _answered(self, host: str, result: Any, error: int | None) -> None:
        outcome: _Outcome
        kept_s = _FAILURE_TTL_S
        if error is None and result.nodes:
            outcome = list(dict.fromkeys(_address(node.addr) for node in result.nodes))
            if len(outcome) > 1 and _LOCALHOST(host) and not _lists_v6_loopback():
                outcome = [address for address in outcome if address.version == 4]
            ttl = min(each.ttl for each in (*result.nodes, *result.cnames))
            kept_s = min(max(float(ttl), _LEAST_TTL_S), _MOST_TTL_S)
        elif error is None or error in _NO_SUCH_NAME or host.removesuffix(".").endswith(".invalid"):
            outcome = ConnectFailed("name_not_resolved")
        else:
            outcome = NotSent("name_not_resolved")
        self._kept[host] = (self._now() + kept_s, outcome)
        self._kept.move_to_end(host)
        if len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)
        looking = self._under_way.pop(host, None)
        if looking is not None and not looking.done():
            looking.set_result(outcome)

    # c-ares in the event loop

    def _opened(self) -> pycares.Channel:
        """The channel, which follows changes of ``/etc/resolv.conf``."""
        changed = _changed_at(_SETTINGS)
        if self._channel is None:
            self._channel = pycares.Channel(
                timeout=_FIRST_TRY_S,
                tries=_TRIES,
                servers=self._servers or None,
                sock_state_cb=self._socket_changed,
            )
            self._read_at = self._now()
        elif changed != self._settings_of or self._now() - self._read_at >= _MOST_TTL_S:
            self._channel.reinit()  # which also forgets what c-ares keeps for an hour
            self._read_at = self._now()
        self._settings_of = changed
        return self._channel

    def _socket_changed(self, fd: int, readable: bool, writable: bool) -> None:
        channel = self._channel
        was_readable, was_writable = self._sockets.pop(fd, (False, False))
        if was_readable and not readable:
            self._loop.remove_reader(fd)
        if was_writable and not writable:
            self._loop.remove_writer(fd)
        if channel is not None and readable:
            self._loop.add_reader(fd, channel.process_fd, fd, pycares.ARES_SOCKET_BAD)
        if channel is not None and writable:
            self._loop.add_writer(fd, channel.process_fd, pycares.ARES_SOCKET_BAD, fd)
        if readable or writable:
            self._sockets[fd] = (readable, writable)
            if self._timer is None:
                self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        """Time passes for queries that nobody answers."""
        self._timer = None
        if self._channel is not None and self._under_way:
            self._timer = self._loop.call_later(_TICK_S, self._tick)
            self._channel.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)

    def close(self) -> None:
        """End every look-up. May be called twice."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.cancel()
            for fd, (readable, writable) in self._sockets.items():
                if readable:
                    self._loop.remove_reader(fd)
                if writable:
                    self._loop.remove_writer(fd)
            self._sockets.clear()
            channel.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _given(outcome: _Outcome) -> list[IPAddress]:
    """The addresses, or an exception of its own for each that asked."""
    if isinstance(outcome, CallFailed):
        raise type(outcome)(outcome.reason)
    return outcome


def _address(place: tuple[Any, ...]) -> IPAddress:
    """An address of c-ares's. One with a zone is given with it, so that a guard sees and refuses it."""
    text = place[0].decode() if isinstance(place[0], bytes) else str(place[0])
    if len(place) == 4 and place[3]:
        return IPv6Address(f"{text}%{place[3]}")
    return ip_address(text)


def _lists_v6_loopback() -> bool:
    """c-ares knows two addresses of localhost by itself (RFC 6761, 6.3); people expect those of their hosts file."""
    try:
        lines = Path(_HOSTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split()[:1] == ["::1"] for line in lines)


def _changed_at(path: str) -> float:
    try:
        return os.stat(path).st_mtime  # noqa: PTH116 - a plain system call for each look-up that is not answered from memory
    except OSError:
        return 0.0
