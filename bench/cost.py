"""The headline: processor time for one delivered callback on one core, with everything on, beside its floor.

The service is the embedded default, with durable commits, the audit's file, signatures and the log. It alone has the
core; the load generator and the sink have the others. The floor is what a bare protocol spends to accept a request and
to answer it, and another to post a callback (``bare.py``, ``post.py``), with nothing in between. A second, higher floor
is a bare ASGI application on the service's server, and a loop around the service's client. Service and floors take
turns in short rounds, because the speed of a shared machine drifts by a third within minutes, and a ratio is the median
of the rounds' ratios.
"""

import asyncio
import contextlib
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import uvloop
from rich.table import Table

import load
from engines import AHEAD, CONNECTIONS, LOW_RATE, Measured, measuring
from plan import ALONE, Figures, Plan, one_core
from processes import DRIVERS, cpu_seconds, on_core, peak_memory_mib, stop

HERE: Final = Path(__file__).parent
ROUNDS: Final = 4
POSTS_A_SECOND: Final = 8_000
POST_CONNECTIONS: Final = 20
WARM_S: Final = 0.5
APPLICATIONS: Final = ("protocol", "asgi")
CLIENTS: Final = ("bare", "own", "aiohttp")


@contextmanager
def bare_application(kind: str) -> Iterator[tuple[int, int]]:
    """Run a bare application on the core. Gives its process id and its port."""
    command = [*on_core(ALONE), sys.executable, str(HERE / "bare.py"), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise load.Failed("bare.py did not start")
        yield process.pid, int(line)
    finally:
        stop(process)


@asynccontextmanager
async def full(measured: Measured, url: str) -> AsyncIterator[None]:
    """In the ``with`` block the service has as much to do as it can."""
    async with load.pressed(measured.port, load.bodies(url, measured.known), CONNECTIONS, AHEAD):
        await asyncio.sleep(WARM_S)
        yield


async def bare_accept(pid: int, port: int, seconds: float) -> float:
    """Processor time of the bare application for a request in µs."""
    before = cpu_seconds(pid)
    source = load.bodies("http://127.0.0.1:1/callback", load.tokens(DRIVERS))
    count = await load.answered(port, source, seconds, CONNECTIONS)
    return (cpu_seconds(pid) - before) / count * 1e6


async def bare_post(kind: str, url: str, seconds: float) -> float:
    """Processor time of a client for a callback in µs."""
    count = str(int(POSTS_A_SECOND * seconds))
    command = [*on_core(ALONE), sys.executable, str(HERE / "post.py"), kind, url, count, str(POST_CONNECTIONS)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode:
        raise load.Failed(f"post.py {kind} failed")
    return float(output)


async def rounds(measured: Measured, bare: dict[str, tuple[int, int]], plan: Plan) -> list[Figures]:
    """Service and floor in turns. The first round, which is left out, warms both up."""
    url = await load.sink()
    found = []
    for number in range((2 if plan.quick else ROUNDS) + 1):
        async with full(measured, url):
            figures = await measured.spent()
        for kind, application in bare.items():
            figures[f"accept_{kind}_us"] = await bare_accept(*application, plan.seconds / 2)
        for kind in CLIENTS if not plan.quick else CLIENTS[:-1]:
            figures[f"post_{kind}_us"] = await bare_post(kind, url, plan.seconds / 4)
        figures["floor_us"] = figures["accept_protocol_us"] + figures["post_bare_us"]
        figures["second_floor_us"] = figures["accept_asgi_us"] + figures["post_own_us"]
        figures["of_floor"] = figures["floor_us"] / figures["serve_us"]
        figures["of_second_floor"] = figures["second_floor_us"] / figures["serve_us"]
        figures |= await measured.at_low_rate(url)
        if number:
            found.append(figures)
    return found


def measure(plan: Plan) -> Figures:
    """Medians of the rounds; of the ratio also the lowest and the highest."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_core())
        bare = {kind: stack.enter_context(bare_application(kind)) for kind in APPLICATIONS}
        measured = stack.enter_context(measuring(["serve"], {}, plan.seconds, {}, core=ALONE))
        found = uvloop.run(rounds(measured, bare, plan))
        figures = {name: statistics.median(each[name] for each in found) for name in found[0]}
        ratios = sorted(each["of_floor"] for each in found)
        figures |= {"of_floor_lowest": ratios[0], "of_floor_highest": ratios[-1]}
        figures["peak_mib"] = peak_memory_mib(measured.pids[0][1])
    plan.console.print(_table(figures))
    return figures


def _table(figures: Figures) -> Table:
    table = Table(title="processor time for one delivered callback, on one core", show_header=False)
    table.add_row("the embedded default, everything on", f"{figures['serve_us']:.0f} µs")
    table.add_row("the floor: bare accept and bare post", f"{figures['floor_us']:.0f} µs")
    spread = f"{figures['of_floor_lowest']:.2f} to {figures['of_floor_highest']:.2f}"
    table.add_row("  floor / service", f"{figures['of_floor']:.2f} ({spread})")
    table.add_row("a bare ASGI application and the service's client", f"{figures['second_floor_us']:.0f} µs")
    table.add_row("  that / service", f"{figures['of_second_floor']:.2f}")
    for kind, title in {"own": "the service's client", "aiohttp": "aiohttp"}.items():
        if f"post_{kind}_us" in figures:
            table.add_row(
                f"a post by {title}; bare {figures['post_bare_us']:.0f} µs", f"{figures[f'post_{kind}_us']:.0f} µs"
            )
    table.add_row(f"at {LOW_RATE} requests a second", f"{figures['low_serve_us']:.0f} µs")
    table.add_row("delivered a second, when the core is full", f"{figures['requests_per_second']:,.0f}")
    table.add_row("peak memory", f"{figures['peak_mib']:.0f} MiB")
    return table
