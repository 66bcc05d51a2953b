"""The peer: an ordinary Python service for the same work, FastAPI with Celery on Redis, ``requests`` and one row in
PostgreSQL (``peer/``), beside the embedded default.

Each has the core for its own processes; its servers, the load and the sink have the others. The service is measured
before and after the peer. Both decide by the same access list, sign callbacks and log. The peer's 202 means that Redis
has the task on disk, as its server has the same settings as in the measurement of the engines.
"""

import contextlib
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import uvloop
from rich.table import Table

import load
from engines import Measured, measuring, new_database, running
from plan import ALONE, Figures, Plan, one_core
from processes import SECRET, Role, Service, configure, free_port, new_folder, on_core, stop
from servers import engines as servers  # type: ignore[import-not-found]  # engines.py makes it found

HERE: Final = Path(__file__).resolve().parent
PEER: Final = HERE / "peer"
PROGRAMS: Final = HERE.parent / ".venv-peer" / "bin"
PROCESSES: Final = 4
AHEAD: Final = 256
START_S: Final = 60
QUIET: Final = ("--without-gossip", "--without-mingle", "--without-heartbeat")


@contextmanager
def peer(postgres: Any, redis: Any) -> Iterator[Service]:
    """Run the peer's processes."""
    if not (PROGRAMS / "celery").exists():
        raise load.Failed("the peer is not installed; `make peer` does that")
    with new_folder() as folder, contextlib.ExitStack() as stack:
        configure(folder, {})
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {
            "PEER_REDIS_URL": redis.url,
            "PEER_DATABASE_URL": new_database(postgres, (PEER / "schema.sql").read_text()),
            "PEER_DRIVERS": str(folder / "drivers.csv"),
            "PEER_SECRET": SECRET,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        port = free_port()
        commands: dict[Role, list[str]] = {
            "api": ["uvicorn", "api:app", "--host", "127.0.0.1", "--port", str(port)],
            "worker": ["celery", "-A", "tasks", "worker", "-l", "INFO", "-c", str(PROCESSES), *QUIET],
        }
        pids: list[tuple[Role, int]] = []
        logs: list[Path] = []
        for role, command in commands.items():
            logs.append(folder / f"{role}.log")
            with logs[-1].open("wb") as out:
                process = subprocess.Popen(
                    [*on_core(ALONE), str(PROGRAMS / command[0]), *command[1:]],
                    cwd=PEER,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            stack.callback(stop, process)
            pids.append((role, process.pid))
        for log, ready in zip(logs, ("Uvicorn running on", " ready."), strict=True):
            wait_for(log, ready)
        yield Service(port, pids, [])


def wait_for(log: Path, words: str) -> None:
    """Wait until the log has these words."""
    end = time.monotonic() + START_S
    while words not in (text := log.read_text(errors="replace")):
        if time.monotonic() > end:
            raise load.Failed(f"the peer did not start: {text[-1000:]}")
        time.sleep(0.1)


def measure(plan: Plan) -> Figures:
    """Processor time for a delivered callback, of each one's own processes and of its servers."""
    with one_core(), running(servers.Postgres) as postgres, running(servers.Redis) as redis:
        before = measure_service(plan)
        meters = {
            name: int((server.folder / "pid").read_text())
            for name, server in (("redis", redis), ("postgresql", postgres))
        }
        with peer(postgres, redis) as processes:
            measured = Measured(processes, plan.seconds * 2, meters)
            found = uvloop.run(measured.only_throughput(AHEAD))
        services = [before, measure_service(plan)]
    figures = {f"peer_{name}": figure for name, figure in found.items()}
    figures["peer_us"] = found["api_us"] + found["worker_us"]
    figures["peer_servers_us"] = found["redis_us"] + found["postgresql_us"]
    figures |= {name: statistics.mean(each[name] for each in services) for name in before}
    figures["times"] = figures["peer_us"] / figures["serve_us"]
    figures["times_per_second"] = figures["requests_per_second"] / figures["peer_requests_per_second"]
    table = Table("on one core", "delivered/s", "own processes", "its servers", title="the Python peer")
    table.add_row("the embedded default", f"{figures['requests_per_second']:,.0f}", f"{figures['serve_us']:.0f} µs", "")
    own, theirs = f"{figures['peer_us']:,.0f} µs", f"{figures['peer_servers_us']:,.0f} µs"
    table.add_row("FastAPI, Celery", f"{figures['peer_requests_per_second']:,.0f}", own, theirs)
    table.add_row("times", f"{figures['times_per_second']:.1f}", f"{figures['times']:.1f}", "")
    plan.console.print(table)
    return figures


def measure_service(plan: Plan) -> Figures:
    """The embedded default on the same core."""
    with measuring(["serve"], {}, plan.seconds, {}, core=ALONE) as measured:
        return uvloop.run(measured.only_throughput())
