"""What a process asks of its machine: a name, room for connections, and to be told when it shall end."""

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Final, Literal, NamedTuple, TextIO
from uuid import getnode

from chargegate.observe import log

Role = Literal["serve", "api", "worker"]

RESERVE: Final = 64
"""Open files for the database, the audit file, sockets that listen, and connections that are being turned away."""

FEWEST: Final = 16
"""Connections that clients may hold at any rate, though they then share files with the service itself."""

LEAST: Final = 28
"""Open files of a process that has nothing to do, and two connections of clients."""

_WATCH_S: Final = 1.0
_WHERE_UNLIMITED: Final = 10_240  # macOS takes no more


class ProcessName:
    """A name that no other process of this folder has, in a file beside what tells a copy of the file from it: the
    file's number in its file system, and the machine's. A copy takes another name: what was begun under the first one
    is the original's, which may come back."""

    def __init__(self, file: TextIO, role: Role) -> None:
        self._file = file
        self._role = role
        number = os.fstat(file.fileno()).st_ino
        self._place = f"{number} {_text('/etc/machine-id') or '-'}"
        self.holder = f"{socket.gethostname()} {_text('/proc/sys/kernel/random/boot_id') or getnode()} {number}"
        """Different for each machine, and after each start of one: a process that ended has it again."""
        file.seek(0)
        self.name, _, place = file.read().partition(" ")
        if not self.name:
            self.take_another()
        elif place not in ("", self._place):  # older releases wrote none
            before = self.name
            self.take_another()
            log.warning(
                "data_dir is a copy of one that another process may use; this process takes another name",
                name=before,
                takes=self.name,
            )
        elif not place:
            self._write()

    def take_another(self) -> None:
        """A new name, from now on and after a restart too."""
        self.name = f"{socket.gethostname()}-{self._role}-{token_hex(4)}"
        self._write()

    def _write(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"{self.name} {self._place}")
        self._file.flush()


@contextlib.contextmanager
def process_name(folder: Path, role: Role) -> Iterator[ProcessName]:
    """A name that a process of the same folder and role gets again after a restart, so that it goes on with what it
    held."""
    for number in itertools.count(1):
        with (folder / f"{role}-{number}.name").open("a+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield ProcessName(file, role)
            return


def _text(file: str) -> str:
    """What a file of the system says; nothing where there is none."""
    try:
        return Path(file).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


class Files(NamedTuple):
    """What may be open at once. ``inbound``: connections of clients. ``needed``: the least that lets all others be made
    too."""

    inbound: int
    allowed: int
    needed: int


def open_files(outgoing: int) -> Files:
    """Raise the soft limit of open files to the hard one, and share it out, so that ``outgoing`` connections can be
    made beside those of clients. With few more than are needed they may have to wait for each other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, _WHERE_UNLIMITED)
    with contextlib.suppress(OSError, ValueError):  # then it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return Files(max(FEWEST, soft - outgoing - RESERVE), soft, outgoing + LEAST)


class SpareFile:
    """Whether one more file can be opened. That it cannot is this process's own fault, and nobody else's: it is logged
    once, and again when it is over."""

    def __init__(self) -> None:
        self._lacking = False

    def lacking(self) -> bool:
        try:
            os.close(os.dup(0))
        except OSError as error:
            lacking = error.errno in {errno.EMFILE, errno.ENFILE}
        else:
            lacking = False
        if lacking and not self._lacking:
            allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            log.error("too many open files; what needs another one waits", allowed=allowed)
        elif self._lacking and not lacking:
            log.info("files can be opened again")
        self._lacking = lacking
        return lacking

    async def watch(self) -> None:
        while True:
            self.lacking()
            await asyncio.sleep(_WATCH_S)


class Signals:
    """What the process was told. ``stop``: the first SIGTERM or SIGINT; ``at_once``: the next one. ``reload``: SIGHUP,
    which ends the process at no time, also while it starts or stops."""

    def __init__(self) -> None:
        self.stop, self.at_once, self.reload = asyncio.Event(), asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        # Not a handler of the loop, because the loop gives a signal back its own meaning when it lets go of it.
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(self.reload.set))

    def close(self) -> None:
        """Have SIGHUP ignored to the very end."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _end(self) -> None:
        (self.at_once if self.stop.is_set() else self.stop).set()
