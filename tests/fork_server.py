"""A process that has imported the whole service and forks for each start of it: ``fork_server.py DESCRIPTOR``.

``forked.py`` starts it and is at the other end of the socket DESCRIPTOR. An order is one message: JSON with the fields
of ``Order``, and four descriptors: standard input, output and error of the new process, and where its wait status is
written when it has ended. The answer is the id of the process.
"""

import array
import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import runpy
import select
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

import chargegate
import chargegate.cli

MOST = 1 << 20  # bytes of a message; the environment is its largest part


class Order(NamedTuple):
    """What a process differs in from this one. ``limits`` has the soft and the hard one by the resource's number.
    ``arguments`` begin with a Python script where there is one, and else with any name for the command."""

    arguments: list[str]
    is_script: bool
    folder: str
    environ: dict[str, str]
    mask: int
    limits: dict[str, list[int]]
    new_session: bool
    group: int


def import_the_service() -> None:
    """All its modules, so that no process imports them itself. What an extra would bring may be absent."""
    for module in pkgutil.walk_packages(chargegate.__path__, "chargegate."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)


def serve(channel: socket.socket) -> tuple[Order, list[int]] | None:
    """Fork for each order. Returns in each new process with what it is to be, and here when nobody orders any more."""
    ends: dict[int, tuple[int, int]] = {}  # by the pidfd of a process: its id, and where its wait status is written
    watched = select.poll()
    watched.register(channel, select.POLLIN)
    while True:
        for descriptor, _ in watched.poll():
            if descriptor != channel.fileno():
                watched.unregister(descriptor)
                pid, status = ends.pop(descriptor)
                with contextlib.suppress(BrokenPipeError):  # nobody waits for it
                    os.write(status, str(os.waitpid(pid, 0)[1]).encode())
                os.close(descriptor)
                os.close(status)
                continue
            message, descriptors = received(channel)
            if not message:
                return None
            pid = os.fork()
            if pid == 0:
                channel.detach()
                return Order(**json.loads(message)), descriptors
            *standard, status = descriptors
            for each in standard:
                os.close(each)
            end = os.pidfd_open(pid)
            ends[end] = pid, status
            watched.register(end, select.POLLIN)
            channel.send(str(pid).encode())


def received(channel: socket.socket) -> tuple[bytes, list[int]]:
    numbers = array.array("i")
    message, more, flags, _ = channel.recvmsg(MOST, socket.CMSG_SPACE(4 * numbers.itemsize))
    for _, _, data in more:
        numbers.frombytes(data)
    assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), "the order did not fit"
    return message, list(numbers)


def become(order: Order, descriptors: list[int]) -> None:
    """Make this process what it would be if it had been started as the order says."""
    if order.new_session:
        os.setsid()
    elif order.group >= 0:
        os.setpgid(0, order.group)
    for number in range(3):
        os.dup2(descriptors[number], number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(order.folder)
    os.umask(order.mask)
    for name, limits in order.limits.items():
        resource.setrlimit(int(name), tuple(limits))
    os.environ.clear()
    os.environ.update(order.environ)
    time.tzset()
    sys.argv = order.arguments
    unbuffered = bool(order.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = opened(0, "r", sys.stdin, unbuffered=False)
    sys.stdout = sys.__stdout__ = opened(1, "w", sys.stdout, unbuffered=unbuffered)
    sys.stderr = sys.__stderr__ = opened(2, "w", sys.stderr, unbuffered=unbuffered)


def opened(number: int, mode: str, like: TextIO, *, unbuffered: bool) -> TextIO:
    """A standard stream as the interpreter opens it when it starts."""
    raw: Any = io.FileIO(number, mode, closefd=False)
    terminal = raw.isatty()
    raw.name = like.name
    buffer = raw if unbuffered else io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        like.encoding,
        like.errors,
        newline=None if mode == "r" else "\n",
        line_buffering=(terminal or number == 2) and not unbuffered,
        write_through=unbuffered,
    )


def end(code: int) -> NoReturn:
    """End as the interpreter does, but for taking itself apart: that would copy most of the pages that are shared, and
    cost more processor time than a whole command."""
    threading._shutdown()  # waits for threads, as the interpreter does first
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError:
        code = 120  # as the interpreter says it
    os._exit(code)


def main() -> int:
    channel = socket.socket(fileno=int(sys.argv[1]))
    del sys.path[0]  # this folder
    import_the_service()
    assert len(os.listdir("/proc/self/task")) == 1, "a forked process would lack the other threads"  # noqa: PTH208
    gc.collect()
    gc.freeze()  # so that no collection of a forked process touches, and thereby copies, what was here before
    try:
        started = serve(channel)
    except KeyboardInterrupt:  # the whole run was told to end
        return 130
    if started is None:
        return 0
    become(*started)
    if started[0].is_script:
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
    end(chargegate.cli.main())


if __name__ == "__main__":
    sys.exit(main())
