"""``make bench``: what a request costs, beside its floor, and how the service stands under load, growth and trouble.

Compare the ratios: absolute numbers depend on the machine, and on what else it does. Tables go to standard error, and
all figures as JSON to standard output and to ``build/bench.json``; the picture is ``build/bench.svg``. The exit status
is 1 if something could not be measured. Everything runs on this machine's loopback, in temporary folders, and stops by
itself.
"""

import argparse
import datetime as dt
import json
import platform
import signal
import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console

import engines
import picture
import report
from entries import ENTRIES
from plan import CORES, Plan

RESULT: Final = Path("build/bench.json")


def rounded(figures: Any) -> Any:
    """Figures in nested dicts, rounded to three digits."""
    if isinstance(figures, dict):
        return {name: rounded(value) for name, value in figures.items()}
    return round(figures, 3) if isinstance(figures, float) else figures


def main(options: argparse.Namespace) -> bool:
    """Measure the chosen entries. Returns whether everything could be measured."""
    names = options.only or [name for name, entry in ENTRIES.items() if entry.quick or not options.quick]
    seconds = options.seconds or (2 if options.quick else 5)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140)
    plan = Plan(seconds=seconds, quick=options.quick, engines=options.engines, console=console)
    if not options.quick:
        minutes = sum(ENTRIES[name].minutes for name in names) * seconds / 5
        console.print(f"This takes about {max(minutes, 1):.0f} min.", style="dim")
    run = {
        "measured": dt.datetime.now(dt.UTC).date().isoformat(),
        "python": platform.python_version(),
        "cores": len(CORES),
        "seconds": seconds,
        "quick": options.quick,
    }
    figures: dict[str, Any] = {"runs": {}, "entries": {}, "missing": plan.missing}
    for name in names:
        with plan.part(name):
            figures["entries"][name] = rounded(ENTRIES[name].measure(plan))
            figures["runs"][name] = run
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    RESULT.with_suffix(".svg").write_text(picture.draw(figures["entries"], picture.LIGHT))
    print(json.dumps(figures))
    if options.publish:
        report.publish(figures)
    return not plan.missing


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the most important entries, in less than two minutes")
    parser.add_argument("--seconds", type=float, help="length of each measurement (default: 5; 2 with --quick)")
    parser.add_argument("--only", nargs="+", choices=list(ENTRIES), help="entries to measure")
    parser.add_argument(
        "--publish", action="store_true", help="renew docs/bench.json, and what the documents show of it"
    )
    parser.add_argument("--engines", nargs="+", choices=engines.NAMES, default=engines.NAMES)
    # Like Ctrl-C, which cancels what runs in an event loop, so that every process is stopped.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        sys.exit(not main(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit(130)
