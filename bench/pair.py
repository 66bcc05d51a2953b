"""Compares two trees of the service: processor time for one delivered callback, of both in the same seconds.

Usage: pair.py OLD NEW [--rounds N] [--seconds S] [--rate R] [--queue ENGINE]; OLD and NEW are folders with
``src/chargegate``.

The speed of a shared machine drifts by a third within minutes, so that runs one after the other do not show a
difference of a few per cent. Here both variants run at once on one core, each with a load and a sink of its own on the
other cores, and only the ratio within a pair is kept. Each round starts them anew and swaps which is started first.
Without ``--rate`` each is given as much as it can take; with it each gets so many requests a second. Identical trees
give 0.98 to 1.02. Where ``perf`` may count, the ratio of instructions in user mode is a second figure.

With ``--queue redis`` (kafka, postgresql, rabbitmq) each variant is ``chargegate api`` and ``chargegate worker``, with
servers of its own for the queue and for PostgreSQL, which share the other cores with the loads. What these spent is a
figure of its own.

A table goes to standard error, and the figures as JSON to standard output.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

import load
from engines import ENGINES, NAMES, SPLIT, urls
from engines import SETTINGS as KEYS
from engines import running as running_server
from processes import CLOCK_TICKS, DRIVERS, ENVIRONMENT, Role, configure, cpu_seconds, new_folder, ready_port, stop

HERE = Path(__file__).resolve().parent
CORES = sorted(os.sched_getaffinity(0))
CONNECTIONS = 64
AHEAD = 1_000
WARM_S = 2.0
SECRET = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldY"
SETTINGS = {
    "server.port": 0,
    "server.shutdown_grace_ms": 2000,
    "logging.format": "json",
    "callback.signing_secrets": [SECRET],
}
"""The embedded default with audit, signing and the log on."""


async def serve_load(port: int, rate: float) -> None:
    """Load one service until standard input ends. For each line that comes in, the number of callbacks goes out."""
    url = await load.sink()
    source = load.bodies(url, load.tokens(DRIVERS))
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    loading = loop.create_task(_press(port, source) if rate == 0 else _pace(port, source, rate))
    while await reader.readline():
        if loading.done():
            loading.result()
        print(load.Sink.received, flush=True)
    loading.cancel()


async def _press(port: int, source: Iterator[bytes]) -> None:
    async with load.pressed(port, source, CONNECTIONS, AHEAD):
        await asyncio.Event().wait()


async def _pace(port: int, source: Iterator[bytes], rate: float) -> None:
    """So many requests a second, at random times, whatever became of the others. Even times would share the timers of
    the service, or never."""
    clients = await load.connect(port, CONNECTIONS)
    due, sent = time.perf_counter(), 0
    rng = random.Random(port)
    posting: set[asyncio.Task[int]] = set()
    while True:
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.get_running_loop().create_task(clients[sent % CONNECTIONS].post(next(source)))
        posting.add(task)
        task.add_done_callback(posting.discard)
        sent += 1


class Servers(NamedTuple):
    """The servers of one variant, by their process ids. ``new`` makes a queue and a database there, as settings for two
    processes; without servers there are none, and one process does it all."""

    new: Callable[[], Mapping[str, Any]] = dict
    pids: Sequence[int] = ()


class Variant:
    """One tree that runs, with its load."""

    def __init__(self, tree: Path, folder: Path, rate: float, servers: Servers) -> None:
        shared = servers.new()
        self._servers = servers.pids
        self._processes: dict[Role, tuple[subprocess.Popen[bytes], Path]] = {}
        environment = {**ENVIRONMENT, "PYTHONPATH": str(tree.resolve() / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        roles: Sequence[Role] = SPLIT if shared else ("serve",)
        for role in roles:
            at = folder / role
            at.mkdir()
            configure(at, {**SETTINGS, **shared})
            with (at / "log").open("wb") as out:
                process = subprocess.Popen(
                    ["taskset", "-c", str(CORES[0]), sys.executable, "-m", "chargegate", role],
                    cwd=at,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            self._processes[role] = process, at / "log"
        self._load: subprocess.Popen[str] | None = None
        self._rate = rate
        self._counter: subprocess.Popen[bytes] | None = None
        self._counted = folder / "instructions"

    def wait(self) -> None:
        """Until it is ready."""
        ports = {role: ready_port(role, *started) for role, started in self._processes.items()}
        self.port = next(iter(ports.values()))  # a worker takes no requests

    def press(self) -> None:
        """Begin to load it."""
        cores = ",".join(map(str, CORES[1:] or CORES))
        self._load = subprocess.Popen(
            ["taskset", "-c", cores, sys.executable, str(HERE / "pair.py"), "--load", str(self.port), str(self._rate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def delivered(self) -> int:
        """Callbacks that its sink received until now."""
        assert self._load is not None
        assert self._load.stdin is not None
        assert self._load.stdout is not None
        self._load.stdin.write("\n")
        self._load.stdin.flush()
        line = self._load.stdout.readline()
        if not line:
            ends = [log.read_text(errors="replace")[-1000:] for _, log in self._processes.values()]
            raise load.Failed("the load ended:\n" + "\n".join(ends))
        return int(line)

    def spent(self) -> float:
        """Seconds of processor time until now, of all its threads."""
        return sum(_spent(process.pid) for process, _ in self._processes.values())

    def servers_spent(self) -> float:
        """Seconds of processor time of its servers until now."""
        return sum(map(cpu_seconds, self._servers))

    def count(self) -> None:
        """Begin to count instructions, where that is possible."""
        if shutil.which("perf"):
            command = ["perf", "stat", "-x", ",", "-e", "instructions:u", "-o", str(self._counted)]
            self._counter = subprocess.Popen(
                [*command, "-p", ",".join(str(process.pid) for process, _ in self._processes.values())],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def instructions(self) -> float:
        """Those that were counted; 0 where nothing could be counted."""
        if self._counter is not None:
            self._counter.send_signal(signal.SIGINT)
            self._counter.wait()
            with contextlib.suppress(OSError, ValueError):
                lines = self._counted.read_text().splitlines()
                return float(next(line for line in lines if "instructions" in line).partition(",")[0])
        return 0

    def close(self) -> None:
        """End the load first, so that the service has nothing to drain."""
        if self._load is not None:
            self._load.kill()
            self._load.wait()
        for process, _ in self._processes.values():
            stop(process)


def _spent(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


@contextmanager
def serving(queue: str) -> Iterator[Servers]:
    """Run the servers that the queue needs."""
    if not queue:
        yield Servers()
        return
    engine, database = (next(each for each in ENGINES if each.name == name) for name in (queue, "postgresql"))
    with running_server(database.kind) as postgres, contextlib.ExitStack() as stack:
        server = postgres if engine is database else stack.enter_context(running_server(engine.kind))
        pids = {int((each.folder / "pid").read_text()) for each in (server, postgres)}
        yield Servers(lambda: {**KEYS, "worker.port": 0, **urls(engine, server, postgres)}, tuple(pids))


@contextmanager
def running(trees: Sequence[tuple[Path, Servers]], rate: float, *, loaded: bool = True) -> Iterator[list[Variant]]:
    """All variants, started in this order, with a load of each unless they are not to be ``loaded``."""
    with contextlib.ExitStack() as stack:
        variants = []
        for tree, servers in trees:
            variants.append(Variant(tree, stack.enter_context(new_folder()), rate, servers))
            stack.callback(variants[-1].close)
        for variant in variants:
            variant.wait()
            if loaded:
                variant.press()
        yield variants


def measure(trees: Sequence[tuple[Path, Servers]], seconds: float, rate: float) -> list[dict[str, float]]:
    """What each variant spent for a delivered callback, in the order of ``trees``."""
    with running(trees, rate) as variants:
        time.sleep(WARM_S)
        for variant in variants:
            variant.count()
        servers = [variant.servers_spent() for variant in variants]
        began = [(variant.spent(), variant.delivered()) for variant in variants]
        started = time.perf_counter()
        time.sleep(seconds)
        ended = [(variant.spent(), variant.delivered()) for variant in variants]
        elapsed = time.perf_counter() - started
        servers = [variant.servers_spent() - before for variant, before in zip(variants, servers, strict=True)]
        figures = []
        for variant, (spent, before), (until, after), of_servers in zip(variants, began, ended, servers, strict=True):
            done = after - before
            if not done:
                raise load.Failed("callbacks stopped coming")
            figures.append(
                {
                    "us": (until - spent) / done * 1e6,
                    "per_second": done / elapsed,
                    "servers_us": of_servers / done * 1e6,
                    "instructions": variant.instructions() / done,
                }
            )
        return figures


def main(options: argparse.Namespace) -> None:
    """Measure the pair, round after round."""
    os.sched_setaffinity(0, CORES[1:] or CORES)  # that of the servers too
    with serving(options.queue) as old, serving(options.queue) as new:
        rounds(options, (options.old, old), (options.new, new))


def rounds(options: argparse.Namespace, *both: tuple[Path, Servers]) -> None:
    """The rounds, and what comes of them."""
    pairs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        swapped = bool(number % 2)
        figures = measure(both[::-1] if swapped else both, options.seconds, options.rate)
        old, new = reversed(figures) if swapped else figures
        ratio = new["us"] / old["us"]
        pairs.append({"old": old, "new": new, "ratio": ratio})
        line = (
            f"old {old['us']:6.0f} µs {old['per_second']:6.0f}/s   new {new['us']:6.0f} µs {new['per_second']:6.0f}/s"
        )
        if old["instructions"]:
            line += f"   instructions {new['instructions'] / old['instructions']:.3f}"
        if old["servers_us"]:
            line += f"   servers {old['servers_us']:.0f} and {new['servers_us']:.0f} µs"
        print(f"{line}   ratio {ratio:.3f}", file=sys.stderr, flush=True)
    ratios: list[float] = [pair["ratio"] for pair in pairs]
    summary = {"ratio": statistics.geometric_mean(ratios), "lowest": min(ratios), "highest": max(ratios)}
    print("ratio {ratio:.3f} ({lowest:.3f} to {highest:.3f})".format(**summary), file=sys.stderr)
    print(json.dumps({**summary, "pairs": pairs}))


def parse(arguments: list[str]) -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=4, help="pairs; an even number uses both orders alike")
    parser.add_argument("--seconds", type=float, default=8, help="length of each measurement")
    parser.add_argument("--rate", type=float, default=0, help="requests a second for each; 0: as many as it takes")
    parser.add_argument("--queue", choices=NAMES, default="", help="two processes on this queue, with PostgreSQL")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        uvloop.run(serve_load(int(sys.argv[2]), float(sys.argv[3])))
    else:
        main(parse(sys.argv[1:]))
