"""Compares the latency of trees of the service, in turns on one core.

Usage: turns.py TREE TREE... [--rates R,R] [--rounds N] [--seconds S]; a tree is a folder with ``src/chargegate``.

All trees run on one core, and one at a time gets an open loop of requests: two that are loaded at once would be part of
each other's latency. Each round gives every tree the same schedule within the same half minute, in another order each
time, and beside them the bare application. What is compared is the median of the rounds' ratios to the first tree, and
the lower quartile of each tree, because what others do on the machine only ever adds to a latency.

On Linux a process of another session may have the core for some ms whenever a request comes. Where its sessions are
scheduled as groups (``kernel.sched_autogroup_enabled``), ``echo -19 > /proc/self/autogroup`` in the shell before is
what ``nice`` is elsewhere. With ``TMPDIR=/dev/shm`` no disk is part of what is measured.

A table goes to standard error, and the figures as JSON to standard output.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

import load
from cost import bare_application
from pair import Servers, Variant, running
from plan import one_core
from processes import DRIVERS

WARM_S = 0.5
REST_S = 0.2
SHARES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}

Figures = dict[str, float]


async def once(variant: Variant, url: str, rate: float, seconds: float, seed: int) -> Figures:
    """Latencies of one tree in ms, and its processor time for a request in µs."""
    known = load.tokens(DRIVERS)
    warm = load.arrivals(rate, WARM_S, seed=seed + 1000)
    await load.open_loop(variant.port, warm, known, (url + "/{}").format, called_back=lambda _: True)
    due = load.arrivals(rate, seconds, seed=seed)
    before = variant.spent()
    times = await load.open_loop(variant.port, due, known, (url + "/{}").format, called_back=lambda _: True)
    spent = (variant.spent() - before) / len(due) * 1e6
    figures = {name: load.percentile(times.answered, share) * 1e3 for name, share in SHARES.items()}
    return {"us": spent, **figures, "called_back_p99": load.percentile(times.called_back, 0.99) * 1e3}


async def rounds(variants: Sequence[Variant], bare_port: int, options: Any) -> dict[str, Any]:
    """All figures by rate."""
    url = await load.sink()
    found: dict[str, Any] = {}
    for rate in options.rates:
        of_trees: list[list[Figures]] = [[] for _ in variants]
        bare: list[float] = []
        for number in range(options.rounds):
            order = [(number + at) % len(variants) for at in range(len(variants))]
            for at in order if number % 2 == 0 else reversed(order):
                of_trees[at].append(await once(variants[at], url, rate, options.seconds, number))
                gc.collect()
                await asyncio.sleep(REST_S)
            due = load.arrivals(rate, options.seconds / 2, seed=number)
            times = await load.open_loop(bare_port, due, load.tokens(DRIVERS))
            bare.append(load.percentile(times.answered, 0.99) * 1e3)
        found[f"{rate:g}"] = {"trees": of_trees, "bare_p99": bare}
        show(rate, of_trees, bare)
    return found


def show(rate: float, of_trees: list[list[Figures]], bare: list[float]) -> None:
    """Lower quartile and median of a rate, and in parentheses the median of the ratios to the first tree."""
    print(f"{rate:g}/s, bare p99 {statistics.median(bare):.2f} ms", file=sys.stderr)
    for figures in of_trees:
        line = []
        for name in figures[0]:
            ratio = statistics.median(one[name] / base[name] for one, base in zip(figures, of_trees[0], strict=True))
            every = sorted(one[name] for one in figures)
            line.append(f"{name} {every[len(every) // 4]:7.2f} {statistics.median(every):7.2f} ({ratio:.2f})")
        print("   " + "  ".join(line), file=sys.stderr, flush=True)


def main(options: Any) -> None:
    """Measure."""
    # Each tree is started once: its file grows alike with each round.
    with one_core(), bare_application("asgi") as (_, port), contextlib.ExitStack() as stack:
        variants = stack.enter_context(running([(tree, Servers()) for tree in options.trees], 0, loaded=False))
        print(json.dumps(uvloop.run(rounds(variants, port, options))))


def parse(arguments: list[str]) -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", type=Path, nargs="+")
    parser.add_argument("--rates", type=lambda text: list(map(float, text.split(","))), default=[200, 1250, 2500])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="length of each measurement")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
