"""Starts of the service without the interpreter's start and the imports, which are most of the processor time of a
command.

A process that has imported everything (``fork_server.py``) forks for each start. What it forks is a process of its own
as any other: with its own id, signals, descriptors, folder, environment, limits and exit code. ``subprocess.Popen``
does it by itself, once ``install`` was called, for the command line of the service, wherever it knows that nothing
would differ; anything else starts as ever. A test with the marker ``true_start``, and each one where
CHARGEGATE_TEST_TRUE_STARTS is set, starts truly.
"""

import inspect
import json
import os
import resource
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar, Final

COMMAND: Final = str(Path(sys.executable).with_name("chargegate"))
SCRIPTS: Final = set(Path(__file__).parent.glob("contract/kill_*.py"))
"""They start the service with a place where it kills itself, and import it before they do anything."""
SERVER: Final = Path(__file__).with_name("fork_server.py")
LIMITS: Final = sorted(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
LOCALES: Final = {"", "C", "POSIX", "C.UTF-8", "C.utf8", "en_US.UTF-8"}  # in all of them Python speaks UTF-8
_true_popen = subprocess.Popen
_parameters = inspect.signature(_true_popen._execute_child)


class ForkServer:
    """The process that forks, which ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._environ = dict(os.environ)
        with theirs:
            command = [sys.executable, str(SERVER), str(theirs.fileno())]
            self._process = _true_popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def would_be_alike(self, environ: dict[str, str]) -> bool:
        """Whether an interpreter with this environment would start as the server's own did."""
        if any(name.startswith("LD_") for name in environ):
            return False
        mine, theirs = (
            {name: value for name, value in each.items() if name.startswith("PYTHON") and name != "PYTHONUNBUFFERED"}
            for each in (self._environ, environ)
        )
        locale = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG", "")
        return mine == theirs and locale in LOCALES

    def fork(self, order: dict[str, Any], standard: list[int]) -> tuple[int, int]:
        """The id of a new process, and a descriptor from which its wait status can be read when it has ended."""
        end, theirs = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._channel, [json.dumps(order).encode()], [*standard, theirs])
                answer = self._channel.recv(64)
        finally:
            os.close(theirs)
        if not answer:
            os.close(end)
            raise RuntimeError(f"the fork server ended with {self._process.wait(20)}")
        return int(answer), end


class Popen(_true_popen):
    """Forks the service where nothing would differ, and starts everything else."""

    allowed: ClassVar[bool] = True
    server: ClassVar[ForkServer | None] = None
    _end: int | None = None
    """From where the wait status of a forked process can be read."""

    def _execute_child(self, *values: Any) -> None:
        named = _parameters.bind(self, *values).arguments
        order, standard = _order(named) if self.allowed and _is_plain(named) else (None, [])
        if order is None or not _fork_server().would_be_alike(order["environ"]):
            super()._execute_child(*values)
            return
        try:
            self.pid, self._end = _fork_server().fork(order, standard)
            self._child_created = True
        finally:
            pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(named[name] for name in pipes))

    def _wait(self, timeout: float | None) -> int | None:
        if self._end is None:
            return self.returncode if self.returncode is not None else super()._wait(timeout)
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _internal_poll(self, *values: Any, **named: Any) -> int | None:
        if self._end is None:
            return self.returncode if self.returncode is not None else super()._internal_poll(*values, **named)
        return self._ended(0)

    def _ended(self, limit_s: float | None) -> int | None:
        """The exit code of a forked process, once it has ended or the time is over."""
        ready = select.poll()
        ready.register(self._end, select.POLLIN)
        if not ready.poll(None if limit_s is None else max(limit_s, 0) * 1000):
            return None
        with self._waitpid_lock:
            if self.returncode is None:
                status = os.read(self._end, 16)
                if not status:
                    raise RuntimeError("the fork server ended, and nobody knows how this process did")
                os.close(self._end)
                self.returncode = os.waitstatus_to_exitcode(int(status))
                self._end = None
        return self.returncode


def _fork_server() -> ForkServer:
    if Popen.server is None:
        Popen.server = ForkServer()
    return Popen.server


def _own_words(arguments: Any) -> list[str] | None:
    """What the service, or a script around it, finds in ``sys.argv``; None where a command starts something else."""
    if isinstance(arguments, list | tuple):
        words = [os.fsdecode(word) for word in arguments]
        if words[:1] == [COMMAND]:
            return words
        if words[:3] == [sys.executable, "-m", "chargegate"]:
            return words[2:]
        if words[:1] == [sys.executable] and Path(*words[1:2]) in SCRIPTS:
            return words[1:]
    return None


def _order(named: dict[str, Any]) -> tuple[dict[str, Any] | None, list[int]]:
    """What the fork server needs to know, and the standard streams; nothing for a command that it does not run."""
    words = _own_words(named["args"])
    folder = Path(named["cwd"] or Path.cwd()).absolute()
    if words is None or not folder.is_dir():
        return None, []
    environ = os.environ if named["env"] is None else named["env"]
    standard = [named["p2cread"], named["c2pwrite"], named["errwrite"]]
    order = {
        "arguments": words,
        "is_script": Path(words[0]) in SCRIPTS,
        "folder": str(folder),
        "environ": {os.fsdecode(name): os.fsdecode(value) for name, value in environ.items()},
        "mask": _mask() if named["umask"] < 0 else named["umask"],
        "limits": {limit: resource.getrlimit(limit) for limit in LIMITS},
        "new_session": named["start_new_session"],
        "group": named["process_group"],
    }
    return order, [number if given == -1 else given for number, given in enumerate(standard)]


def _is_plain(named: dict[str, Any]) -> bool:
    """Whether nothing is asked for that only a true start does."""
    asked = ("executable", "preexec_fn", "pass_fds", "shell", "gid", "gids", "uid")
    return named["close_fds"] and named["restore_signals"] and not any(named[name] for name in asked)


def _mask() -> int:
    """The mask of new files, which the other calls for it would change."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask:")]
    return int(line.split()[1], 8)


def install() -> None:
    """Have every start of the service go through here, also those of ``subprocess.run``."""
    if not os.environ.get("CHARGEGATE_TEST_TRUE_STARTS"):
        subprocess.Popen = Popen
