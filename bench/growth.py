"""Growth: processor time of a request while few, many and very many requests wait in the embedded queue.

One service for each number of waiting requests runs at once on one core, each with a load of its own on the others, so
that only ratios within the same seconds are compared. A load sends one request for each callback that it receives, so
that the number of waiting requests stays what it is, and each step is one acceptance and one delivery.

growth.py --load is one such load: it prints the URL of its sink, starts when it reads a port, and then answers each
line with the number of its callbacks.
"""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvloop
from rich.table import Table

import load
from plan import ALONE, REST, Figures, Plan, one_core
from processes import DRIVERS, ENVIRONMENT, Service, cpu_seconds, peak_memory_mib, service

WAITING: Final = (1_000, 100_000, 1_000_000)
CONNECTIONS: Final = 16
FILL_LIMIT_S: Final = 600
WARM_S: Final = 2.0


async def serve_load() -> None:
    """The load, until standard input ends."""
    print(url := await load.sink(), flush=True)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    port = int(await reader.readline())

    async def press() -> None:
        # What left the backlog before the load began is replaced.
        replaced = CONNECTIONS + load.Sink.received
        async with load.pressed(port, load.bodies(url, load.tokens(DRIVERS)), CONNECTIONS, replaced):
            await asyncio.Event().wait()

    pressing = loop.create_task(press())
    while await reader.readline():
        if pressing.done():
            pressing.result()
        print(load.Sink.received, flush=True)
    pressing.cancel()


class Load:
    """A load in a process of its own."""

    def __init__(self) -> None:
        cores = ",".join(map(str, REST))
        command = ["taskset", "-c", cores, sys.executable, str(Path(__file__).resolve()), "--load"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise load.Failed("a load ended; its error is above")
        return line.strip()

    def tell(self, line: str) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def received(self) -> int:
        """Callbacks until now."""
        self.tell("")
        return int(self._line())

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


@contextmanager
def waiting(count: int) -> Iterator[tuple[Service, Load]]:
    """A service with so many waiting requests, and the load that is ready for it."""

    def fill(folder: Path) -> None:
        script = Path(__file__).resolve().parent / "fill.py"
        command = [sys.executable, str(script), str(count), loading.url]
        subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True, timeout=FILL_LIMIT_S)

    loading = Load()
    with contextlib.closing(loading), service(["serve"], {}, core=ALONE, prepare=fill) as running:
        yield running, loading


def measure(plan: Plan) -> Figures:
    """Processor time of a request in µs and peak memory in MiB, by the number of waiting requests."""
    figures: dict[str, Figures] = {}
    with one_core(), contextlib.ExitStack() as stack:
        # The largest is filled first, and delivers little of its backlog before the others are ready.
        sizes = sorted(WAITING[:2] if plan.quick else WAITING, reverse=True)
        all_of_them = {count: stack.enter_context(waiting(count)) for count in sizes}
        for running, loading in all_of_them.values():
            loading.tell(str(running.port))
        time.sleep(WARM_S)
        before = {count: spent(*both) for count, both in all_of_them.items()}
        time.sleep(plan.seconds * 2)
        for count, both in reversed(all_of_them.items()):
            seconds, received = spent(*both)
            done = received - before[count][1]
            if not done:
                raise load.Failed("callbacks stopped coming")
            us = (seconds - before[count][0]) / done * 1e6
            figures[str(count)] = {"us": us, "peak_mib": peak_memory_mib(both[0].pids[0][1])}
    few = next(iter(figures.values()))
    table = Table("waiting", "processor time", "of the smallest's", "peak memory", title="growth")
    for name, found in figures.items():
        found["ratio"] = found["us"] / few["us"]
        table.add_row(
            f"{int(name):,}", f"{found['us']:.0f} µs", f"{found['ratio']:.2f}", f"{found['peak_mib']:.0f} MiB"
        )
    plan.console.print(table)
    return figures


def spent(running: Service, loading: Load) -> tuple[float, int]:
    """Processor time in seconds and callbacks until now."""
    return cpu_seconds(running.pids[0][1]), loading.received()


if __name__ == "__main__":
    uvloop.run(serve_load())
