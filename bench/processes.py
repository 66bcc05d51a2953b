"""Starts the processes for a measurement, reads their processor time, and stops them."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import load

DRIVERS = 2_000
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CHARGEGATE_")}
SECRET = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldY"
START_S = 60
STOP_S = 15

Role = Literal["serve", "api", "worker"]


def free_port() -> int:
    """A port that no process uses at the moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def new_folder() -> Iterator[Path]:
    """An empty folder, removed after the ``with`` block."""
    path = Path(tempfile.mkdtemp(prefix="chargegate-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def configure(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write an access list, and a configuration that allows callbacks to this machine and signs them."""
    base = {
        "callback.allowed_networks": ["127.0.0.0/8"],
        "authorization.acl_file": "drivers.csv",
        "queue.max_size": 2_000_000,
        "queue.max_age_ms": 86_400_000,
        "callback.signing_secrets": [SECRET],
    }
    (folder / "drivers.csv").write_text("driver_token\n" + "\n".join(load.tokens(DRIVERS)) + "\n")
    # A JSON value is also a TOML value.
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in {**base, **settings}.items()]
    (folder / "chargegate.toml").write_text("".join(lines))


def cpu_seconds(pid: int) -> float:
    """The user and system time of a process and its children until now."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:  # The process has ended, and its parent's time now includes its time.
        return 0
    children: list[str] = []
    for thread in threads:
        with contextlib.suppress(OSError):
            children += (thread / "children").read_text().split()
    return sum(map(int, fields[11:15])) / CLOCK_TICKS + sum(cpu_seconds(int(child)) for child in children)


def on_core(core: int | None) -> list[str]:
    """What stands before a command, so that it uses this core only."""
    return [] if core is None else ["taskset", "-c", str(core)]


def peak_memory_mib(pid: int) -> float:
    """The largest resident size of the process until now."""
    line = next(text for text in Path(f"/proc/{pid}/status").read_text().splitlines() if text.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def stop(process: subprocess.Popen[Any]) -> None:
    """Terminate the process, or kill it if that takes too long."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Service(NamedTuple):
    """A running set-up: the port for requests, and the processes with their roles."""

    port: int
    pids: list[tuple[Role, int]]
    logs: list[Path]

    def warnings(self) -> str:
        """The last warnings and errors in each process's log."""
        lines = []
        for log in self.logs:
            warnings = [line for line in log.read_text(errors="replace").splitlines() if '"level":"info"' not in line]
            lines += [f"{log.parent.name}: {line[:400]}" for line in warnings[-4:]]
        return "\n".join(lines)


@contextmanager
def service(
    roles: Sequence[Role],
    settings: Mapping[str, Any],
    *,
    core: int | None = None,
    prepare: Callable[[Path], None] = lambda _: None,
) -> Iterator[Service]:
    """Run the service's processes, each in its own folder, and wait until all are ready.

    ``core``: they use this core only. ``prepare`` is called with each configured folder before its process starts.
    """
    with new_folder() as top, contextlib.ExitStack() as stack:
        started: list[tuple[Role, subprocess.Popen[bytes], Path]] = []
        for number, role in enumerate(roles, 1):
            folder = top / f"{role}-{number}"
            folder.mkdir()
            defaults = {"server.port": 0, "worker.port": 0, "server.shutdown_grace_ms": 2000, "logging.format": "json"}
            configure(folder, {**defaults, **settings})
            prepare(folder)
            command = [*on_core(core), sys.executable, "-m", "chargegate", role]
            with (folder / "log").open("wb") as out:
                process = subprocess.Popen(
                    command, cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=out, stderr=out
                )
            stack.callback(stop, process)
            started.append((role, process, folder / "log"))
        ports = {role: ready_port(role, process, log) for role, process, log in started}
        pids = [(role, process.pid) for role, process, _ in started]
        yield Service(ports["serve" if "serve" in ports else "api"], pids, [log for *_, log in started])


def ready_port(role: Role, process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until the process logs that it is ready. Returns its port."""
    limit = time.monotonic() + START_S
    while True:
        for line in log.read_bytes().splitlines():
            if b'"event":"ready"' in line and line.endswith(b"}"):
                return int(json.loads(line)["url"].rpartition(":")[2])
        if process.poll() is not None or time.monotonic() > limit:
            raise load.Failed(f"chargegate {role} did not start:\n{log.read_text(errors='replace')[-1000:]}")
        time.sleep(0.05)
