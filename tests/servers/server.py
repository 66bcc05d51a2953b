"""A real server that a test run starts for itself, and can stop, kill, start again and empty.

A test asks for a fixture (``fixtures.py``) and gets a ``Server`` that runs:

    def test_survives(redis_server: Server) -> None:
        use(redis_server.url)
        redis_server.kill()
        redis_server.start()            # the same port, the same data
        redis_server.wipe()             # kills it and deletes its data
        redis_server.start()
        with redis_server.proxied() as proxy:
            use(proxy.url)
            proxy.drop()                # proxy.py

Each call returns when its work is done: ``start`` once the server answers clients. A test may leave the server down,
because it is started again before the next test.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

from ports import free_port
from servers.proxy import Proxy

# The watchdog deletes the server when the standard input ends, which it does however the test run ends.
WATCHDOG = """
cat >/dev/null
kill -s KILL -- "-$(cat "$1/pid")"
until rm -rf -- "$1"; do sleep 0.1; done
"""
# The process group is written to a file before the server starts.
WATCHED = 'echo $$ >"$0/pid" && exec "$@"'


def alive(pid: str) -> bool:
    """Whether the process runs. A zombie does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Server(ABC):
    """A server on 127.0.0.1 with a folder of its own."""

    name: ClassVar[str]
    user: ClassVar[str | None] = None  # the user that runs it when the tests run as root
    stop_signal: ClassVar[int] = signal.SIGTERM
    limit_s: ClassVar[float] = 120  # for a start and for a stop

    def __init__(self) -> None:
        self.port = free_port()
        self.behind_proxy = (0, self.port)  # the port of a proxy (0: any), and the port that it forwards to
        self.folder = Path(tempfile.mkdtemp(prefix=f"chargegate-{self.name}-"))
        if self._user():
            shutil.chown(self.folder, self._user())
        self.data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "watchdog", self.folder],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @classmethod
    @abstractmethod
    def missing(cls) -> str:
        """What this machine lacks to run the server; empty if it lacks nothing."""

    @abstractmethod
    def url_at(self, port: int) -> str:
        """The URL of this server when it is reached through a port of 127.0.0.1."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the folder ``data`` and what else a first start needs."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command that runs the server in the foreground."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether the server answers clients."""

    def environment(self) -> dict[str, str]:
        return {}

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        if self.running:
            self.resume()
            return
        if not self.data.exists():
            self.prepare()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", WATCHED, self.folder, *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as_user(),
            )
        end = time.monotonic() + self.limit_s
        while not self.ready():
            if not self.running or time.monotonic() > end:
                self.kill()
                log_end = (self.folder / "log").read_text(errors="replace")[-4000:]
                raise RuntimeError(f"{self.name} did not start:\n{log_end}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask the server to shut down in order, and wait for its end."""
        if self._process is not None:
            self._process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self.limit_s)
        self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the server and to all processes that it started."""
        if self._process is None:
            return
        pid = self._process.pid
        children: list[str] = []
        with contextlib.suppress(OSError):  # each process of PostgreSQL has a group of its own
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for send, target in [(os.killpg, pid), *((os.kill, int(child)) for child in children)]:
            with contextlib.suppress(ProcessLookupError):
                send(target, signal.SIGKILL)
        self._process.wait()
        self._process = None
        end = time.monotonic() + self.limit_s
        while any(alive(child) for child in children):
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name} left processes behind")
            time.sleep(0.01)
        (self.folder / "pid").write_text("")

    def pause(self) -> None:
        """Stop the server and all its processes as they are (SIGSTOP): connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after ``pause``; ``start`` does so too."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def wipe(self) -> None:
        """Kill the server and delete its data, so that ``start`` starts it empty."""
        self.kill()
        shutil.rmtree(self.data, ignore_errors=True)

    def close(self) -> None:
        """Stop the server for good, and delete its folder."""
        try:
            self.stop()
        finally:
            self._watchdog.communicate()

    @contextlib.contextmanager
    def proxied(self) -> Iterator[Proxy]:
        """A proxy to the server that can be disturbed. Its ``url`` leads through it."""
        port, target = self.behind_proxy
        with Proxy(target, port) as proxy:
            proxy.url = self.url_at(proxy.port)
            yield proxy

    def run(self, *command: str | Path) -> None:
        """Run one of the server's tools to its end, as the same user and with the same environment."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self._as_user())
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")

    @classmethod
    def _user(cls) -> str | None:
        return cls.user if os.getuid() == 0 else None

    def _as_user(self) -> dict[str, Any]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "JAVA_HOME") if name in os.environ}
        user: dict[str, Any] = {"user": name, "group": name, "extra_groups": ()} if (name := self._user()) else {}
        return user | {"cwd": self.folder, "env": kept | {"HOME": str(self.folder)} | self.environment()}


class GivenServer:
    """A server that somebody else runs, of which the tests know only the URL."""

    def __init__(self, name: str, url: str) -> None:
        self.url = url
        self.port = urlsplit(url).port
        self.running = True
        self._why = f"CHARGEGATE_TEST_{name.upper()}_URL is set, and this test needs a server of its own"

    def _skip(self) -> Any:
        pytest.skip(self._why)

    start = stop = kill = pause = resume = wipe = proxied = _skip

    def close(self) -> None:
        """Leave the server as it is: whoever started it closes it."""
