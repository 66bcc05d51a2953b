"""Latency over load: an open loop at some shares of the rate that fills the core.

Requests come at random times, as from clients that know nothing of each other, and a latency counts from the time at
which a request was due, so that none is hidden by a service that stands still (no coordinated omission). The bare
application gets the same schedule on the same core. The rate of a full core is measured anew before each level, because
the speed of a shared machine drifts.
"""

import itertools
from typing import Any, Final

import uvloop
from rich.table import Table

import load
from cost import bare_application, full
from engines import Measured, measuring
from plan import ALONE, Figures, Plan, one_core

LEVELS: Final = (25, 50, 65, 80, 90)
QUICK: Final = (25, 50, 80)
"""Per cent of the rate of a full core."""
ROUNDS: Final = 3


async def levels(measured: Measured, bare_port: int, plan: Plan) -> dict[str, Figures]:
    """Figures of each level, from all its rounds together."""
    url = await load.sink()
    found: dict[int, dict[str, list[float]]] = {}
    for number, level in itertools.product(range(1 if plan.quick else ROUNDS), QUICK if plan.quick else LEVELS):
        async with full(measured, url):
            rate = (await measured.spent())["requests_per_second"] * level / 100
        due = load.arrivals(rate, plan.seconds, seed=number)
        times = await load.open_loop(
            measured.port, due, measured.known, (url + "/{}").format, called_back=lambda _: True
        )
        bare = await load.open_loop(bare_port, due, measured.known)
        kept = found.setdefault(level, {})
        kept.setdefault("rate", []).append(rate)
        for name, latencies in (times._asdict() | {"bare": bare.answered}).items():
            kept.setdefault(name, []).extend(latencies)
    return {str(level): summary(kept) for level, kept in found.items()}


def summary(kept: dict[str, list[float]]) -> Figures:
    """Percentiles in ms, and the mean rate."""
    figures: Figures = {"rate": sum(kept["rate"]) / len(kept["rate"])}
    for name in ("sent", "answered", "called_back", "bare"):
        ordered = sorted(kept[name])
        figures |= {f"{name}_p{title}_ms": load.percentile(ordered, share) * 1e3 for title, share in SHARES.items()}
    figures["of_bare_p99"] = figures["answered_p99_ms"] / figures["bare_p99_ms"]
    return figures


SHARES: Final = {"50": 0.5, "99": 0.99, "999": 0.999}


def measure(plan: Plan) -> Figures:
    """The figures by level, in per cent."""
    with (
        one_core(),
        bare_application("asgi") as (_, port),
        measuring(["serve"], {}, plan.seconds, {}, core=ALONE) as measured,
    ):
        figures: dict[str, Any] = uvloop.run(levels(measured, port, plan))
    table = Table("load", "/s", "202, ms", "bare, ms", "p99 / bare", "called back, ms", "generator late, ms")
    table.title = "latency from when a request was due, p50 / p99 / p99.9"
    for level, found in figures.items():
        cells = [
            " / ".join(f"{found[f'{name}_p{title}_ms']:.1f}" for title in SHARES)
            for name in ("answered", "bare", "called_back", "sent")
        ]
        table.add_row(f"{level} %", f"{found['rate']:,.0f}", *cells[:2], f"{found['of_bare_p99']:.1f}", *cells[2:])
    plan.console.print(table)
    return figures
