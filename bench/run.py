"""``make bench``: the service on one core, compared with its floor; then the distributed set-up (``engines.py``) and
the audit's sinks (``sinks.py``). Where they are asked for: the audit (``audit.py``) and the dashboard
(``dashboard.py``) with very many decisions, and the audit's chains (``chain.py``).

In the first part the service, and each floor, runs alone on one core, and the load generator has the other cores.
Compare the ratios: absolute numbers depend on the machine. Tables go to standard error, and all figures as JSON to
standard output. The exit status is 1 if something could not be measured.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

import audit
import chain
import dashboard
import decisions
import engines
import load
import sinks
from chargegate.observe import configure_logging
from processes import DRIVERS, ENVIRONMENT, configure, cpu_seconds, free_port, new_folder

HERE = Path(__file__).parent
CORES = sorted(os.sched_getaffinity(0))
USUAL = ("core", "engines", "workers", "sinks")
LARGE = ("audit", "dashboard", "chain")
"""These make databases with very many decisions first. With ten million that takes six minutes for each database."""


@contextmanager
def on_one_core(command: list[str], cwd: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process alone on the first core, and wait until it listens."""
    with (cwd / "log").open("wb") as out:
        process = subprocess.Popen(
            ["taskset", "-c", str(CORES[0]), *command], cwd=cwd, env=ENVIRONMENT, stderr=out, stdout=out
        )
    try:
        limit = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > limit:
                raise SystemExit(f"did not start: {(cwd / 'log').read_text()[-500:]}")
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def peak_memory_mib(pid: int) -> float:
    """The largest resident size of the process until now."""
    line = next(text for text in Path(f"/proc/{pid}/status").read_text().splitlines() if text.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def prepare(folder: Path, port: int, **changes: Any) -> list[str]:
    """Write a configuration and an access list. Returns the command that serves them."""
    configure(folder, {"server.port": port, **changes})
    return [sys.executable, "-m", "chargegate", "serve"]


class Bench:
    """One run, with every figure by its name."""

    def __init__(self, seconds: float, backlog: int) -> None:
        self.seconds = seconds
        self.backlog = backlog
        self.figures: dict[str, float] = {}
        self.console = Console(stderr=True)

    async def bare_accept(self) -> None:
        """Measure the floor of accepting, and its latency at half of the service's rate."""
        port = free_port()
        source = load.bodies("http://127.0.0.1:1/callback", load.tokens(DRIVERS))
        with new_folder() as folder, on_one_core([sys.executable, str(HERE / "bare.py"), str(port)], folder, port):
            await load.saturate(port, source, 3_000, 64, None)
            guess = await load.saturate(port, source, 10_000, 64, None)
            self.figures["bare_accept"] = await load.saturate(port, source, int(guess * self.seconds), 64, None)
            latencies = await load.steady(port, source, self.figures["end_to_end"] / 2, self.seconds)
            self.latency("bare", latencies)

    async def bare_post(self, kind: str) -> None:
        """Measure the floor of calling back."""
        url = await load.sink()
        command = [sys.executable, str(HERE / "post.py"), kind, url, str(self.seconds), "20"]
        process = await asyncio.create_subprocess_exec(
            "taskset", "-c", str(CORES[0]), *command, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        self.figures[f"bare_post_{kind}"] = float(output)

    async def service(self) -> None:
        """Measure the service end to end: each request is accepted, decided, recorded, audited and delivered."""
        url, port = await load.sink(), free_port()
        source = load.bodies(url, load.tokens(DRIVERS))
        with new_folder() as folder, on_one_core(prepare(folder, port), folder, port) as process:
            guess = await load.saturate(port, source, 4_000, 64, 1_000)
            before = cpu_seconds(process.pid)
            count = int(guess * self.seconds)
            self.figures["end_to_end"] = await load.saturate(port, source, count, 64, 1_000)
            self.figures["cpu_us"] = (cpu_seconds(process.pid) - before) / count * 1e6
            self.latency("service", await load.steady(port, source, self.figures["end_to_end"] / 2, self.seconds))

    def latency(self, whose: str, latencies: list[float]) -> None:
        """Keep the median and the 99th percentile, in ms."""
        self.figures[f"{whose}_p50_ms"] = latencies[len(latencies) // 2] * 1e3
        self.figures[f"{whose}_p99_ms"] = latencies[len(latencies) * 99 // 100] * 1e3

    async def waiting(self) -> None:
        """Measure the processor time of a request with a small backlog, and with a large one."""
        for name, count in {"few": 10, "many": self.backlog}.items():
            url, port = await load.sink(), free_port()
            source = load.bodies(url, load.tokens(DRIVERS))
            with new_folder() as folder:
                command = prepare(folder, port, **{"queue.consumer_concurrency": 8})
                fill = [sys.executable, str(HERE / "fill.py"), str(count), url]
                subprocess.run(fill, cwd=folder, env=ENVIRONMENT, check=True)
                with on_one_core(command, folder, port) as process:
                    batch = 5_000
                    await load.saturate(port, source, 1_000, 16, None)
                    before = cpu_seconds(process.pid), load.Sink.received
                    rounds = [await self.both(port, source, batch) for _ in range(3)]
                    spent = cpu_seconds(process.pid) - before[0]
                    done = sum(rounds) + load.Sink.received - before[1]
                    self.figures[f"{name}_cpu_us"] = spent / done * 1e6
                    self.figures[f"{name}_mib"] = peak_memory_mib(process.pid)

    async def both(self, port: int, source: Iterator[bytes], count: int) -> int:
        """Send a batch while the worker delivers. Returns the number of accepted requests."""
        await load.saturate(port, source, count, 16, None)
        return count

    def show(self) -> None:
        """Print the table."""
        figures = self.figures
        for kind in ("own", "aiohttp"):
            floor = 1 / (1 / figures["bare_accept"] + 1 / figures[f"bare_post_{kind}"])
            figures[f"floor_{kind}"] = floor
            figures[f"ratio_{kind}"] = figures["end_to_end"] / floor
        figures["backlog_ratio"] = figures["many_cpu_us"] / figures["few_cpu_us"]
        rows = [
            ("bare ASGI application, decodes and answers", f"{figures['bare_accept']:,.0f} /s"),
            ("bare client, posts the callback: aiohttp", f"{figures['bare_post_aiohttp']:,.0f} /s"),
            ("bare client, posts the callback: our own", f"{figures['bare_post_own']:,.0f} /s"),
            ("accepted and delivered, durable, audit on", f"{figures['end_to_end']:,.0f} /s"),
            ("  of the floor with aiohttp", f"{figures['ratio_aiohttp']:.2f}"),
            ("  of the floor with our own client", f"{figures['ratio_own']:.2f}"),
            ("  processor time a request", f"{figures['cpu_us']:.0f} µs"),
            (
                "202 at half of that rate, p50 / p99",
                f"{figures['service_p50_ms']:.2f} / {figures['service_p99_ms']:.2f} ms",
            ),
            (
                "  bare application at the same rate",
                f"{figures['bare_p50_ms']:.2f} / {figures['bare_p99_ms']:.2f} ms",
            ),
            (
                f"cost of a request, {self.backlog:,} waiting : 10 waiting",
                f"{figures['backlog_ratio']:.2f}",
            ),
            (f"peak memory with {self.backlog:,} waiting", f"{figures['many_mib']:.0f} MiB"),
        ]
        table = Table(title="chargegate on one core", show_header=False)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    async def run(self) -> None:
        """Measure everything once, with floor and service in turns, because the speed of the machine may change."""
        for step in (
            self.service(),
            self.bare_post("aiohttp"),
            self.bare_post("own"),
            self.bare_accept(),
            self.waiting(),
        ):
            await step
        self.show()


def rounded(figures: Any) -> Any:
    """Figures in nested dicts, rounded to three digits."""
    if isinstance(figures, dict):
        return {name: rounded(value) for name, value in figures.items()}
    return round(figures, 3)


def main(options: argparse.Namespace) -> bool:
    """Measure the chosen parts. Returns whether everything could be measured."""
    figures: dict[str, Any] = {}
    if "core" in options.only:
        if len(CORES) > 1:
            os.sched_setaffinity(0, CORES[1:])
        bench = Bench(options.seconds, options.backlog)
        uvloop.run(bench.run())
        figures |= bench.figures
        os.sched_setaffinity(0, CORES)
    distributed = engines.Distributed(options.seconds, Console(stderr=True))
    if "engines" in options.only:
        distributed.run_engines(options.engines)
        figures["engines"] = distributed.engines
    if "workers" in options.only:
        distributed.run_workers()
        figures["workers"] = distributed.workers
    distributed.show()
    copies = sinks.Sinks(options.seconds, Console(stderr=True))
    if "sinks" in options.only:
        copies.run()
        figures["sinks"] = copies.figures
    copies.show()
    complete = large(options, figures)
    print(json.dumps(rounded(figures)))
    return complete and not (distributed.failed or copies.failed)


def large(options: argparse.Namespace, figures: dict[str, Any]) -> bool:
    """Measure the parts with many decisions. Returns whether everything could be measured."""
    configure_logging("error")
    console = Console(stderr=True, width=120)
    pages = dashboard.Dashboard(options.seconds, options.rows, console)
    queries = audit.Audit(options.databases, options.rows, console)
    if {"audit", "dashboard"} & set(options.only):
        with decisions.databases(options.databases, options.rows, options.keep, console) as filled:
            if "dashboard" in options.only:
                pages.run(options.databases, filled)
                figures["dashboard"] = pages.figures
            if "audit" in options.only:
                queries.run(filled, drop=options.keep is None)
                figures["audit"] = queries.figures
    chains = chain.Chains(1_000_000, console)
    if "chain" in options.only:
        chains.run(options.databases)
        figures["chain"] = chains.figures
    return not (pages.failed or chains.failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="length of each measurement")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="requests that wait in the large backlog")
    parser.add_argument("--only", nargs="+", choices=USUAL + LARGE, default=USUAL, help="parts to measure")
    parser.add_argument("--databases", nargs="+", choices=decisions.KINDS, default=decisions.KINDS)
    parser.add_argument("--rows", type=int, nargs=2, default=[10_000, 10_000_000], help="few and many decisions")
    parser.add_argument("--keep", type=Path, help="a folder in which the databases stay for another run")
    parser.add_argument("--engines", nargs="+", choices=engines.NAMES, default=engines.NAMES)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Like Ctrl-C, so that every process is stopped.
    try:
        sys.exit(not main(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit(130)
