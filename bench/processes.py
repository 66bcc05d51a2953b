"""Processes that a measurement starts: where they live, what they cost, and how they end."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import load

DRIVERS = 2_000
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CHARGEGATE_")}
START_S = 60
STOP_S = 15

Role = Literal["serve", "api", "worker"]


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def new_folder() -> Iterator[Path]:
    """Empty, and gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="chargegate-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def configure(folder: Path, settings: Mapping[str, Any]) -> None:
    """A configuration that calls back to this machine, and an access list."""
    base = {
        "callback.allowed_networks": ["127.0.0.0/8"],
        "authorization.acl_file": "drivers.csv",
        "queue.max_size": 2_000_000,
        "queue.max_age_ms": 86_400_000,
    }
    (folder / "drivers.csv").write_text("driver_token\n" + "\n".join(load.tokens(DRIVERS)) + "\n")
    # JSON's values are TOML's.
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in {**base, **settings}.items()]
    (folder / "chargegate.toml").write_text("".join(lines))


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process, and of those that it started."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:  # it has ended: its parent has its time now
        return 0
    children: list[str] = []
    for thread in threads:
        with contextlib.suppress(OSError):
            children += (thread / "children").read_text().split()
    return sum(map(int, fields[11:15])) / CLOCK_TICKS + sum(cpu_seconds(int(child)) for child in children)


def stop(process: subprocess.Popen[Any]) -> None:
    """In order, or by force where that takes long."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Service(NamedTuple):
    """A running set-up: who takes requests, and the process of each role (several of ``worker``)."""

    port: int
    pids: list[tuple[Role, int]]
    logs: list[Path]

    def said(self) -> str:
        """The last that each process complained of."""
        lines = []
        for log in self.logs:
            told = [line for line in log.read_text(errors="replace").splitlines() if '"level":"info"' not in line]
            lines += [f"{log.parent.name}: {line[:400]}" for line in told[-4:]]
        return "\n".join(lines)


@contextmanager
def service(roles: Sequence[Role], settings: Mapping[str, Any]) -> Iterator[Service]:
    """The service on the whole machine, each process in a folder of its own, once all of them are ready."""
    with new_folder() as top, contextlib.ExitStack() as stack:
        started: list[tuple[Role, subprocess.Popen[bytes], Path]] = []
        for number, role in enumerate(roles, 1):
            folder = top / f"{role}-{number}"
            folder.mkdir()
            defaults = {"server.port": 0, "worker.port": 0, "server.shutdown_grace_ms": 2000, "logging.format": "json"}
            configure(folder, {**defaults, **settings})
            command = [sys.executable, "-m", "chargegate", role]
            with (folder / "log").open("wb") as out:
                process = subprocess.Popen(
                    command, cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=out, stderr=out
                )
            stack.callback(stop, process)
            started.append((role, process, folder / "log"))
        ports = {role: _ready(role, process, log) for role, process, log in started}
        pids = [(role, process.pid) for role, process, _ in started]
        yield Service(ports["serve" if "serve" in ports else "api"], pids, [log for *_, log in started])


def _ready(role: Role, process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until it says that it is ready; its port."""
    limit = time.monotonic() + START_S
    while True:
        for line in log.read_bytes().splitlines():
            if b'"event":"ready"' in line and line.endswith(b"}"):
                return int(json.loads(line)["url"].rpartition(":")[2])
        if process.poll() is not None or time.monotonic() > limit:
            raise load.Failed(f"chargegate {role} did not start:\n{log.read_text(errors='replace')[-1000:]}")
        time.sleep(0.05)
