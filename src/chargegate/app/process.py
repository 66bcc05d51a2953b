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


def end_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Two events: the first SIGTERM or SIGINT sets the one, the next signal sets the other."""
    first, second = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled)
    return first, second
