"""What a process asks of its machine: a name, room for connections, and to be told when it shall end."""

import asyncio
import contextlib
import fcntl
import itertools
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Final, Literal

Role = Literal["serve", "api", "worker"]

RESERVE: Final = 64
"""Open files for the database, the audit file, sockets that listen, and connections that are being turned away."""

FEWEST: Final = 16
_WHERE_UNLIMITED: Final = 10_240  # macOS takes no more


@contextlib.contextmanager
def process_name(folder: Path, role: Role) -> Iterator[str]:
    """A name that no other process has, and that a process of the same folder and role gets again after a restart, so
    that it goes on with what it held."""
    for number in itertools.count(1):
        with (folder / f"{role}-{number}.name").open("a+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            file.seek(0)
            name = file.read()
            if not name:
                name = f"{socket.gethostname()}-{role}-{token_hex(4)}"
                file.write(name)
                file.flush()
            yield name
            return


def inbound_connections(outgoing: int) -> int:
    """Raise the soft limit of open files to the hard one. Returns how many connections clients may hold, so that
    ``outgoing`` ones can always be made."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, _WHERE_UNLIMITED)
    with contextlib.suppress(OSError, ValueError):  # then it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(FEWEST, soft - outgoing - RESERVE)


class Signals:
    """What the process was told. ``stop``: the first SIGTERM or SIGINT; ``at_once``: the next one. ``reload``: SIGHUP,
    which ends the process at no time, also while it starts or stops."""

    def __init__(self) -> None:
        self.stop, self.at_once, self.reload = asyncio.Event(), asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self.reload.set)

    def _end(self) -> None:
        (self.at_once if self.stop.is_set() else self.stop).set()
