"""Isolation: what healthy destinations lose while half of the traffic goes to a black hole.

The hole takes connections and requests and never answers. The rate is the same with and without it, half of what fills
the core, so that only the destination of every second request differs. Latencies are those of the healthy half, from
when a request was due to its callback. Both kinds of traffic run for longer than ``callback.timeout_ms`` in a whole
run, so that the hole holds all that it may hold, and its circuit opens.
"""

from typing import Final

import uvloop
from rich.table import Table

import load
from cost import full
from engines import Measured, measuring, percentiles
from plan import ALONE, Figures, Plan, one_core

SHARE: Final = 0.5
HOLD: Final = 4
"""So many times the length of other measurements. Must be more than ``callback.timeout_ms`` in a whole run."""


def healthy(number: int) -> bool:
    """Whether a request is one of those that are measured."""
    return number % 2 == 0


async def turns(measured: Measured, plan: Plan) -> Figures:
    """First without the hole, then with it."""
    url, hole = await load.sink(), await load.black_hole()
    async with full(measured, url):
        rate = (await measured.spent())["requests_per_second"] * SHARE
    due = load.arrivals(rate, plan.seconds * (1 if plan.quick else HOLD))
    figures: Figures = {"rate": rate}
    for name, odd in {"alone": url, "with_hole": hole}.items():

        def target(number: int, odd: str = odd) -> str:
            return f"{url if healthy(number) else odd}/{number}"

        times = await load.open_loop(measured.port, due, measured.known, target, called_back=healthy)
        figures |= percentiles(f"{name}_answered", times.answered) | percentiles(name, times.called_back)
    figures["p99_ratio"] = figures["with_hole_p99_ms"] / figures["alone_p99_ms"]
    figures["answered_p99_ratio"] = figures["with_hole_answered_p99_ms"] / figures["alone_answered_p99_ms"]
    return figures


def measure(plan: Plan) -> Figures:
    """Percentiles of both, and their ratios."""
    with one_core(), measuring(["serve"], {}, plan.seconds, {}, core=ALONE) as measured:
        figures = uvloop.run(turns(measured, plan))
    table = Table("p50 / p99, ms", "all healthy", "half into a black hole", "p99 ratio")
    table.title = f"isolation, at {figures['rate']:,.0f} requests a second"
    for title, middle, ratio in (("healthy callbacks", "", "p99_ratio"), ("202", "_answered", "answered_p99_ratio")):
        cells = [
            " / ".join(f"{figures[f'{name}{middle}_p{share}_ms']:.1f}" for share in (50, 99))
            for name in ("alone", "with_hole")
        ]
        table.add_row(title, *cells, f"{figures[ratio]:.2f}")
    plan.console.print(table)
    return figures
